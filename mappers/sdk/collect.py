"""What a device has, collected: read in the cycle of each property, or pushed by the device itself.

Both go the same way: noted on the property's tracker, handed to the data plane, reported. The runtime never has two
reads of one device under way, except the one that reads a write back (`writer.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import copy_context
from typing import Any, Final

from dmi.errors import ConversionError
from dmi.types import DeviceId
from mappers.sdk.alarm import Alarm
from mappers.sdk.connection import Connection, OpenLink
from mappers.sdk.context import current_link
from mappers.sdk.driver import Property, ReadResult
from mappers.sdk.errors import DeviceError, DeviceRejected, DeviceUnreachable, DeviceUnsupported
from mappers.sdk.samples import Sample, Samples
from mappers.sdk.schedule import Schedule, epoch_ms, phase_of
from mappers.sdk.stats import DeviceStats
from mappers.sdk.tracking import Tracker

__all__ = ["Collector"]

logger = logging.getLogger(__name__)

AGAIN_S: Final = 30.0
"""A value of a longer cycle that was missed is read again after this time."""
_PLANS: Final = 64


class Collector:
    """Reads one device as its cycles say. `on_news` is called after each read, and once for a burst of pushes; its
    argument says whether a property turned well or ill, so that the device's state may have changed."""

    __slots__ = (
        "_alarm",
        "_connection",
        "_device_id",
        "_news_due",
        "_on_news",
        "_plans",
        "_pushed",
        "_samples",
        "_schedule",
        "_stats",
        "_subscribe_due",
        "_trackers",
        "_unknown",
        "watched",
    )

    def __init__(
        self,
        device_id: DeviceId,
        connection: Connection,
        trackers: Mapping[str, Tracker],
        stats: DeviceStats,
        samples: Samples,
        on_news: Callable[[bool], None],
    ) -> None:
        self._device_id = device_id
        self._connection = connection
        self._trackers = trackers
        self._stats = stats
        self._samples = samples
        self._on_news = on_news
        self._schedule = Schedule(phase_of(device_id))
        self._alarm = Alarm()
        self._plans: dict[tuple[str, ...], tuple[Property[Any], ...]] = {}
        self._pushed: frozenset[str] = frozenset()
        """Sent by the device: not read, as long as this link is open."""
        self._subscribe_due = False
        self._news_due: bool | None = None
        self._unknown: set[str] = set()
        self.watched: dict[str, asyncio.Event] = {}
        """Properties for whose next value somebody waits."""

    # what the runner says

    def redeclare(self, fresh: Collection[str], *, gone: bool) -> None:
        """The trackers are others, or have other cycles. `fresh`: properties that came or moved; `gone`: some went."""
        now = asyncio.get_running_loop().time()
        self._plans.clear()
        self._retime(now)
        if (link := self._connection.link) is not None:
            self._subscribe_due |= (gone or bool(fresh)) and link.subscribes is not None
            self._schedule.expedite(now, fresh)
        self._alarm.ring()

    def link_changed(self, link: OpenLink | None) -> None:
        """There is a new link, or none any more."""
        now = asyncio.get_running_loop().time()
        self._subscribe_due = link is not None and link.subscribes is not None
        self._set_pushed(frozenset(), now)
        if link is not None:
            self._schedule.expedite(now)
        else:
            self._try_again(now, self._trackers.values())
        for waiter in self.watched.values():
            waiter.set()
        self._alarm.ring()

    def _try_again(self, now: float, missed: Iterable[Tracker]) -> None:
        """A daily value is not to be missing for a day because of one frame, nor good for a day on a lost link."""
        self._schedule.expedite(now + AGAIN_S, [t.name for t in missed if t.cycle_s > AGAIN_S])

    def is_pushed(self, name: str) -> bool:
        return name in self._pushed

    def _set_pushed(self, names: frozenset[str], now: float) -> None:
        if names != self._pushed:
            self._pushed = names
            self._plans.clear()
            self._retime(now)

    def _retime(self, now: float) -> None:
        """A pushed property comes up when it is to be confirmed, the others when they are to be read."""
        pushed = self._pushed
        self._schedule.retime({n: t.confirm_s if n in pushed else t.cycle_s for n, t in self._trackers.items()}, now)

    # cycles

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._subscribe_due:
                await self._subscribe()
            due = self._schedule.take_due(loop.time())
            self._stats.overruns = self._schedule.overruns
            if due:
                await self._collect(due)
            await self._alarm.wait(self._schedule.next_due())

    async def _collect(self, due: tuple[str, ...]) -> None:
        now = asyncio.get_running_loop().time()
        for name in self._pushed.intersection(due):
            tracker = self._trackers[name]
            known = tracker.quality == "good" and tracker.collected_ms
            tracker.confirming |= bool(known) and tracker.confirm_due(now)
        properties = self._plans.get(due)
        if properties is None:
            if len(self._plans) >= _PLANS:  # many cycles that are no multiples of each other meet in many ways
                self._plans.clear()
            properties = tuple(self._trackers[name].property for name in due if name not in self._pushed)
            self._plans[due] = properties
        if properties:
            await self.read(properties)
        else:
            self._on_news(False)

    async def read(self, properties: tuple[Property[Any], ...]) -> Mapping[str, ReadResult]:
        """Read these once no other read is under way, and take note."""
        loop, connection, trackers = asyncio.get_running_loop(), self._connection, self._trackers
        lane = connection.cycle
        async with lane.lock:
            started, epoch = loop.time(), connection.epoch
            results = await connection.read(properties, lane)
        if epoch != connection.epoch:
            return results
        now, now_ms, good, turned = loop.time(), epoch_ms(), 0, False
        missed: list[Tracker] = []
        for property_ in properties:
            tracker = trackers.get(property_.name)
            if tracker is None or tracker.property is not property_ or tracker.updated_at > started:
                continue  # removed or changed meanwhile, or a write has read it back since
            turned |= tracker.quality != "good"
            if self._take(tracker, results[property_.name], now_ms, started):
                good += 1
                tracker.confirming |= tracker.confirm_due(now)
            else:
                turned = True
                if not tracker.rejected:
                    missed.append(tracker)
        if missed:
            self._try_again(now, missed)
        self._stats.reads += 1
        self._stats.read_failures += not good
        self._stats.read_latency.observe(now - started)
        self._on_news(turned)
        return results

    def _take(self, tracker: Tracker, result: ReadResult, now_ms: int, at: float) -> bool:
        """Note one result; True for a good value."""
        was_rejected = tracker.rejected
        try:
            if isinstance(result, ConversionError | DeviceUnsupported):
                raise ConversionError(result.problem if isinstance(result, DeviceUnsupported) else str(result))
            if isinstance(result, DeviceError):
                tracker.miss(result.problem, rejected=isinstance(result, DeviceRejected))
            else:
                tracker.seen(result, now_ms, at)
        except ConversionError as error:
            tracker.spoil(str(error))
        if tracker.rejected and not was_rejected:
            logger.warning("device %s: property %s: %s", self._device_id, tracker.name, tracker.reason)
        if tracker.quality != "good":
            self._stats.values_bad += 1
            return False
        self._stats.values_good += 1
        self.sample(tracker)
        return True

    def sample(self, tracker: Tracker) -> None:
        """Hand a good value to the data plane."""
        if tracker.sampled:
            self._samples.put(
                Sample(self._device_id, tracker.name, tracker.value, tracker.desired.type, tracker.collected_ms)
            )

    # pushes

    async def _subscribe(self) -> None:
        self._subscribe_due = False
        connection, link = self._connection, self._connection.link
        if link is None:
            return
        properties = tuple(t.property for t in self._trackers.values())
        names: frozenset[str] = frozenset()
        try:
            async with connection.cycle.lock:
                names = frozenset(await connection.subscribe(properties, self._push))
        except DeviceError as error:
            if connection.link is link:
                logger.warning("device %s: cannot subscribe: %s", self._device_id, error.problem)
                if link.reads is None and not isinstance(error, DeviceUnsupported):
                    connection.lose(error.problem)  # of no use without; the next connect tries again
        if connection.link is link:
            self._set_pushed(names & self._trackers.keys(), asyncio.get_running_loop().time())

    def _push(self, link: OpenLink, values: Mapping[str, ReadResult]) -> None:
        """What a device sent by itself. The tasks of the driver's link call this; what comes of it is not theirs."""
        if link is self._connection.link:
            context = copy_context()
            context.run(current_link.set, None)
            context.run(self._accept, link, values)

    def _accept(self, link: OpenLink, values: Mapping[str, ReadResult]) -> None:
        """Everything in the values is the driver's: garbage is counted and left out."""
        now, now_ms = asyncio.get_running_loop().time(), epoch_ms()
        turned, lost = False, None
        try:
            for name, result in values.items():
                if isinstance(result, DeviceUnreachable):
                    lost = result
                elif tracker := self._trackers.get(name):
                    turned |= tracker.quality != "good"
                    turned |= not self._take(tracker, result, now_ms, now)
                    if waiter := self.watched.get(name):
                        waiter.set()
                else:
                    self._unknown_push(name)
        except Exception:
            self._stats.driver_errors += 1
            logger.exception("device %s: the driver pushed what is not a mapping of values", self._device_id)
        self._announce(turned)
        if lost is not None:
            self._connection.lose(lost.problem)
        elif values:
            self._connection.confirm(link)

    def _unknown_push(self, name: object) -> None:
        self._stats.driver_errors += 1
        told = repr(name)[:64]
        if told not in self._unknown and len(self._unknown) < _PLANS:
            self._unknown.add(told)
            logger.warning("device %s: the driver pushed %s, which is no property of it", self._device_id, told)

    def _announce(self, turned: bool) -> None:
        """Once per turn of the event loop, however many pushes came."""
        if self._news_due is None:
            asyncio.get_running_loop().call_soon(self._announce_now)
        self._news_due = turned or bool(self._news_due)

    def _announce_now(self) -> None:
        turned, self._news_due = bool(self._news_due), None
        self._on_news(turned)
