"""One Modbus unit on its line: reads in as few requests as it takes, writes with the function that fits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dmi.types import DeviceId, PropertyType
from dmi.values import Value
from mappers.drivers.modbus import pdu
from mappers.drivers.modbus.batch import Batch
from mappers.drivers.modbus.codec import encode_bits, encode_mask, encode_registers, merge_bits
from mappers.drivers.modbus.learned import Learned
from mappers.drivers.modbus.pdu import BadReply
from mappers.drivers.modbus.plan import ReadRequest, gaps
from mappers.drivers.modbus.refusals import DEVICE_FAILURE, NO_ANSWER, SPLITTABLE, refusal
from mappers.drivers.modbus.settings import READ_CODES, ModbusConfig, ModbusVisitor
from mappers.drivers.modbus.transport import Transport
from mappers.sdk import (
    ConversionError,
    DeviceError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnsupported,
    Line,
    Property,
    ReadResult,
)

__all__ = ["ModbusLink"]

logger = logging.getLogger(__name__)

_PLANS: Final = 64


class ModbusLink:
    """One unit. Each request is a turn on its line, so that others, and writes, get in between two of a long read.

    Unit 0 of a serial line is the broadcast address: writes go out to all devices, and as none answers, no write is
    confirmed and no property can be read (over Serial Line V1.02, 2.1). On TCP, TLS and UDP it is a unit like others.

    Args:
        learned: From earlier links of the device.
    """

    def __init__(
        self, device_id: DeviceId, config: ModbusConfig, line: Line[Transport], learned: Learned | None = None
    ) -> None:
        self._device_id = device_id
        self._unit = config.slave_id
        self._timeout_s = config.timeout / 1000
        self._gap_s = max(config.inter_frame_delay / 1000, _frame_gap_s(config))
        self._is_broadcast = config.slave_id == 0 and config.mode in ("RTU", "RTUOVERTCP", "ASCII")
        self._line = line
        self._transport: Transport | None = None
        """What the line ran over when it was last used."""
        self._learned = learned or Learned(config.max_registers, config.max_gap)
        self._plans: dict[tuple[Property[ModbusVisitor], ...], tuple[Batch, ...]] = {}

    async def read_many(self, properties: Sequence[Property[ModbusVisitor]]) -> Mapping[str, ReadResult]:
        if self._is_broadcast:
            unreadable = DeviceUnsupported(self._device_id, "slaveID 0 is the broadcast address: it cannot be read")
            return {p.name: unreadable for p in properties}
        results: dict[str, ReadResult] = {}
        learned, plan = self._learned, self._plan(tuple(properties))
        doubtful = [batch for batch in plan if batch.request.key in learned.doubts] if learned.doubts else []
        try:
            for batch in plan:
                if batch not in doubtful:
                    await self._read(batch, results)
            if doubtful and learned.silent:
                await self._read_one_of(doubtful, results)
            for batch in doubtful:
                await self._read_doubtful(batch, results)
        except DeviceTimeout as silent:  # the rest would only wait as long
            results.update((p.name, silent) for p in properties if p.name not in results)
        return results

    async def write(self, property_: Property[ModbusVisitor], value: Value) -> None:
        visitor = property_.visitor
        if visitor.bit is not None and visitor.write_function in ("single", "multiple"):
            await self._write_merged(visitor, value)
        else:
            await self._confirmed(write_request(value, visitor))

    # reading

    def _plan(self, properties: tuple[Property[ModbusVisitor], ...]) -> tuple[Batch, ...]:
        plan = self._plans.get(properties)
        if plan is None:
            if len(self._plans) >= _PLANS:  # declarations that are no more
                self._plans.clear()
            types = {p.name: p.model.type for p in properties}
            plan = self._plans[properties] = self._cover(((p.name, p.visitor) for p in properties), types)
        return plan

    def _cover(
        self, items: Iterable[tuple[str, ModbusVisitor]], types: Mapping[str, PropertyType]
    ) -> tuple[Batch, ...]:
        return tuple(Batch(request, types) for request in self._learned.plan(items))

    async def _read(
        self, batch: Batch, results: dict[str, ReadResult], *, doubtful: bool = False, again: bool = False
    ) -> None:
        """One request and, where it is refused as a whole, those it is split into."""
        request = batch.request
        try:
            reply = await self._transact(pdu.read(READ_CODES[request.register], request.start, request.count), doubtful)
            values = batch.decode(reply)
        except DeviceTimeout:
            if not doubtful:
                self._learned.missed(request)
            raise
        except DeviceRejected as error:
            if len(request.items) == 1 or error.code not in SPLITTABLE:
                results.update((name, error) for name, _ in request.items)
            elif error.code == DEVICE_FAILURE and not again:  # perhaps it passes
                await self._read(batch, results, doubtful=doubtful, again=True)
            else:
                await self._read_split(batch, results)
        except BadReply as error:
            garbled = self._garbled(error, reply)
            results.update((name, garbled) for name, _ in request.items)
        except DeviceProtocolError as error:
            results.update((name, error) for name, _ in request.items)
        else:
            results.update(values)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("device %s: %s from %d: %s", self._device_id, request.register, request.start, reply.hex())
                for name in (name for name, value in values.items() if isinstance(value, ConversionError)):
                    logger.debug("device %s: property %s: raw %s", self._device_id, name, batch.raw(name, reply))
        if self._learned.doubts:
            self._learned.answered(request)

    async def _read_split(self, batch: Batch, results: dict[str, ReadResult]) -> None:
        """Find out what in a refused request is refused, and remember it: first the registers read along, then the
        items one by one, then the length."""
        self._plans.clear()
        request, learned = batch.request, self._learned
        between = set(gaps(request))
        if between:
            learned.holes |= between
            for part in self._cover(request.items, batch.types):
                await self._read(part, results)
            return
        refused = False
        for name, visitor in request.items:
            await self._read(_single(name, visitor, batch.types), results)
            result = results[name]
            if isinstance(result, DeviceRejected):
                refused = True
                if result.code in SPLITTABLE:
                    learned.holes.update((visitor.register, a) for a in range(visitor.offset, visitor.end))
        if not refused:
            most = learned.too_long(request)
            logger.info(
                "device %s takes no reads of %d cells of a %s at once: trying %d",
                self._device_id,
                request.count,
                request.register,
                most,
            )

    async def _read_one_of(self, doubtful: Sequence[Batch], results: dict[str, ReadResult]) -> None:
        """See whether the device is there at all, as nothing was answered last time: with another property each time,
        because some devices do not answer where they should refuse."""
        items = [(name, visitor, batch) for batch in doubtful for name, visitor in batch.request.items]
        name, visitor, batch = items[self._learned.next_sample % len(items)]
        self._learned.next_sample += 1
        await self._read(_single(name, visitor, batch.types), results)

    async def _read_doubtful(self, batch: Batch, results: dict[str, ReadResult]) -> None:
        """A request that was not answered last time, while the device answers others."""
        request, now = batch.request, asyncio.get_running_loop().time
        doubt = self._learned.doubts.get(request.key)
        if doubt is None and all(name in results for name, _ in request.items):
            return  # it was the one that was read to see whether the device is there
        if doubt is None or now() >= doubt.until:
            try:
                await self._read(batch, results, doubtful=True)
                return
            except DeviceTimeout:
                if self._learned.ignored(request, now()):
                    self._plans.clear()
        span = f"{request.start}" if request.count == 1 else f"{request.start} to {request.end - 1}"
        problem = f"no reply to a read of {request.register} {span}, while the device answers others"
        results.update((n, DeviceTimeout(self._device_id, problem)) for n, _ in request.items if n not in results)

    # writing

    async def _write_merged(self, visitor: ModbusVisitor, value: Value) -> None:
        """A bit of a register without function 22: read, change, write, with no other request of ours in between."""
        if self._is_broadcast:
            raise DeviceUnsupported(self._device_id, "a bit cannot be broadcast without writeFunction mask")
        merge_bits(0, value, visitor)  # refused before the device is touched
        code = 0
        await self._settle()
        async with self._line.turn(self._device_id, write=True, gap_s=self._gap_s) as transport:
            request = pdu.read(READ_CODES["HoldingRegister"], visitor.offset, 1)
            reply, code = await self._ask(transport, request)
            if not code:
                try:
                    (word,) = pdu.parse_registers(reply, 1)
                except BadReply as error:
                    raise self._garbled(error, reply) from error
                request = _write_words(visitor, [merge_bits(word, value, visitor)])
                reply, code = await self._ask(transport, request)
        self._check_written(request, reply, code)

    async def _confirmed(self, request: bytes) -> None:
        if self._is_broadcast:
            async with self._line.turn(self._device_id, write=True, gap_s=self._gap_s) as transport:
                await transport.broadcast(self._device_id, request)
            return
        await self._settle()
        async with self._line.turn(self._device_id, write=True, gap_s=self._gap_s) as transport:
            reply, code = await self._ask(transport, request)
        self._check_written(request, reply, code)

    def _check_written(self, request: bytes, reply: bytes, code: int) -> None:
        if code:
            raise refusal(self._device_id, request[0], code)
        try:
            if request[0] == 23:
                pdu.parse_registers(reply, int.from_bytes(request[3:5], "big"))
            else:
                pdu.check_echo(request, reply)
        except BadReply as error:
            raise self._garbled(error, reply) from error

    # requests

    async def _transact(self, request: bytes, doubtful: bool) -> bytes:
        await self._settle()
        async with self._line.turn(self._device_id, gap_s=self._gap_s, doubtful=doubtful) as transport:
            reply, code = await self._ask(transport, request)
        if code:  # raised out here: the line itself is sound
            raise refusal(self._device_id, request[0], code)
        return reply

    async def _settle(self) -> None:
        """Let a late answer pass while others have the line."""
        if self._transport is not None and self._transport.owes(self._unit):
            self._line.admit(self._device_id)
            await self._transport.settle(self._unit)

    async def _ask(self, transport: Transport, request: bytes) -> tuple[bytes, int]:
        """The reply, and its exception code or 0."""
        self._transport = transport
        reply = await transport.ask(self._device_id, self._unit, request, self._timeout_s)
        self._learned.silent = False
        try:
            code = pdu.exception_code(reply)
        except BadReply as error:
            raise self._garbled(error, reply) from error
        if code == NO_ANSWER:  # it has cost the line the gateway's timeout
            raise DeviceTimeout(self._device_id, refusal(self._device_id, request[0], code).problem)
        return reply, code

    def _garbled(self, error: BadReply, reply: bytes) -> DeviceError:
        logger.debug("device %s: received %s", self._device_id, reply.hex())
        return DeviceProtocolError(self._device_id, f"the reply makes no sense: {error}")


def _single(name: str, visitor: ModbusVisitor, types: Mapping[str, PropertyType]) -> Batch:
    return Batch(ReadRequest(visitor.register, visitor.offset, visitor.limit, ((name, visitor),)), types)


def write_request(value: Value, visitor: ModbusVisitor) -> bytes:
    """The request that writes `value` as `writeFunction` says.

    Raises:
        ConversionError: The registers cannot hold it.
    """
    if visitor.is_bits:
        bits = encode_bits(value, visitor)
        if len(bits) == 1 and visitor.write_function != "multiple":
            return pdu.write_coil(visitor.offset, bits[0])
        return pdu.write_coils(visitor.offset, bits)
    if visitor.bit is not None:
        return pdu.mask_write(visitor.offset, *encode_mask(value, visitor))
    return _write_words(visitor, encode_registers(value, visitor))


def _write_words(visitor: ModbusVisitor, words: Sequence[int]) -> bytes:
    if visitor.write_function == "readWrite":
        return pdu.read_write(visitor.offset, words)
    if len(words) == 1 and visitor.write_function != "multiple":
        return pdu.write_register(visitor.offset, words[0])
    return pdu.write_registers(visitor.offset, words)


def _frame_gap_s(config: ModbusConfig) -> float:
    """Between two RTU frames the line rests for 3.5 characters of 11 bits; above 19200 baud 1.75 ms (over Serial Line
    V1.02, 2.5.1.1)."""
    if config.mode != "RTU":
        return 0.0
    return max(3.5 * 11 / config.baud_rate, 0.00175)
