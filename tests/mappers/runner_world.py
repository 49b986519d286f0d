"""One device runner on its own: its reports and samples recorded, its driver made of whatever link a test brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct

from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, DeviceState
from mappers.sdk import Driver, Link
from mappers.sdk.device import DeviceRunner
from mappers.sdk.samples import NoSamples, Sample
from tests.mappers.mapper_world import MODEL, eventually

ID = DeviceId("plant/m1")


class AnyConfig(Struct, frozen=True):
    host: str = "here"


class AnyVisitor(Struct, frozen=True):
    cell: str = ""


class LinkDriver(Driver[AnyConfig, AnyVisitor]):
    """Yields what `make` returns; `opened` and `closed` count."""

    protocol = "any"
    protocol_config = AnyConfig
    visitor_config = AnyVisitor

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make
        self.opened = 0
        self.closed = 0

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
        self.opened += 1
        try:
            yield self._make()  # type: ignore[misc]  # what a careless driver yields
        finally:
            self.closed += 1


class Recorder(NoSamples):
    """Takes reports and samples of one device."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Twin]] = []
        self.news: list[bool] = []
        self.states: list[tuple[DeviceState, str]] = []
        self.twins: dict[str, Twin] = {}
        self.samples: list[Sample] = []
        self.problems: tuple[str, ...] = ()
        self.forgotten: list[DeviceId] = []

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin], *, news: bool = True) -> None:
        self.reports.append({t.property_name: t for t in twins})
        self.news.append(news)
        self.twins.update(self.reports[-1])

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None:
        self.states.append((state, reason))

    def declare(self, device: Device) -> Sequence[str]:
        return self.problems

    def forget(self, device: DeviceId) -> None:
        self.forgotten.append(device)

    def put(self, sample: Sample) -> None:
        self.samples.append(sample)

    def value(self, name: str) -> str:
        return self.twins[name].reported.value if name in self.twins else ""

    def quality(self, name: str) -> str:
        return self.twins[name].reported.quality if name in self.twins else ""

    def write(self, name: str) -> str:
        return self.twins[name].desired.write if name in self.twins else ""

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        await eventually(condition, timeout_s)


def any_device(*properties: DeviceProperty, **config: str) -> Device:
    return Device("plant", "m1", model="meter", protocol="any", protocol_config=dict(config), properties=properties)


@asynccontextmanager
async def running_device(
    driver: Driver[AnyConfig, AnyVisitor],
    device: Device,
    recorder: Recorder,
    model: DeviceModel = MODEL,
) -> AsyncIterator[DeviceRunner]:
    """A runner that runs while the block does."""
    runner = DeviceRunner(driver, device, model, recorder, recorder)
    task = asyncio.create_task(runner.run(), name=f"device {runner.id}")
    try:
        yield runner
    finally:
        runner.close()
        task.cancel()
        await asyncio.wait([task], timeout=5)
