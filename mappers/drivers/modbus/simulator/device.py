"""A simulated device apart from its wire: requests are counted, refused as the faults say, or answered from memory."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Coroutine
from typing import Any, Final, cast

from msgspec import Struct
from pymodbus.constants import ExcCodes
from pymodbus.pdu import ExceptionResponse, ModbusPDU
from pymodbus.pdu.mei_message import ReadDeviceInformationRequest, ReadDeviceInformationResponse

from mappers.drivers.modbus.settings import SERIAL, Mode
from mappers.drivers.modbus.simulator.faults import Faults
from mappers.drivers.modbus.simulator.memory import KINDS, Memory

__all__ = ["BUS", "Device", "Request"]

logger = logging.getLogger(__name__)

BUS: Final[frozenset[Mode]] = frozenset({*SERIAL, "RTUOVERTCP"})
"""Modes where all units hear everything: what is not for a unit is not answered, and 0 is for all."""
_LOG: Final = 10_000
_MAX_DELAYED: Final = 1000
"""Replies waiting for their delay; requests beyond are dropped, and counted as `overrun`."""


class Request(Struct, frozen=True):
    """One that arrived. `address` and `count` are 0 where the function has none."""

    unit: int
    function: int
    address: int
    count: int


class Device:
    """What the connections of a server share: memory, faults, what was asked, and the replies under way."""

    def __init__(self, memory: Memory, faults: Faults, mode: Mode, seed: int) -> None:
        self.memory = memory
        self.faults = faults
        self.mode = mode
        self.requests: Counter[tuple[int, int]] = Counter()
        """(unit, function code) → how many."""
        self.log: deque[Request] = deque(maxlen=_LOG)
        self.rng = random.Random(seed)  # noqa: S311  # faults, not secrets
        self._replies: set[asyncio.Task[None]] = set()

    def start(self, reply: Coroutine[Any, Any, None]) -> None:
        """Work on a reply; `close` ends what is under way."""
        if len(self._replies) >= _MAX_DELAYED:
            self.faults.seen["overrun"] += 1
            reply.close()
            return
        task = asyncio.create_task(reply, name="simulated reply")
        self._replies.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        tasks = list(self._replies)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._replies.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the simulated device failed on a request", exc_info=error)

    def note(self, pdu: ModbusPDU) -> Request:
        """Count a request."""
        start = getattr(pdu, "read_address", pdu.address)
        count = getattr(pdu, "read_count", 0) or pdu.count or (1 if pdu.function_code in KINDS else 0)
        request = Request(pdu.dev_id, pdu.function_code, start, count)
        self.requests[request.unit, request.function] += 1
        self.log.append(request)
        return request

    async def answer(self, pdu: ModbusPDU) -> ModbusPDU | None:
        """The device's reply; None: it keeps silent."""
        request, unit, faults = self.note(pdu), pdu.dev_id, self.faults
        if self.mode in BUS and unit == 0:
            for each in self.memory.units:
                await pdu.datastore_update(cast(Any, self.memory), each)
            return None
        if unit in faults.silent_units:
            faults.seen["silent_units"] += 1
            return None
        if not self.memory.has(unit):
            if self.mode in BUS:
                return None
            return _stamped(ExceptionResponse(pdu.function_code, ExcCodes.GATEWAY_NO_RESPONSE), pdu)
        kind = KINDS.get(pdu.function_code)
        if faults.ignores(kind, request.address, request.count):
            return None
        code = faults.refusal(pdu.function_code, kind, request.address, request.count)
        if code:
            return _stamped(ExceptionResponse(pdu.function_code, code), pdu)
        if isinstance(pdu, ReadDeviceInformationRequest):
            return _stamped(self._identify(pdu), pdu)
        try:
            return _stamped(await pdu.datastore_update(cast(Any, self.memory), unit), pdu)
        except Exception as error:  # noqa: BLE001  # whatever pymodbus makes of a request, the device lives on
            logger.debug("a request of function %d failed: %r", pdu.function_code, error)
            return _stamped(ExceptionResponse(pdu.function_code, ExcCodes.DEVICE_FAILURE), pdu)

    def _identify(self, pdu: ReadDeviceInformationRequest) -> ModbusPDU:
        identity = self.memory.identity(pdu.dev_id)
        if not identity:
            return ExceptionResponse(pdu.function_code, ExcCodes.ILLEGAL_FUNCTION)
        if pdu.read_code == 4:
            wanted = {pdu.object_id: identity[pdu.object_id]} if pdu.object_id in identity else {}
        else:
            last = {1: 2, 2: 0x7F}.get(pdu.read_code, 0xFF)
            wanted = {i: text for i, text in sorted(identity.items()) if pdu.object_id <= i <= last}
        if not wanted:
            return ExceptionResponse(pdu.function_code, ExcCodes.ILLEGAL_ADDRESS)
        return ReadDeviceInformationResponse(
            read_code=pdu.read_code, information={i: text.encode()[:245] for i, text in wanted.items()}
        )


def _stamped(reply: ModbusPDU, request: ModbusPDU) -> ModbusPDU:
    reply.transaction_id, reply.dev_id = request.transaction_id, request.dev_id
    return reply
