"""VmRSS of a real edge core process in MB (10^6 bytes), shared library pages included: idle on its cloud channel, with
1,000 and 5,000 devices of ten properties that all have values, and idle with EventBus on. Limits: 48, 60, 100.

Then an accelerated day: as many reports as 100 devices make in a day at one every ten seconds, as fast as they are
taken, every value new. Its second half must not grow: `slope` is MB per simulated hour there, `noise` what two fits of
halves of it differ by. The short form makes a twelfth of a day.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import figure
from benchmarks.twin.edge import PROPERTIES, Edge, edge_process, report, rss_mb
from benchmarks.twin.report import METHOD
from dmi import DeviceId
from dmi.rpc import open_channel
from edgecore.config import EventBusConfig

SETTLE_S = 5.0
IN_FLIGHT = 32
FLEETS = (1000, 5000)
DAY_DEVICES = 100
REPORTS_PER_HOUR = DAY_DEVICES * 360
FULL_DAY_FROM_S = 60.0
"""`--seconds` of this and more run the whole day."""


def run(seconds: float) -> None:
    asyncio.run(_run(seconds))


async def _run(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bus = EventBusConfig(enable=True)  # no broker there: it tries for ever
        async with edge_process(folder / "first", event_bus=bus):
            await asyncio.sleep(SETTLE_S)  # leaves the bytecode of all that is imported below
        async with edge_process(folder / "idle") as edge:
            await asyncio.sleep(SETTLE_S)
            figure("memory.edgecore.idle", rss_mb(edge.pid), "MB")
        async with edge_process(folder / "eventbus", event_bus=bus) as edge:
            await asyncio.sleep(SETTLE_S)
            figure("memory.edgecore.idle_with_eventbus", rss_mb(edge.pid), "MB")
        for count in FLEETS:
            async with edge_process(folder / str(count)) as edge:
                await edge.declare(count)
                for turn in range(2):
                    await _report(edge, edge.devices, turn)
                await asyncio.sleep(SETTLE_S)
                figure(f"memory.edgecore.devices_{count}", rss_mb(edge.pid), "MB")
        async with edge_process(folder / "day") as edge:
            await edge.declare(DAY_DEVICES)
            await _day(edge, 24 if seconds >= FULL_DAY_FROM_S else 2)


async def _day(edge: Edge, hours: int) -> None:
    samples: list[tuple[float, float]] = []
    start = time.monotonic()
    steps = 12 * hours  # of five simulated minutes
    for step in range(steps):
        for turn in range(REPORTS_PER_HOUR // 12 // DAY_DEVICES):
            await _report(edge, edge.devices, step * 100 + turn)
        samples.append(((step + 1) / 12, rss_mb(edge.pid)))
    second = samples[len(samples) // 2 :]
    middle = len(second) // 2
    figure("memory.day.hours", hours, "simulated")
    figure("memory.day.took", time.monotonic() - start, "s")
    figure("memory.day.end", samples[-1][1], "MB")
    figure("memory.day.slope", _slope(second), "MB_per_simulated_hour")
    figure("memory.day.noise", abs(_slope(second[:middle]) - _slope(second[middle:])), "MB_per_simulated_hour")


def _slope(samples: Sequence[tuple[float, float]]) -> float:
    return statistics.linear_regression([hour for hour, _ in samples], [mb for _, mb in samples]).slope


async def _report(edge: Edge, devices: Sequence[DeviceId], turn: int) -> None:
    """One report of every device."""
    left = iter(devices)
    async with open_channel(edge.socket) as channel:
        call = channel.unary_unary(METHOD)

        async def worker() -> None:
            for device in left:
                values = [f"{turn}.{index:04d}" for index in range(len(PROPERTIES))]
                await call(report(device, values, time.time_ns() // 1_000_000), timeout=30)

        await asyncio.gather(*itertools.starmap(worker, [()] * IN_FLIGHT))
