"""One device's runtime: its link, its collect cycles, its desired values and its reports, all owned by one runner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol

from dmi.errors import ConversionError
from dmi.twins import Reported, Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState
from mappers.sdk.connection import Connection
from mappers.sdk.declaration import Declaration, declare
from mappers.sdk.driver import AnyDriver, Property, ReadResult
from mappers.sdk.errors import DeviceError, DeviceRejected
from mappers.sdk.schedule import Schedule, cycle_s, epoch_ms, phase_of
from mappers.sdk.state import StateReporter
from mappers.sdk.tracking import Tracker, broken_twin
from mappers.sdk.writer import Writer

__all__ = ["DeviceRunner", "Reports"]

logger = logging.getLogger(__name__)

_IDLE_S: Final = 3600.0
_PLANS: Final = 64


class Reports(Protocol):
    """Where a device's reports go; never waits."""

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin]) -> None: ...

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None: ...


class DeviceRunner:
    """Runs one device from its first declaration until cancelled."""

    def __init__(self, driver: AnyDriver, device: Device, model: DeviceModel | None, reports: Reports) -> None:
        self.id = device.id
        self._driver = driver
        self._reports = reports
        self._trackers: dict[str, Tracker] = {}
        self._schedule = Schedule(phase_of(device.id))
        self._cycle_wake = asyncio.Event()
        self._plans: dict[tuple[str, ...], tuple[Property[Any], ...]] = {}
        self._state = StateReporter(self.id, lambda state, reason: reports.put_state(self.id, state, reason))
        self._connection = Connection(driver, self.id, self._link_changed)
        self._writer = Writer(driver, self.id, self._connection, self._trackers, self.flush)
        self._known_link: object = None
        self._broken: dict[str, Twin] = {}
        """Properties that cannot run as declared: bad, with the reason and the last value there was."""
        self._warned: set[str] = set()
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
    def overruns(self) -> int:
        """Collect cycles left out because the one before took too long."""
        return self._schedule.overruns

    def twins(self) -> list[Twin]:
        return [*(t.twin() for t in self._trackers.values()), *self._broken.values()]

    def update(self, device: Device, model: DeviceModel | None) -> None:
        """Take over a declaration: what did not change goes on undisturbed."""
        if device == self.device and model == self.model and self._declared:
            now = asyncio.get_running_loop().time()
            for tracker in self._trackers.values():
                tracker.want(now, epoch_ms())
            self._writer.wake()
            return
        self._declared = True
        declaration = declare(self._driver, device, model, self._declaration)
        self._declaration = declaration
        for line in [*declaration.errors(), *declaration.warnings]:
            if line not in self._warned:
                self._warned.add(line)
                logger.warning("device %s: %s", self.id, line)
        self._warned &= {*declaration.errors(), *declaration.warnings}
        self._update_trackers(declaration)
        self._connection.declare(declaration.config)
        self._state.repeat_every(cycle_s(device.state_report_cycle_ms) if device.report_state else None)
        self._refresh_state()
        self._report_broken()
        if self._connection.link is None or all(t.write_due is None for t in self._trackers.values()):
            self.flush()  # otherwise the write, a moment from now, says more than that it is pending
        self._writer.wake()
        self._cycle_wake.set()

    def _update_trackers(self, declaration: Declaration) -> None:
        now, now_ms = asyncio.get_running_loop().time(), epoch_ms()
        declared = {p.name: p for p in reversed(declaration.device.properties)}
        last = {t.property_name: t.reported for t in self.twins()}
        for name in [n for n in self._trackers if n not in declaration.properties]:
            del self._trackers[name]
        models = {p.name: p for p in declaration.model.properties} if declaration.model else {}
        self._broken = {
            name: broken_twin(declared[name], models.get(name), problem, last.get(name, Reported()), now_ms)
            for name, problem in declaration.problems.items()
        }
        for name, property_ in declaration.properties.items():
            tracker = self._trackers.get(name)
            if tracker is None or tracker.property is not property_:
                replaced = Tracker(declared[name], property_)
                if name in last and last[name].type == replaced.reported.type:
                    replaced.reported = last[name]  # the last value stays until the new register is read
                replaced.want(now, now_ms)
                replaced.compare_first = replaced.write_due is not None
                self._trackers[name] = replaced
            else:
                newly_reported = declared[name].report_to_cloud and not tracker.declared.report_to_cloud
                tracker.declared = declared[name]
                tracker.want(now, now_ms)
                tracker.dirty |= newly_reported and tracker.has_report
        self._plans.clear()
        known = set(self._schedule.cycles)
        self._schedule.retime({n: t.cycle_s for n, t in self._trackers.items()}, now)
        if self._connection.link is not None:
            self._schedule.expedite(now, [n for n, t in self._trackers.items() if n not in known or not t.updated_at])

    async def run(self) -> None:
        """Run until cancelled. A failure of the runtime itself is logged and starts the device over."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._connection.run(), name=f"connect {self.id}")
                    tasks.create_task(self._collect(), name=f"collect {self.id}")
                    tasks.create_task(self._writer.run(), name=f"write {self.id}")
            except* Exception:
                logger.exception("device %s: the runtime failed; starting the device again", self.id)
            await asyncio.sleep(5.0)

    def close(self) -> None:
        """Stop what is not a task. Call it when `run` is cancelled."""
        self._state.close()

    # collect cycles

    async def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = self._schedule.take_due(loop.time())
            if due:
                await self._collect_once(due)
            next_due = self._schedule.next_due()
            try:
                async with asyncio.timeout(_IDLE_S if next_due is None else max(next_due - loop.time(), 0)):
                    await self._cycle_wake.wait()
            except TimeoutError:
                pass
            self._cycle_wake.clear()

    async def _collect_once(self, due: tuple[str, ...]) -> None:
        properties = self._plans.get(due)
        if properties is None:
            if len(self._plans) >= _PLANS:  # many cycles that are no multiples of each other meet in many ways
                self._plans.clear()
            properties = self._plans[due] = tuple(self._trackers[name].property for name in due)
        started, epoch = asyncio.get_running_loop().time(), self._connection.epoch
        results = await self._connection.read(properties)
        if epoch != self._connection.epoch:
            return
        now_ms = epoch_ms()
        confirmed: set[str] = set()
        for property_ in properties:
            tracker = self._trackers.get(property_.name)
            if tracker is None or tracker.property is not property_ or tracker.updated_at > started:
                continue  # removed or changed meanwhile, or a write has read it back since
            if self._take(tracker, results[property_.name], now_ms, started):
                confirmed.add(property_.name)
        self._refresh_state()
        self.flush(confirmed)

    def _take(self, tracker: Tracker, result: ReadResult, now_ms: int, started: float) -> bool:
        """Note one result; True for a good value."""
        was_rejected = tracker.rejected
        try:
            if isinstance(result, ConversionError):
                raise result
            if isinstance(result, DeviceError):
                tracker.miss(result.problem, rejected=isinstance(result, DeviceRejected))
            else:
                tracker.seen(result, now_ms, started)
        except ConversionError as error:
            tracker.spoil(str(error))
        if tracker.rejected and not was_rejected:
            logger.warning("device %s: property %s: %s", self.id, tracker.name, tracker.reported.reason)
        return tracker.reported.quality == "good"

    # link, state and reports

    def _link_changed(self) -> None:
        now, link = asyncio.get_running_loop().time(), self._connection.link
        if link is not None and link is not self._known_link:
            self._schedule.expedite(now)
            self._cycle_wake.set()
            for tracker in self._trackers.values():
                tracker.recheck(now)
            self._writer.wake()
        self._known_link = link
        if problem := self._connection.config_problem:
            for tracker in self._trackers.values():
                tracker.spoil(problem)
            self.flush()
        self._refresh_state()

    def _refresh_state(self) -> None:
        connection, declaration = self._connection, self._declaration
        if problem := declaration.problem or connection.config_problem:
            self._state.set("unhealthy", problem)
        elif connection.link is None:
            if connection.reason:
                self._state.set("unhealthy" if connection.driver_failed else "offline", connection.reason)
        elif connection.answered or not self._trackers:
            rejected = (
                f"property {t.name}: {t.reported.reason}"
                for t in self._trackers.values()
                if t.rejected and t.reported.quality == "bad"
            )
            reason = declaration.reason() or next(rejected, "")
            self._state.set("unhealthy" if reason else "online", reason)

    def _report_broken(self) -> None:
        shown = {p.name for p in self.device.properties if p.report_to_cloud}
        if twins := [t for name, t in self._broken.items() if name in shown]:
            self._reports.put_twins(self.id, twins)

    def report_all(self) -> None:
        """Report everything current, as after a registration."""
        for tracker in self._trackers.values():
            tracker.dirty |= tracker.has_report
        self._report_broken()
        self.flush()
        self._state.report()

    def flush(self, confirmed: Collection[str] = ()) -> None:
        """Report what changed, and of the `confirmed` what has not been reported for long."""
        now = asyncio.get_running_loop().time()
        twins: list[Twin] = []
        for tracker in self._trackers.values():
            if not tracker.declared.report_to_cloud:
                tracker.dirty = False
            elif tracker.dirty or (tracker.name in confirmed and tracker.confirm_due(now)):
                tracker.dirty, tracker.sent_at = False, now
                twins.append(tracker.twin())
        if twins:
            self._reports.put_twins(self.id, twins)
