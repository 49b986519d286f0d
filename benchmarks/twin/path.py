"""From a mapper's report to a watch of the API on an idle system: every 200 ms one value of one of ten devices."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.figures import figure, percentile
from benchmarks.twin.load import Api, StatusWatch, device_name, manifests, reporting
from dmi import DeviceId
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, running_demo

DEVICES = 10
EVERY_S = 0.2
SETTLE_S = 5.0


def run(seconds: float) -> None:
    with running_demo() as demo, tempfile.TemporaryDirectory(prefix="kt-") as folder:
        demo.kubectl("delete", "devices", "--all")
        demo.kill("mapper-modbus")
        demo.kill("simulator")
        Api(Path(demo.summary["kubeconfig"])).create(manifests(DEVICES, 1, NODE))
        asyncio.run(_measure(demo, Path(folder), seconds))


async def _measure(demo: Demo, folder: Path, seconds: float) -> None:
    async with reporting(demo.directory / "dmi.sock", folder=folder) as reporter:
        devices = [DeviceId(f"default/{device_name(i)}") for i in range(DEVICES)]
        await reporter.runs(devices)
        for device in devices:
            await reporter.state(device)
            await reporter.report(device, {"p0": "0"})
        await asyncio.sleep(SETTLE_S)
        watch = await asyncio.to_thread(StatusWatch, Path(demo.summary["kubeconfig"]))
        started, number = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            number += 1
            await reporter.report(devices[number % DEVICES], {"p0": str(number)})
            await asyncio.sleep(EVERY_S)
        await asyncio.sleep(1.0)
        watch.close()
    figure("twin.path.collected_to_watch.p50", percentile(watch.ages_ms, 0.5), "ms")
    figure("twin.path.collected_to_watch.p99", percentile(watch.ages_ms, 0.99), "ms")
    figure("twin.path.values_seen", len(watch.ages_ms), f"of_{number}")
