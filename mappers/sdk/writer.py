"""Desired values of one device onto the device: written, read back, retried while they are wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from dmi.errors import ConversionError
from dmi.types import DeviceId
from dmi.values import Value, format_value
from mappers.sdk.alarm import Alarm
from mappers.sdk.calls import Lane
from mappers.sdk.collect import Collector
from mappers.sdk.connection import Connection
from mappers.sdk.context import current_device, detached
from mappers.sdk.driver import AnyDriver, ReadResult
from mappers.sdk.errors import (
    DeviceError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
)
from mappers.sdk.schedule import epoch_ms
from mappers.sdk.stats import DeviceStats
from mappers.sdk.tracking import Tracker

__all__ = ["Writer", "shown"]

logger = logging.getLogger(__name__)

PUSHED_BACK_S: Final = 5.0
"""How long a device that cannot be read has to send a value that was written."""
TELL_S: Final = 0.2
"""What became of one of several writes is told no later than this after it is known, however long the others take."""


class Writer:
    """Writes what is due as soon as it is due, beside the collect cycles: the link lets it in between two requests.

    Has a task only while something is to be written; `on_end` is called with it when it has ended.
    """

    __slots__ = (
        "_alarm",
        "_collector",
        "_connection",
        "_device_id",
        "_driver",
        "_flush",
        "_on_end",
        "_stats",
        "_trackers",
        "task",
    )

    def __init__(
        self,
        driver: AnyDriver,
        device_id: DeviceId,
        connection: Connection,
        trackers: Mapping[str, Tracker],
        collector: Collector,
        stats: DeviceStats,
        flush: Callable[[], None],
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._driver = driver
        self._device_id = device_id
        self._connection = connection
        self._trackers = trackers
        self._collector = collector
        self._stats = stats
        self._flush = flush
        self._on_end = on_end
        self._alarm = Alarm()
        self.task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Something may be due. Called while the device runs only."""
        if self.task is not None:
            self._alarm.ring()
        elif self._next_due() is not None:
            context = detached()  # whoever calls: the task is this device's
            context.run(current_device.set, self._device_id)
            self.task = asyncio.create_task(self._run(), name=f"write {self._device_id}", context=context)
            self.task.add_done_callback(self._on_end)

    def _next_due(self) -> float | None:
        return min((t.write_due for t in self._trackers.values() if t.write_due is not None), default=None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (next_due := self._next_due()) is not None:
                if next_due > loop.time():
                    await self._alarm.wait(next_due)
                    continue
                await self._write_due()
                self._flush()
        finally:
            if self.task is asyncio.current_task():
                self.task = None

    async def _write_due(self) -> None:
        loop, link = asyncio.get_running_loop(), self._connection.link
        told_at = now = loop.time()
        due = [t for t in self._trackers.values() if t.write_due is not None and t.write_due <= now]
        if link is None:
            for tracker in due:
                tracker.waits(self._connection.reason, epoch_ms())
            return
        if to_compare := [t for t in due if t.compare_first]:
            await self._compare(to_compare)
        for tracker in due:
            if self._connection.link is not link:
                return  # the next one starts over
            if self._current(tracker) and tracker.write_due is not None:
                await self._write(tracker)
            if loop.time() - told_at > TELL_S:
                self._flush()
                told_at = loop.time()

    async def _compare(self, trackers: list[Tracker]) -> None:
        """After a connect: what the device has already is not written again."""
        wanted = [(t, t.wanted) for t in trackers]
        at, link = asyncio.get_running_loop().time(), self._connection.link
        lane = self._connection.command
        async with lane.lock:
            results = await self._connection.read([t.property for t in trackers], lane)
        if self._connection.link is not link:
            return
        for tracker, value in wanted:
            tracker.compare_first = False
            if value is not None and self._still(tracker, value):
                self._note(tracker, results[tracker.name], at)
                if self._has(tracker, results[tracker.name], value):
                    tracker.applied(epoch_ms())

    def _has(self, tracker: Tracker, result: ReadResult, wanted: Value) -> bool:
        try:
            return self._holds(tracker, result, self._driver.held_value(tracker.property, wanted))
        except Exception:  # noqa: BLE001  # whatever the driver has against the value, the write that follows says it
            return False

    async def _write(self, tracker: Tracker) -> None:
        wanted = tracker.wanted
        if wanted is None:
            tracker.write_due = None
            return
        connection = self._connection
        link, epoch = connection.link, connection.epoch
        outcome: ConversionError | DeviceError | tuple[Value, ReadResult]
        try:
            outcome = await self.carry_out(tracker, wanted, still=lambda: self._still(tracker, wanted))
        except (ConversionError, DeviceError) as error:
            outcome = error
        if not self._still(tracker, wanted) or connection.epoch != epoch or connection.link not in (link, None):
            return  # something newer is wanted, or wanted of another link, and is still to be written
        match outcome:
            case ConversionError():
                self._refuse(tracker, f"desired: {outcome}")
            case DeviceUnreachable():
                tracker.waits(outcome.problem, epoch_ms())
            case DeviceUnsupported():
                self._refuse(tracker, outcome.problem)
            case DeviceError():
                self._fail(tracker, outcome.problem, slow=isinstance(outcome, DeviceRejected | DeviceProtocolError))
            case held, result:
                self._conclude(tracker, held, result)

    async def carry_out(
        self, tracker: Tracker, value: Value, method: str = "", *, still: Callable[[], bool] | None = None
    ) -> tuple[Value, ReadResult]:
        """Write, or call a method, and read back: what the device should hold, and what it has. The latter is noted.

        Args:
            still: Whether it is still to be done, asked once it is its turn; by default whether the property is the
                one it was.

        Raises:
            ConversionError: The device cannot hold the value; it was not touched.
            DeviceError: Not written, or not known to be.
        """
        loop, connection, name = asyncio.get_running_loop(), self._connection, tracker.name
        lane = connection.command
        async with lane.lock:
            if not (still() if still else self._current(tracker)):
                raise DeviceError(self._device_id, f"property {name} was declared anew meanwhile: nothing was written")
            # Asked for first, so that a value the device cannot hold is refused before the device is touched.
            held = value if method else self._held(tracker, value)
            epoch = connection.epoch
            news = self._collector.watched[name] = asyncio.Event()
            try:
                at = loop.time()
                await connection.write(tracker.property, value, lane, method)
                result = await self._read_back(tracker, held, news, at, lane)
            finally:
                del self._collector.watched[name]
        if connection.epoch == epoch:
            self._note(tracker, result, at)
        return held, result

    def _held(self, tracker: Tracker, value: Value) -> Value:
        try:
            return self._driver.held_value(tracker.property, value)
        except (ConversionError, DeviceError):
            raise
        except Exception as error:  # it is the driver's; anything it raises concerns this property only
            self._stats.driver_errors += 1
            logger.exception("device %s: property %s: the driver failed", self._device_id, tracker.name)
            raise DeviceProtocolError(self._device_id, f"the driver failed: {error!r}") from error

    async def _read_back(
        self, tracker: Tracker, held: Value, news: asyncio.Event, since: float, lane: Lane
    ) -> ReadResult:
        connection, link = self._connection, self._connection.link
        if link is None or link.reads is not None or not self._collector.is_pushed(tracker.name):
            return (await connection.read([tracker.property], lane))[tracker.name]
        try:
            async with asyncio.timeout(PUSHED_BACK_S):
                while connection.link is link and not (tracker.updated_at >= since and self._is(tracker, held)):
                    news.clear()
                    await news.wait()
        except TimeoutError:
            if tracker.updated_at < since:
                return DeviceTimeout(self._device_id, f"the device did not send it within {PUSHED_BACK_S:g} s")
        return held if self._is(tracker, held) else self._sent(tracker)

    def _sent(self, tracker: Tracker) -> ReadResult:
        """What a device that cannot be read sent last, when it is not what was written."""
        if self._connection.link is None:
            return self._connection.unreachable()
        return DeviceProtocolError(self._device_id, f"the device sent {tracker.value or tracker.reason}")

    def _is(self, tracker: Tracker, held: Value) -> bool:
        try:
            return tracker.quality == "good" and tracker.holds(held)
        except ConversionError:
            return False

    def _note(self, tracker: Tracker, result: ReadResult, at: float) -> None:
        """Take over what was read back, if it is a value."""
        if isinstance(result, DeviceError | ConversionError) or tracker.updated_at > at:
            return
        try:
            tracker.seen(result, epoch_ms(), at)
        except ConversionError as error:
            tracker.spoil(str(error))
        else:
            self._collector.sample(tracker)

    def _conclude(self, tracker: Tracker, held: Value, result: ReadResult) -> None:
        """Written; what does the device have now?"""
        match result:
            case DeviceUnreachable():
                tracker.waits(f"written, not read back: {result.problem}", epoch_ms())
            case DeviceUnsupported():  # a broadcast, or a register that cannot be read: there is no more to find out
                self._log(tracker, "applied", f"not verified: {result.problem}")
                tracker.applied(epoch_ms(), f"not verified: {result.problem}")
            case DeviceError():
                self._fail(tracker, f"written, not confirmed: {result.problem}")
            case ConversionError():
                self._fail(tracker, f"written, not confirmed: {result}")
            case _ if self._holds(tracker, result, held):
                self._log(tracker, "applied", "")
                tracker.applied(epoch_ms())
            case _:
                self._fail(tracker, f"written {shown(tracker, held)}, but the device has {shown(tracker, result)}")

    def _holds(self, tracker: Tracker, result: ReadResult, held: Value) -> bool:
        if isinstance(result, DeviceError | ConversionError):
            return False
        try:
            type_ = tracker.property.model.type
            return format_value(result, type_) == format_value(held, type_)
        except ConversionError:
            return False

    def _fail(self, tracker: Tracker, reason: str, *, slow: bool = False) -> None:
        self._log(tracker, "failed", reason)
        tracker.failed(reason, asyncio.get_running_loop().time(), epoch_ms(), slow=slow)

    def _refuse(self, tracker: Tracker, reason: str) -> None:
        self._log(tracker, "failed", reason)
        tracker.refuse(reason, epoch_ms())

    def _log(self, tracker: Tracker, write: str, reason: str) -> None:
        """On a change only: retries of a failing write say nothing new."""
        if tracker.desired.write == write and tracker.desired.reason.endswith(reason):
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


def shown(tracker: Tracker, value: Any) -> str:
    """A value for people: as it would be reported, or as it is when it cannot be."""
    try:
        return format_value(value, tracker.property.model.type)
    except ConversionError:
        return repr(value)[:64]
