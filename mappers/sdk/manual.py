"""What somebody asks of one device right now, over the HTTP API: over the same link as everything else, and noted and
reported like the result of a cycle. The desired values stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from dmi.errors import ConversionError
from dmi.twins import Twin
from dmi.types import Device, DeviceId
from dmi.values import Value, check_range, parse_value
from mappers.sdk.collect import Collector
from mappers.sdk.connection import Connection
from mappers.sdk.driver import ReadResult
from mappers.sdk.errors import DeviceError, DeviceRejected, DeviceTimeout, DeviceUnsupported, UnknownProperty
from mappers.sdk.limits import parse_wanted
from mappers.sdk.tracking import Tracker
from mappers.sdk.writer import Writer, shown

__all__ = ["Manual"]

DEADLINE_S: Final = 30.0


class Manual:
    """Reads, writes and method calls of one device."""

    __slots__ = ("_broken", "_collector", "_connection", "_device_id", "_flush", "_trackers", "_writer")

    def __init__(
        self,
        device_id: DeviceId,
        connection: Connection,
        trackers: Mapping[str, Tracker],
        collector: Collector,
        writer: Writer,
        flush: Callable[[], None],
        broken: Callable[[], Mapping[str, str]],
    ) -> None:
        self._device_id = device_id
        self._connection = connection
        self._trackers = trackers
        self._collector = collector
        self._writer = writer
        self._flush = flush
        self._broken = broken

    async def read(self, name: str) -> Twin:
        tracker, link = self._find(name), self._connection.link
        if link is not None and link.reads is None and self._collector.is_pushed(name) and tracker.collected_ms:
            return tracker.twin()
        async with self._in_time():
            result = (await self._collector.read((tracker.property,)))[name]
        if isinstance(result, DeviceError | ConversionError):
            raise result
        if tracker.rejected:
            raise ConversionError(tracker.reason)
        return tracker.twin()

    async def write(self, name: str, text: str) -> Twin:
        tracker = self._find(name)
        held, result = await self._carry_out(tracker, parse_wanted(text, tracker.property.model))
        if isinstance(result, DeviceError | ConversionError):
            raise result
        if shown(tracker, result) != shown(tracker, held):
            problem = f"written {shown(tracker, held)}, but the device has {shown(tracker, result)}"
            raise DeviceRejected(self._device_id, problem, 0)
        return tracker.twin()

    async def call(self, device: Device, method: str, name: str, text: str) -> Twin:
        declared = next((m for m in device.methods if m.name == method), None)
        if declared is None:
            raise UnknownProperty(f"device {self._device_id} has no method {method!r}")
        if name not in declared.property_names:
            raise UnknownProperty(f"method {method!r} of device {self._device_id} takes no property {name!r}")
        tracker = self._find(name)
        link = self._connection.link
        if link is None or link.calls is None:
            await self._carry_out(tracker, parse_wanted(text, tracker.property.model))
            return tracker.twin()
        value = parse_value(text, tracker.property.model.type)  # a method may take what cannot be written otherwise
        check_range(text, tracker.property.model)
        await self._carry_out(tracker, value, method)
        return tracker.twin()

    async def _carry_out(self, tracker: Tracker, value: Value, method: str = "") -> tuple[Value, ReadResult]:
        try:
            async with self._in_time():
                return await self._writer.carry_out(tracker, value, method)
        finally:
            self._flush()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """What is ahead in the queue may be a call that hangs, and whoever asks does not wait for ever."""
        try:
            async with asyncio.timeout(DEADLINE_S) as deadline:
                yield
        except TimeoutError as error:
            if deadline.expired() and not isinstance(error, DeviceError):
                raise DeviceTimeout(self._device_id, f"not done within {DEADLINE_S:g} s") from error
            raise

    def _find(self, name: str) -> Tracker:
        if tracker := self._trackers.get(name):
            return tracker
        if problem := self._broken().get(name):
            raise DeviceUnsupported(self._device_id, problem)
        raise UnknownProperty(f"device {self._device_id} has no property {name!r}")
