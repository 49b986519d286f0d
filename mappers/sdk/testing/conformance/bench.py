"""What the conformance tests stand on: a mapper with the subject's device, and waiting with patience."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import msgspec

from dmi.types import DesiredSpec, Device, Scalar
from dmi.values import format_value
from mappers.sdk.declaration import Declaration, declare
from mappers.sdk.driver import Property, ReadResult
from mappers.sdk.errors import DeviceError, DeviceTimeout
from mappers.sdk.mapper import Mapper
from mappers.sdk.stats import DeviceStats
from mappers.sdk.testing.edgecore import FakeEdgeCore
from mappers.sdk.testing.faults import Faults
from mappers.sdk.testing.harness import running
from mappers.sdk.testing.subject import Subject
from mappers.sdk.testing.watched import WatchedDriver

CYCLE_MS: Final = 50


class Run:
    """A mapper that runs the subject's device, and what its edge core has been told."""

    def __init__(
        self, subject: Subject, core: FakeEdgeCore, mapper: Mapper, watch: WatchedDriver, device: Device
    ) -> None:
        self.subject = subject
        self.mapper = mapper
        self.core = core
        self.watch = watch
        self.id = device.id

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            await self.core.until(condition, self.subject.patience_s)
        except TimeoutError:
            raise AssertionError(f"expected within {self.subject.patience_s} s: {what}; {self._seen()}") from None

    async def until_reads(self, text: str) -> None:
        """Until this is reported of the readable property, and as good."""
        name = self.subject.readable
        await self.until(lambda: self.shows(name, text), f"{name} is {text}, and good")

    async def until_lost(self) -> None:
        """Until the readable property is no longer good, for a reason that is told."""
        name = self.subject.readable
        await self.until(lambda: self.core.quality(self.id, name) in ("stale", "bad"), f"{name} is stale or bad")
        assert self.core.twins[self.id, name].reported.reason, f"no reason is given why {name} is not good"

    async def until_applied(self, text: str) -> None:
        name = self.subject.writable
        await self.until(
            lambda: (
                self.core.write_state(self.id, name) == "applied"
                and self.core.twins[self.id, name].desired.value == text
            ),
            f"desired {name} {text} is applied",
        )

    async def until_read_again(self, times: int = 3) -> None:
        """Until so many more reads have ended."""
        reads = self.watch.reads
        async with patience(self.subject, f"{times} more reads"):
            while self.watch.reads < reads + times:  # noqa: ASYNC110  # nobody announces them
                await asyncio.sleep(0.01)

    def stats(self) -> DeviceStats:
        """What the runtime has counted of the device."""
        runner = self.mapper.fleet.find(self.id)
        assert runner is not None, f"{self.id} does not run"
        return runner.stats

    def shows(self, name: str, text: str) -> bool:
        return self.core.value(self.id, name) == text and self.core.quality(self.id, name) == "good"

    async def change(self, device: Device) -> None:
        """Hand over another declaration."""
        await self.core.apply(device)

    def _seen(self) -> str:
        device = next((d for d in self.core.devices.values() if d.id == self.id), None)
        twins = [
            f"{name}: {twin.reported}, {twin.desired}"
            for (id_, name), twin in self.core.twins.items()
            if id_ == self.id
        ]
        return f"there is state {self.core.state(self.id)!r}, {'; '.join(twins) or 'no twin'} of {device and device.id}"


@asynccontextmanager
async def run_subject(subject: Subject, *others: Device, device: Device | None = None) -> AsyncIterator[Run]:
    """A mapper with the subject's device while the block runs; at its end, nothing may have come out of the driver that
    does not belong, and the runtime must not have had to step in."""
    device = device or prepared(subject.device)
    watch = WatchedDriver(subject.driver)
    core = FakeEdgeCore(devices=[device, *others], models=[subject.model])
    async with core, running(watch, core) as mapper:
        run = Run(subject, core, mapper, watch, device)
        yield run
        stats = run.stats()
    assert not watch.unexpected, f"only device, config and conversion errors may leave a driver: {watch.unexpected}"
    assert watch.most_reading <= 2 * (1 + len(others)), f"{watch.most_reading} reads were under way at once"
    contained = [
        f"{what}: {n}"
        for n, what in (
            (stats.driver_errors, "calls that failed or did not end in time"),
            (stats.leaked_tasks, "tasks left behind a link"),
            (stats.restarts, "restarts"),
        )
        if n
    ]
    assert not contained, f"the runtime had to contain the driver: {', '.join(contained)}"


def prepared(device: Device, *, cycle_ms: int = CYCLE_MS) -> Device:
    """The device as the suite runs it: everything read often and reported, nothing desired."""
    return msgspec.structs.replace(
        device,
        report_state=True,
        properties=tuple(
            msgspec.structs.replace(p, collect_cycle_ms=cycle_ms, report_to_cloud=True, desired=DesiredSpec())
            for p in device.properties
        ),
    )


def with_config(device: Device, config: Mapping[str, Scalar]) -> Device:
    return msgspec.structs.replace(device, protocol_config={**device.protocol_config, **config})


def with_visitor(device: Device, name: str, config: Mapping[str, Scalar]) -> Device:
    return msgspec.structs.replace(
        device,
        properties=tuple(
            msgspec.structs.replace(
                p, visitor=msgspec.structs.replace(p.visitor, config={**p.visitor.config, **config})
            )
            if p.name == name
            else p
            for p in device.properties
        ),
    )


def declared_of(subject: Subject) -> Declaration:
    declared = declare(subject.driver, prepared(subject.device), subject.model)
    assert not declared.errors(), f"the subject's device is refused: {declared.errors()}"
    return declared


def writable_of(subject: Subject) -> str:
    assert subject.writable, "the subject has nothing writable"
    return subject.writable


def faults_of(subject: Subject) -> Faults:
    assert subject.faults is not None, "the subject has no faults"
    return subject.faults


def text_of(result: ReadResult | None, property_: Property[Any]) -> str:
    """A result as it would be reported; an error as its words."""
    if result is None:
        return "nothing"
    return str(result) if isinstance(result, Exception) else format_value(result, property_.model.type)


def is_off(run: Run, device: Device) -> bool:
    return run.core.state(device.id) in ("offline", "unhealthy")


def expect_refusal(errors: Sequence[str], path: str, value: Scalar) -> None:
    assert errors, f"{path}: {value!r} is accepted"
    assert any(e.startswith(f"{path}:") for e in errors), f"{path}: {value!r} is refused without its path: {errors}"


async def read_patiently(subject: Subject, link: Any, properties: Sequence[Property[Any]]) -> Mapping[str, ReadResult]:
    """`read_all`; a reply that comes too late on a busy machine is asked for again."""
    for _ in range(3):
        try:
            results = await read_all(subject, link, properties)
        except DeviceTimeout:
            continue
        if not any(isinstance(result, DeviceTimeout) for result in results.values()):
            return results
    return await read_all(subject, link, properties)


async def read_all(subject: Subject, link: Any, properties: Sequence[Property[Any]]) -> Mapping[str, ReadResult]:
    async with patience(subject, "read_many ends"):
        results: Mapping[str, ReadResult] = await link.read_many(properties)
    missing = {p.name for p in properties} - set(results)
    assert not missing, f"read_many gave no result for {sorted(missing)}"
    return results


async def expect_device_error(call: Awaitable[Mapping[str, ReadResult] | None], what: str) -> None:
    """It raises a `DeviceError`, or gives one for every property."""
    try:
        results = await call
    except DeviceError:
        return
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} raised {error!r}, which is no DeviceError") from error
    good = [n for n, r in (results or {}).items() if not isinstance(r, DeviceError)]
    assert results, f"{what} succeeded"
    assert not good, f"{what} gave values of {good}"


@asynccontextmanager
async def patience(subject: Subject, what: str) -> AsyncIterator[None]:
    deadline = asyncio.timeout(subject.patience_s)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise AssertionError(f"expected within {subject.patience_s} s: {what}") from None


def open_link(subject: Subject, declared: Declaration) -> AbstractAsyncContextManager[Any]:
    """The driver's own link, of which the tests use what the subject says it can."""
    return subject.driver.connect(subject.device.id, declared.config)
