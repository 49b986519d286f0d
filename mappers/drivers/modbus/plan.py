"""Which requests read a set of registers: adjacent and nearly adjacent ones of a kind go into one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Final

from msgspec import Struct

from mappers.drivers.modbus.settings import MAX_BITS, MAX_REGISTERS, ModbusVisitor, Register

__all__ = ["MAX_GAP", "Address", "ReadRequest", "RequestKey", "gaps", "plan_reads"]

MAX_GAP: Final = 8
"""Unwanted registers read along to save a request: 16 bytes more in a reply against a round trip. 128 bits likewise."""

Address = tuple[Register, int]
RequestKey = tuple[Register, int, int]
"""Kind, first address, count."""


class ReadRequest(Struct, frozen=True):
    """One read: `count` registers or bits from `start`, and whose they are."""

    register: Register
    start: int
    count: int
    items: tuple[tuple[str, ModbusVisitor], ...]

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def key(self) -> RequestKey:
        return self.register, self.start, self.count


def plan_reads(
    items: Iterable[tuple[str, ModbusVisitor]],
    *,
    holes: Set[Address] = frozenset(),
    cuts: Set[Address] = frozenset(),
    most: int = MAX_REGISTERS,
    most_bits: int = MAX_BITS,
    gap: int = MAX_GAP,
) -> tuple[ReadRequest, ...]:
    """Cover every item by exactly one request.

    Args:
        holes: Addresses the device refused. No request of several items covers one; an item that does goes alone.
        cuts: An item that begins at one of these is the first of its request.
        most: Registers in one request, where a device takes fewer than the protocol's 125. A wider item goes alone.
        most_bits: The same for coils and discrete inputs, where it is fewer than 2000.
        gap: Unwanted registers read along at a stretch; of bits 16 times as many.
    """
    requests: list[ReadRequest] = []
    run: list[tuple[str, ModbusVisitor]] = []
    end = 0
    for item in sorted(items, key=lambda i: (i[1].register, i[1].offset, i[1].limit)):
        visitor = item[1]
        if (
            run
            and (visitor.register, visitor.offset) not in cuts
            and _joins(run, end, visitor, holes, most_bits if visitor.is_bits else most, gap)
        ):
            run.append(item)
            end = max(end, visitor.end)
            continue
        if run:
            requests.append(_request(run, end))
        run, end = [item], visitor.end
    if run:
        requests.append(_request(run, end))
    return tuple(requests)


def gaps(request: ReadRequest) -> Iterator[Address]:
    """The addresses read along that belong to no item."""
    wanted = {address for _, v in request.items for address in range(v.offset, v.end)}
    return ((request.register, a) for a in range(request.start, request.end) if a not in wanted)


def _request(run: list[tuple[str, ModbusVisitor]], end: int) -> ReadRequest:
    first = run[0][1]
    return ReadRequest(first.register, first.offset, end - first.offset, tuple(run))


def _joins(
    run: list[tuple[str, ModbusVisitor]], end: int, visitor: ModbusVisitor, holes: Set[Address], most: int, gap: int
) -> bool:
    """Whether an item can be read with the run before it, which ends at `end`."""
    first = run[0][1]
    if visitor.register != first.register:
        return False
    new_end = max(end, visitor.end)
    if visitor.offset - end > gap * (16 if visitor.is_bits else 1) or new_end - first.offset > most:
        return False
    unchecked = first.offset if len(run) == 1 else end
    return not (holes and any((visitor.register, a) in holes for a in range(unchecked, new_end)))
