"""One device's runtime: its link, its collect cycles, its desired values and its reports, all owned by one runner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from dmi.twins import Reported, Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState
from mappers.sdk.collect import Collector
from mappers.sdk.connection import Connection, OpenLink
from mappers.sdk.context import current_device
from mappers.sdk.declaration import Declaration, declare
from mappers.sdk.driver import AnyDriver
from mappers.sdk.keys import PLAIN_REPORTS
from mappers.sdk.manual import Manual
from mappers.sdk.report import Reporter, Reports
from mappers.sdk.samples import NoSamples, Samples
from mappers.sdk.schedule import backoff, cycle_s, epoch_ms
from mappers.sdk.stats import DeviceStats
from mappers.sdk.tracking import Tracker, broken_twin
from mappers.sdk.writer import Writer

__all__ = ["DeviceRunner", "Reports"]

logger = logging.getLogger(__name__)

RESTART_S: Final = (1.0, 60.0)
END_DEADLINE_S: Final = 1.1
"""For the parts of a device to end; a little more than the driver has to close its link."""


class DeviceRunner:
    """Runs one device from its first declaration until cancelled.

    Two tasks, and a third while something is to be written. A failure of one of them, or a call of the driver that does
    not even end on being cancelled, starts the device over; what was read and is wanted stays.
    """

    __slots__ = (
        "_collector",
        "_connection",
        "_declaration",
        "_declared",
        "_driver",
        "_known_link",
        "_manual",
        "_remarks",
        "_reporter",
        "_samples",
        "_trackers",
        "_trouble",
        "_warned",
        "_writer",
        "id",
        "stats",
    )

    def __init__(
        self,
        driver: AnyDriver,
        device: Device,
        model: DeviceModel | None,
        reports: Reports,
        samples: Samples | None = None,
    ) -> None:
        self.id: DeviceId = device.id
        self.stats = DeviceStats()
        self._driver = driver
        self._samples: Samples = samples or NoSamples()
        self._trackers: dict[str, Tracker] = {}
        self._connection = Connection(driver, self.id, self.stats, self._link_changed)
        self._reporter = Reporter(self.id, self._connection, self._trackers, reports)
        self._collector = Collector(self.id, self._connection, self._trackers, self.stats, self._samples, self._news)
        self._writer = Writer(
            driver,
            self.id,
            self._connection,
            self._trackers,
            self._collector,
            self.stats,
            self._reporter.flush,
            self._part_ended,
        )
        self._manual = Manual(
            self.id,
            self._connection,
            self._trackers,
            self._collector,
            self._writer,
            self._reporter.flush,
            lambda: self._declaration.problems,
        )
        self._connection.on_stuck = self._stuck
        self._known_link: OpenLink | None = None
        self._trouble: asyncio.Future[str] | None = None
        """While the device runs: why it has to start over."""
        self._warned: set[str] = set()
        self._remarks: Sequence[str] = ()
        self._declared = False
        self._declaration = Declaration(device)
        self.update(device, model)

    @property
    def device(self) -> Device:
        return self._declaration.device

    @property
    def model(self) -> DeviceModel | None:
        return self._declaration.model

    @property
    def state(self) -> tuple[DeviceState, str]:
        """What the device is, and why if it is not well. `unknown` before its first answer or failure."""
        return self._reporter.state.state, self._reporter.state.reason

    def twins(self) -> list[Twin]:
        return [*(t.twin() for t in self._trackers.values()), *self._reporter.broken.values()]

    # on demand

    async def read_property(self, name: str) -> Twin:
        """Read the device now. The result is noted and reported like a cycle's.

        Raises:
            UnknownProperty: The device has none of that name.
            ConversionError: What the device has is no value of the declared type and range.
            DeviceError: It cannot be read.
        """
        return await self._manual.read(name)

    async def write_property(self, name: str, text: str) -> Twin:
        """Write and read back. The desired value is not touched.

        Raises:
            UnknownProperty: The device has none of that name.
            ConversionError: Not a value of the declared type and range, or the property is ReadOnly.
            DeviceError: Not written, or not known to be.
        """
        return await self._manual.write(name, text)

    async def call_method(self, method: str, name: str, text: str) -> Twin:
        """Call a method of the device with one of its properties; what the device has then may be another value.

        Raises:
            UnknownProperty: The device has no such method, or the method no such property.
            ConversionError: Not a value of the declared type and range.
            DeviceError: Not done, or not known to be.
        """
        return await self._manual.call(self.device, method, name, text)

    # declarations

    def update(self, device: Device, model: DeviceModel | None) -> None:
        """Take over a declaration: what did not change goes on undisturbed."""
        if device == self.device and model == self.model and self._declared:
            return
        self._declared = True
        declaration = self._declaration = declare(self._driver, device, model, self._declaration)
        self._remarks = (*declaration.warnings, *self._samples.declare(device))
        lines = [*declaration.errors(), *self._remarks]
        for line in lines:
            if line not in self._warned:
                logger.warning("device %s: %s", self.id, line)
        self._warned = set(lines)
        now = asyncio.get_running_loop().time()
        fresh, gone = self._update_trackers(declaration, now)
        self._connection.declare(declaration.config)
        self._collector.redeclare(fresh, gone=gone)
        self._reporter.state.repeat_every(cycle_s(device.state_report_cycle_ms) if device.report_state else None)
        self._refresh_state()
        self._reporter.report_broken(declaration)
        writing = any(t.write_due is not None and t.write_due <= now for t in self._trackers.values())
        if self._connection.link is None or not writing:
            self._reporter.flush()  # otherwise the write, a moment from now, says more than that it is pending
        self._wake_writer()

    def _update_trackers(self, declaration: Declaration, now: float) -> tuple[list[str], bool]:
        """The properties that came or moved to another register, and whether any went."""
        now_ms = epoch_ms()
        declared = {p.name: p for p in reversed(declaration.device.properties)}
        last = {t.property_name: t.reported for t in self.twins()}
        gone = [name for name in self._trackers if name not in declaration.properties]
        for name in gone:
            del self._trackers[name]
        fresh: list[str] = []
        models = {p.name: p for p in declaration.model.properties} if declaration.model else {}
        self._reporter.broken = {
            name: broken_twin(declared[name], models.get(name), problem, last.get(name, Reported()), now_ms)
            for name, problem in declaration.problems.items()
        }
        for name, property_ in declaration.properties.items():
            tracker = self._trackers.get(name)
            keys = declaration.keys.get(name, PLAIN_REPORTS)
            if tracker is None or tracker.property is not property_:
                fresh.append(name)
                tracker = self._trackers[name] = Tracker(declared[name], property_, keys)
                if name in last and last[name].type == tracker.desired.type:
                    tracker.inherit(last[name])
                tracker.want(now, now_ms)
                tracker.compare_first = tracker.write_due is not None
            else:
                newly_reported = declared[name].report_to_cloud and not tracker.declared.report_to_cloud
                tracker.redeclare(declared[name], keys)
                tracker.want(now, now_ms)
                tracker.dirty |= newly_reported and tracker.has_report
        return fresh, bool(gone)

    # running

    async def run(self) -> None:
        """Run until cancelled. A failure of the runtime itself is logged and starts the device over, with back-off."""
        current_device.set(self.id)
        loop, delays = asyncio.get_running_loop(), backoff(*RESTART_S)
        while True:
            started = loop.time()
            self._trouble = loop.create_future()
            parts = [
                asyncio.create_task(self._connection.run(), name=f"connect {self.id}"),
                asyncio.create_task(self._collector.run(), name=f"collect {self.id}"),
            ]
            for part in parts:
                part.add_done_callback(self._part_ended)
            self._wake_writer()
            try:
                trouble = await self._trouble
            finally:
                self._trouble = None
                await self._end(parts)
            if loop.time() - started > RESTART_S[1]:
                delays = backoff(*RESTART_S)
            self.stats.restarts += 1
            pause_s = next(delays)
            self._connection.fail(f"{trouble}; it is started again")
            logger.error("device %s: %s; starting the device again in %.1f s", self.id, trouble, pause_s)
            await asyncio.sleep(pause_s)

    async def _end(self, parts: list[asyncio.Task[None]]) -> None:
        """End the device's tasks; one that does not end is given up, so that the next start does not wait for it."""
        if self._writer.task is not None:
            parts.append(self._writer.task)
        for part in parts:
            part.cancel()
        _, late = await asyncio.wait(parts, timeout=END_DEADLINE_S)
        if late:
            self.stats.leaked_tasks += len(late)
            names = ", ".join(sorted(t.get_name() for t in late))
            logger.error("device %s: the driver did not let go of: %s", self.id, names)
        self._writer.task = None
        self._connection.reset()

    def close(self) -> None:
        """Stop what is not a task. Call it when `run` is cancelled."""
        self._reporter.close()
        self._connection.close()

    def _part_ended(self, part: asyncio.Task[Any]) -> None:
        if part.cancelled() or (error := part.exception()) is None:
            return
        logger.error("device %s: the runtime failed", self.id, exc_info=error)
        self._in_trouble("the runtime failed")

    def _stuck(self) -> None:
        self._in_trouble("a call of the driver does not end")

    def _in_trouble(self, problem: str) -> None:
        if self._trouble is not None and not self._trouble.done():
            self._trouble.set_result(problem)

    def _wake_writer(self) -> None:
        if self._trouble is not None:
            self._writer.wake()

    # link, state and reports

    def _link_changed(self) -> None:
        now, link = asyncio.get_running_loop().time(), self._connection.link
        if link is not self._known_link:
            self._known_link = link
            self._collector.link_changed(link)
            if link is not None:
                for tracker in self._trackers.values():
                    tracker.recheck(now)
                self._wake_writer()
        if problem := self._connection.config_problem:
            for tracker in self._trackers.values():
                tracker.spoil(problem)
            self._reporter.flush()
        self._refresh_state()

    def _news(self, turned: bool) -> None:
        if turned:
            self._refresh_state()
        self._reporter.flush()

    def _refresh_state(self) -> None:
        self._reporter.refresh_state(self._declaration, self._remarks)

    def report_all(self) -> None:
        """Report everything current, as after a registration."""
        self._reporter.report_all(self._declaration)
