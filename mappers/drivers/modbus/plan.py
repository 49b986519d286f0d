"""Which requests read a set of registers: adjacent and nearly adjacent ones of a kind go into one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Final

from msgspec import Struct

from mappers.drivers.modbus.settings import MAX_BITS, MAX_REGISTERS, ModbusVisitor, Register

__all__ = ["MAX_GAP", "Address", "ReadRequest", "gaps", "plan_reads"]

MAX_GAP: Final = 8
"""Unwanted registers read along to save a request: 16 bytes more in a reply against a round trip. 128 bits likewise."""

Address = tuple[Register, int]


class ReadRequest(Struct, frozen=True):
    """One read: `count` registers or bits from `start`, and whose they are."""

    register: Register
    start: int
    count: int
    items: tuple[tuple[str, ModbusVisitor], ...]

    @property
    def end(self) -> int:
        return self.start + self.count


def plan_reads(
    items: Iterable[tuple[str, ModbusVisitor]],
    *,
    holes: Set[Address] = frozenset(),
    most: int = MAX_REGISTERS,
) -> tuple[ReadRequest, ...]:
    """Cover every item by exactly one request.

    Args:
        holes: Addresses the device refused. No request of several items covers one; an item that does goes alone.
        most: Registers in one request, where a device takes fewer than the protocol's 125.
    """
    requests: list[ReadRequest] = []
    for item in sorted(items, key=lambda i: (i[1].register, i[1].offset, i[1].limit)):
        merged = _merge(requests[-1], item, holes, most) if requests else None
        if merged is not None:
            requests[-1] = merged
        else:
            requests.append(ReadRequest(item[1].register, item[1].offset, item[1].limit, (item,)))
    return tuple(requests)


def gaps(request: ReadRequest) -> Iterator[Address]:
    """The addresses read along that belong to no item."""
    wanted = {address for _, v in request.items for address in range(v.offset, v.end)}
    return ((request.register, a) for a in range(request.start, request.end) if a not in wanted)


def _merge(request: ReadRequest, item: tuple[str, ModbusVisitor], holes: Set[Address], most: int) -> ReadRequest | None:
    visitor = item[1]
    if visitor.register != request.register:
        return None
    count = max(request.end, visitor.end) - request.start
    scale = 16 if visitor.is_bits else 1
    if visitor.offset - request.end > MAX_GAP * scale or count > min(most * scale, MAX_BITS):
        return None
    if holes and any((request.register, a) in holes for a in range(request.start, request.start + count)):
        return None
    return ReadRequest(request.register, request.start, count, (*request.items, item))
