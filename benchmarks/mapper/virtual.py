"""1,000 virtual devices × 10 properties at 1 s in one mapper process, started as an operator starts it: what it costs,
and that no cycle is left out and every value of every second is reported. The edge core that takes the reports is this
process; the mapper has the other core.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import cpu_seconds, figure, rss_mib
from benchmarks.mapper.process import mapper_process, metric_sum
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, ModelProperty, Visitor
from mappers.sdk.testing import FakeEdgeCore

DEVICES = 1000
PROPERTIES = 10
SETTLE_S = 10.0


class _Counting(FakeEdgeCore):
    """Keeps nothing but counts: a list of 10,000 twins a second would be measured too."""

    def __init__(self, socket_path: Path, devices: Sequence[Device], models: Sequence[DeviceModel]) -> None:
        super().__init__(socket_path, devices=devices, models=models)
        self.calls = 0
        self.values = 0
        self.devices_heard: set[DeviceId] = set()
        self.all_heard = asyncio.Event()

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        self.calls += 1
        self.values += len(twins)
        self.devices_heard.add(device)
        if len(self.devices_heard) == DEVICES:
            self.all_heard.set()


def run(seconds: float) -> None:
    for changing in (PROPERTIES, PROPERTIES // 10):
        asyncio.run(_measure(changing, seconds))


def _model(changing: int) -> DeviceModel:
    properties = tuple(
        ModelProperty(
            f"p{index}",
            "FLOAT",
            access_mode="ReadOnly",
            visitor=Visitor("virtual", {"waveform": "sine" if index < changing else "constant"}),
        )
        for index in range(PROPERTIES)
    )
    return DeviceModel("default", "bench", properties, protocol="virtual")


def _device(model: DeviceModel, number: int) -> Device:
    properties = tuple(
        DeviceProperty(
            p.name, visitor=p.visitor or Visitor(), collect_cycle_ms=1000, report_cycle_ms=60_000, report_to_cloud=True
        )
        for p in model.properties
    )
    return Device("default", f"virtual-{number}", model.name, protocol="virtual", properties=properties)


async def _measure(changing: int, seconds: float) -> None:
    model = _model(changing)
    devices = [_device(model, number) for number in range(DEVICES)]
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _Counting(Path(folder) / "dmi.sock", devices, [model]) as core,
            mapper_process(Path(folder), ["virtual"], core.socket_path) as mapper,
        ):
            async with asyncio.timeout(60):
                await core.all_heard.wait()
            await asyncio.sleep(SETTLE_S)
            before = await metric_sum(mapper, "kubetwin_mapper_overruns_total")
            values, cpu, started = core.values, cpu_seconds(mapper.pid), time.monotonic()
            await asyncio.sleep(seconds)
            passed = time.monotonic() - started
            used, values = cpu_seconds(mapper.pid) - cpu, core.values - values
            rss = rss_mib(mapper.pid)
            after = await metric_sum(mapper, "kubetwin_mapper_overruns_total")
    name = f"mapper.virtual_{DEVICES}x{PROPERTIES}.{changing}_changing"
    figure(f"{name}.cpu", 100 * used / passed, "% of a core")
    figure(f"{name}.rss", rss, "MiB")
    figure(f"{name}.overruns", after - before, "cycles")
    figure(f"{name}.values_reported", values / passed, "1/s")
