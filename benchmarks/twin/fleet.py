"""1,000 devices × 10 properties at 1 s: what arrives at the API, how late, and what edge core, cloud core and the
embedded API use for it together.

The mapper here behaves as kubetwin's: it reports what changed, and confirms the rest every ten seconds. In the first
part a tenth of the devices change all their values each second, in the second each device changes one of its ten.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import cpu_seconds, figure, percentile, rss_mib
from benchmarks.twin.load import Api, Reporter, StatusWatch, device_name, manifests, reporting
from dmi import DeviceId
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, running_demo, wait_for

DEVICES = 1000
PROPERTIES = 10
CONFIRM_S = 10
PROCESSES = ("edgecore", "cloudcore", "apiserver")
NAMES = [f"p{i}" for i in range(PROPERTIES)]
SETTLE_S = 30.0


def run(seconds: float) -> None:
    with running_demo() as demo, tempfile.TemporaryDirectory(prefix="kt-") as folder:
        demo.kubectl("delete", "devices", "--all")
        demo.kill("mapper-modbus")
        demo.kill("simulator")
        api = Api(Path(demo.summary["kubeconfig"]))
        started = time.monotonic()
        api.create(manifests(DEVICES, PROPERTIES, NODE))
        figure("twin.fleet.created", time.monotonic() - started, "s")
        asyncio.run(_measure(demo, Path(folder), max(seconds, 2 * CONFIRM_S)))


async def _measure(demo: Demo, folder: Path, seconds: float) -> None:
    async with reporting(demo.directory / "dmi.sock", folder=folder) as reporter:
        devices = [DeviceId(f"default/{device_name(i)}") for i in range(DEVICES)]
        await reporter.runs(devices)
        for device in devices:
            await reporter.state(device)
            await reporter.report(device, dict.fromkeys(NAMES, "0.0"))
        await asyncio.to_thread(_wait_until_shown, demo, reporter)
        await asyncio.sleep(SETTLE_S)
        tenth = devices[: DEVICES // 10]
        await _load(demo, reporter, "a_tenth_of_devices", seconds, devices, tenth, NAMES)
        await _load(demo, reporter, "a_tenth_of_each_device", seconds, devices, devices, NAMES[:1])


async def _load(
    demo: Demo,
    reporter: Reporter,
    name: str,
    seconds: float,
    devices: Sequence[DeviceId],
    changing: Sequence[DeviceId],
    properties: Sequence[str],
) -> None:
    watch = await asyncio.to_thread(StatusWatch, Path(demo.summary["kubeconfig"]))
    cpu = {p: cpu_seconds(demo.pid(p)) for p in PROCESSES}
    started = time.monotonic()
    second, reports = 0, 0
    while time.monotonic() - started < seconds:
        second += 1
        values = {p: f"{second}.{i}" for i, p in enumerate(properties)}
        # What does not change is confirmed in turns, as mappers spread their cycles.
        confirmed = [d for i, d in enumerate(devices) if i % CONFIRM_S == second % CONFIRM_S]
        reports += len(changing) + len(confirmed)
        await _spread_over_a_second(started + second, reporter, changing, values, confirmed)
    elapsed = time.monotonic() - started
    used = {p: cpu_seconds(demo.pid(p)) - cpu[p] for p in PROCESSES}
    arrived = await asyncio.to_thread(_wait_until_shown, demo, reporter)
    watch.close()
    prefix = f"twin.fleet.{name}"
    for process, amount in used.items():
        figure(f"{prefix}.cpu.{process}", amount / elapsed * 100, "percent_of_a_core")
        figure(f"{prefix}.rss.{process}", rss_mib(demo.pid(process)) * 1.048576, "MB")
    figure(f"{prefix}.cpu.together", sum(used.values()) / elapsed * 100, "percent_of_a_core")
    figure(f"{prefix}.reports", reports / elapsed, "1/s")
    figure(f"{prefix}.writes", watch.writes / elapsed, "1/s")
    figure(f"{prefix}.collected_to_watch.p50", percentile(watch.ages_ms, 0.5), "ms")
    figure(f"{prefix}.collected_to_watch.p99", percentile(watch.ages_ms, 0.99), "ms")
    figure(f"{prefix}.last_values_arrived_after", arrived, "s")
    figure(f"{prefix}.lost", _wrong(demo, reporter), f"of_{DEVICES * PROPERTIES}")


async def _spread_over_a_second(
    until: float,
    reporter: Reporter,
    changing: Sequence[DeviceId],
    values: Mapping[str, str],
    confirmed: Sequence[DeviceId],
) -> None:
    """One second of reports, in 50 slots as the SDK's schedule has them."""
    slots = 50
    for slot in range(slots):
        for device in changing[slot::slots]:
            await reporter.report(device, values)
        for device in confirmed[slot::slots]:
            await reporter.report(device, dict(reporter.last[device]))
            await reporter.state(device)
        await asyncio.sleep(max(0.0, until - (slots - 1 - slot) / slots - time.monotonic()))


def _wrong(demo: Demo, reporter: Reporter) -> int:
    seen = {
        (s["metadata"]["name"], t["propertyName"]): t["reported"]["value"]
        for s in Api(Path(demo.summary["kubeconfig"])).statuses()
        for t in s.get("status", {}).get("twins", ())
    }
    return sum(
        seen.get((device.partition("/")[2], name)) != value
        for device, values in reporter.last.items()
        for name, value in values.items()
    )


def _wait_until_shown(demo: Demo, reporter: Reporter) -> float:
    started = time.monotonic()
    wait_for(lambda: _wrong(demo, reporter) == 0, within_s=120, what="every last value is at the API")
    return time.monotonic() - started
