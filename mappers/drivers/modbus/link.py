"""A Modbus TCP connection to one unit, on pymodbus: reads in as few requests as it takes, writes of any width."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException, ModbusIOException
from pymodbus.pdu import ExceptionResponse, ModbusPDU

from dmi.types import DeviceId
from dmi.values import Value
from mappers.drivers.modbus.codec import decode_bits, decode_registers, encode_bits, encode_registers
from mappers.drivers.modbus.plan import Address, ReadRequest, gaps, plan_reads
from mappers.drivers.modbus.settings import BITS, MAX_REGISTERS, READ_CODES, ModbusConfig, ModbusVisitor
from mappers.sdk import (
    ConversionError,
    DeviceError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    Property,
    ReadResult,
)

__all__ = ["ModbusLink", "modbus_errors"]

logger = logging.getLogger(__name__)

LOST_AFTER: Final = 3
"""Requests in a row without a reply after which the connection counts as lost."""
_PLANS: Final = 64

_REFUSALS: Final = {
    1: "illegal function: the device does not know this kind of access",
    2: "illegal data address: the device has no such register",
    3: "illegal data value: the device refuses the value or the number of registers",
    4: "device failure",
    5: "acknowledged, but not done yet",
    6: "device busy",
    8: "memory parity error",
}
_SPLITTABLE: Final = frozenset({2, 3, 4})
"""Refusals that one register of several may be the cause of; devices differ in which they answer."""
_NO_PATH: Final = frozenset({10, 11})
"""A gateway's answer for a unit that is not there."""


@contextmanager
def modbus_errors(device_id: DeviceId) -> Iterator[None]:
    """Turn pymodbus failures raised in the block into `DeviceError`s, the cause kept."""
    try:
        yield
    except ConnectionException as error:
        raise DeviceUnreachable(device_id, "connection lost") from error
    except ModbusIOException as error:
        if "No response" in error.string:
            raise DeviceTimeout(device_id, "no reply") from error
        raise DeviceProtocolError(device_id, error.string) from error
    except ModbusException as error:
        raise DeviceProtocolError(device_id, error.string) from error


class ModbusLink:
    """One connection to one unit. pymodbus keeps one transaction on the wire at a time, first come first served, so
    that a write gets in between two requests of a long read."""

    def __init__(self, device_id: DeviceId, config: ModbusConfig, client: AsyncModbusTcpClient) -> None:
        self._device_id = device_id
        self._unit = config.slave_id
        self._client = client
        self.waiting = 0
        """Requests on the wire or in line for it."""
        self._silent = 0
        self._holes: set[Address] = set()
        self._most = MAX_REGISTERS
        self._plans: dict[tuple[Property[ModbusVisitor], ...], tuple[ReadRequest, ...]] = {}

    async def read_many(self, properties: Sequence[Property[ModbusVisitor]]) -> Mapping[str, ReadResult]:
        results: dict[str, ReadResult] = {}
        by_name = {p.name: p for p in properties}
        silent: DeviceTimeout | None = None
        for request in self._plan(tuple(properties)):
            if silent is None:
                try:
                    await self._read(request, by_name, results)
                except DeviceTimeout as error:
                    silent = error
            if silent is not None:  # the rest would only wait as long
                results.update((name, silent) for name, _ in request.items if name not in results)
        return results

    async def write(self, property_: Property[ModbusVisitor], value: Value) -> None:
        visitor, client, unit = property_.visitor, self._client, self._unit
        if visitor.is_bits:
            bits = encode_bits(value, visitor)
            if len(bits) == 1:
                await self._transact(lambda: client.write_coil(visitor.offset, bits[0], device_id=unit))
            else:
                await self._transact(lambda: client.write_coils(visitor.offset, bits, device_id=unit))
            return
        words = encode_registers(value, visitor)
        if len(words) == 1:
            await self._transact(lambda: client.write_register(visitor.offset, words[0], device_id=unit))
        else:
            await self._transact(lambda: client.write_registers(visitor.offset, words, device_id=unit))

    def _plan(self, properties: tuple[Property[ModbusVisitor], ...]) -> tuple[ReadRequest, ...]:
        plan = self._plans.get(properties)
        if plan is None:
            if len(self._plans) >= _PLANS:  # declarations that are no more
                self._plans.clear()
            plan = plan_reads(((p.name, p.visitor) for p in properties), holes=self._holes, most=self._most)
            self._plans[properties] = plan
        return plan

    async def _read(
        self, request: ReadRequest, by_name: Mapping[str, Property[ModbusVisitor]], results: dict[str, ReadResult]
    ) -> None:
        """One request and, where it is refused as a whole, those it is split into."""
        try:
            cells = await self._fetch(request)
        except DeviceRejected as error:
            if len(request.items) > 1 and error.code in _SPLITTABLE:
                await self._read_split(request, by_name, results)
            else:
                results.update((name, error) for name, _ in request.items)
            return
        except DeviceProtocolError as error:
            results.update((name, error) for name, _ in request.items)
            return
        for name, visitor in request.items:
            part = cells[visitor.offset - request.start : visitor.end - request.start]
            type_ = by_name[name].model.type
            try:
                decode = decode_bits if visitor.is_bits else decode_registers
                results[name] = decode(part, visitor, type_)  # type: ignore[arg-type]  # bits for the one, words for the other
            except ConversionError as error:
                logger.debug("device %s: property %s: raw %s", self._device_id, name, list(part))
                results[name] = error

    async def _read_split(
        self, request: ReadRequest, by_name: Mapping[str, Property[ModbusVisitor]], results: dict[str, ReadResult]
    ) -> None:
        """Find out what in a refused request is refused, and remember it for the life of the link: first the registers
        read along, then the items one by one, then the length."""
        self._plans.clear()
        between = set(gaps(request))
        if between:
            self._holes |= between
            for part in plan_reads(request.items, holes=self._holes, most=self._most):
                await self._read(part, by_name, results)
            return
        refused = False
        for name, visitor in request.items:
            single = ReadRequest(visitor.register, visitor.offset, visitor.limit, ((name, visitor),))
            await self._read(single, by_name, results)
            if isinstance(results[name], DeviceRejected):
                refused = True
                self._holes.update((visitor.register, a) for a in range(visitor.offset, visitor.end))
        if not refused:
            registers = request.count // 16 if request.register in BITS else request.count
            self._most = max(1, min(self._most, registers) // 2)
            logger.info("device %s takes no reads of %d registers: trying %d", self._device_id, registers, self._most)

    async def _fetch(self, request: ReadRequest) -> Sequence[int] | Sequence[bool]:
        client, start, count, unit = self._client, request.start, request.count, self._unit
        match request.register:
            case "CoilRegister":
                reply = await self._transact(lambda: client.read_coils(start, count=count, device_id=unit))
            case "DiscreteInputRegister":
                reply = await self._transact(lambda: client.read_discrete_inputs(start, count=count, device_id=unit))
            case "HoldingRegister":
                reply = await self._transact(lambda: client.read_holding_registers(start, count=count, device_id=unit))
            case "InputRegister":
                reply = await self._transact(lambda: client.read_input_registers(start, count=count, device_id=unit))
        bits = request.register in BITS
        cells: Sequence[int] | Sequence[bool] = reply.bits if bits else reply.registers
        if reply.function_code != READ_CODES[request.register]:
            raise DeviceProtocolError(
                self._device_id, f"a reply to function {reply.function_code}, which was not asked"
            )
        if len(cells) != (-(-count // 8) * 8 if bits else count):  # bits come in whole bytes
            raise DeviceProtocolError(self._device_id, f"asked for {count} of {request.register}, got {len(cells)}")
        return cells

    async def _transact(self, call: Callable[[], Awaitable[ModbusPDU]]) -> ModbusPDU:
        try:
            with modbus_errors(self._device_id):
                self.waiting += 1
                reply = await call()
        except DeviceTimeout as error:
            self._silent += 1
            if self._silent >= LOST_AFTER:
                raise DeviceUnreachable(self._device_id, f"no reply to {self._silent} requests in a row") from error
            raise
        finally:
            self.waiting -= 1
        self._silent = 0
        if isinstance(reply, ExceptionResponse):
            raise self._refusal(reply.exception_code)
        return reply

    def _refusal(self, code: int) -> DeviceError:
        if code in _NO_PATH:
            return DeviceUnreachable(self._device_id, f"the gateway does not reach unit {self._unit}")
        text = _REFUSALS.get(code, "refused")
        return DeviceRejected(self._device_id, f"{text} (exception {code})", code)
