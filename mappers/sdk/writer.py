"""Desired values of one device onto the device: written, read back, retried while they are wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from dmi.errors import ConversionError
from dmi.types import DeviceId
from dmi.values import Value, format_value
from mappers.sdk.connection import Connection
from mappers.sdk.driver import AnyDriver, ReadResult
from mappers.sdk.errors import DeviceError, DeviceRejected, DeviceUnreachable
from mappers.sdk.schedule import epoch_ms
from mappers.sdk.tracking import Tracker

__all__ = ["Writer"]

logger = logging.getLogger(__name__)

_IDLE_S: Final = 3600.0


class Writer:
    """Writes what is due as soon as it is due, beside the collect cycles: the link lets it in between two requests."""

    def __init__(
        self,
        driver: AnyDriver,
        device_id: DeviceId,
        connection: Connection,
        trackers: Mapping[str, Tracker],
        flush: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._device_id = device_id
        self._connection = connection
        self._trackers = trackers
        self._flush = flush
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            next_due = min((t.write_due for t in self._trackers.values() if t.write_due is not None), default=None)
            try:
                async with asyncio.timeout(_IDLE_S if next_due is None else max(next_due - loop.time(), 0)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._write_due(loop.time())
            self._flush()

    async def _write_due(self, now: float) -> None:
        due = [t for t in self._trackers.values() if t.write_due is not None and t.write_due <= now]
        if self._connection.link is None:
            for tracker in due:
                tracker.waits(self._connection.reason, epoch_ms())
            return
        if to_compare := [t for t in due if t.compare_first]:
            await self._compare(to_compare)
        for tracker in due:
            if self._current(tracker) and tracker.write_due is not None:
                await self._write(tracker)

    async def _compare(self, trackers: list[Tracker]) -> None:
        """After a connect: what the device has already is not written again."""
        wanted = [(t, t.wanted) for t in trackers]
        at = asyncio.get_running_loop().time()
        results = await self._connection.read([t.property for t in trackers])
        for tracker, value in wanted:
            tracker.compare_first = False
            if (
                value is not None
                and self._still(tracker, value)
                and self._has(tracker, results[tracker.name], value, at)
            ):
                tracker.applied(epoch_ms())

    def _has(self, tracker: Tracker, result: ReadResult, wanted: Value, at: float) -> bool:
        try:
            return self._holds(tracker, result, self._driver.held_value(tracker.property, wanted), at)
        except Exception:  # noqa: BLE001  # whatever the driver has against the value, the write that follows says it
            return False

    async def _write(self, tracker: Tracker) -> None:
        loop, wanted = asyncio.get_running_loop(), tracker.wanted
        if wanted is None:
            tracker.write_due = None
            return
        try:
            # Asked for first, so that a value the device cannot hold is refused before the device is touched.
            held = self._driver.held_value(tracker.property, wanted)
            await self._connection.write(tracker.property, wanted)
            at = loop.time()
            result = (await self._connection.read([tracker.property]))[tracker.name]
        except ConversionError as error:
            if self._still(tracker, wanted):
                self._log(tracker, "failed", f"desired: {error}")
                tracker.refuse(f"desired: {error}", epoch_ms())
        except DeviceUnreachable as error:
            if self._still(tracker, wanted):
                tracker.waits(error.problem, epoch_ms())
        except DeviceError as error:
            if self._still(tracker, wanted):
                self._fail(tracker, error.problem, slow=isinstance(error, DeviceRejected))
        except Exception as error:  # held_value is the driver's; anything it raises concerns this property only
            logger.exception("device %s: property %s: the driver failed", self._device_id, tracker.name)
            if self._still(tracker, wanted):
                self._fail(tracker, f"the driver failed: {error!r}", slow=True)
        else:
            if self._still(tracker, wanted):
                self._conclude(tracker, held, result, at)

    def _conclude(self, tracker: Tracker, held: Value, result: ReadResult, at: float) -> None:
        """Written; what does the device have now?"""
        match result:
            case DeviceUnreachable():
                tracker.waits(f"written, not read back: {result.problem}", epoch_ms())
            case DeviceError():
                self._fail(tracker, f"written, not read back: {result.problem}")
            case ConversionError():
                self._fail(tracker, f"written, not read back: {result}")
            case _ if self._holds(tracker, result, held, at):
                self._log(tracker, "applied", "")
                tracker.applied(epoch_ms())
            case _:
                self._fail(tracker, f"written {_shown(tracker, held)}, but the device has {_shown(tracker, result)}")

    def _holds(self, tracker: Tracker, result: ReadResult, held: Value, at: float) -> bool:
        """Take over what was read, and say whether it is `held`."""
        if isinstance(result, DeviceError | ConversionError):
            return False
        try:
            tracker.seen(result, epoch_ms(), at)
            return tracker.holds(held)
        except ConversionError:
            return False

    def _fail(self, tracker: Tracker, reason: str, *, slow: bool = False) -> None:
        self._log(tracker, "failed", reason)
        tracker.failed(reason, asyncio.get_running_loop().time(), epoch_ms(), slow=slow)

    def _log(self, tracker: Tracker, write: str, reason: str) -> None:
        """On a change only: retries of a failing write say nothing new."""
        if (tracker.desired.write, tracker.desired.reason) == (write, reason):
            return
        level = logging.INFO if write == "applied" else logging.WARNING
        logger.log(
            level,
            "device %s: desired %s=%r %s%s",
            self._device_id,
            tracker.name,
            tracker.declared.desired.value[:64],
            write,
            f": {reason}" if reason else "",
        )

    def _current(self, tracker: Tracker) -> bool:
        return self._trackers.get(tracker.name) is tracker

    def _still(self, tracker: Tracker, wanted: Value) -> bool:
        """Whether it is still this that is wanted; while the device was asked, something newer may have come."""
        return self._current(tracker) and tracker.wanted is wanted


def _shown(tracker: Tracker, value: Value) -> str:
    try:
        return format_value(value, tracker.property.model.type)
    except ConversionError:
        return repr(value)
