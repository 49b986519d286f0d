"""An hour's cut of a sink at 100 values/s, without the hour: 360,000 samples are taken while the sink is away, as fast
as the disk takes them; then it is back, and 100 live samples a second go on while the backlog follows.

Prints what was lost, the delay of live samples from `put` to the server during the replay and, for comparison, before
the cut, the rate of the replay, and what it took of the disk.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from pathlib import Path
from typing import Final

from aiohttp import web

from benchmarks.figures import figure, percentile
from dmi.types import Device, DeviceId, DeviceProperty
from mappers.sdk.config import DataConfig
from mappers.sdk.samples import Sample
from mappers.sdk.sinks import DataPlane

CUT_SAMPLES: Final = 360_000
LIVE_PER_S: Final = 100
DEVICE: Final = DeviceId("plant/meter")
_LINE: Final = re.compile(rb'^m v="(\d+)" ', re.MULTILINE)


def run(seconds: float) -> None:  # noqa: ARG001 - as long as 360,000 samples take
    asyncio.run(_run())


class _Server:
    """Speaks InfluxDB's write call, and notes when each number arrived first."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: dict[int, float] = {}
        self.lines = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        async def write(request: web.Request) -> web.Response:
            numbers = [int(n) for n in _LINE.findall(await request.read())]
            now = time.monotonic()
            self.lines += len(numbers)
            for number in numbers:
                self.seen.setdefault(number, now)
            return web.Response(status=204)

        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/api/v2/write", write)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


async def _run() -> None:
    server = _Server()
    await server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            async with DataPlane(DataConfig(), "benchmark", Path(folder) / "data", environ={}) as data:
                await _measure(data, server, Path(folder) / "data")
    finally:
        await server.stop()


async def _measure(data: DataPlane, server: _Server, folder: Path) -> None:
    push = {
        "dbMethod": {
            "influxdb2": {
                "influxdb2ClientConfig": {"url": f"http://127.0.0.1:{server.port}", "org": "o", "bucket": "b"},
                "influxdb2DataConfig": {"measurement": "m", "fieldKey": "v"},
            }
        }
    }
    problems = data.declare(Device("plant", "meter", properties=(DeviceProperty("flow", push_method=push),)))
    assert not problems, problems
    before = await _live(data, server, first=0, until=time.monotonic() + 3)
    figure("mapper.sink.live_delay_before.p99", percentile(before, 0.99) * 1000, "ms")

    await server.stop()
    start, first = time.monotonic(), 1_000_000
    for number in range(first, first + CUT_SAMPLES):
        data.put(_sample(number))
        while number % 500 == 0 and _in_memory(data) > 5000:  # noqa: ASYNC110  # as fast as the disk
            await asyncio.sleep(0.005)
    while _in_memory(data):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    figure("mapper.sink.stored_per_s", CUT_SAMPLES / (time.monotonic() - start), "samples/s")
    await asyncio.sleep(1.2)  # the last commit
    figure("mapper.sink.disk", sum(f.stat().st_size for f in folder.iterdir()) / 1e6, "MB")

    await server.start()
    while not data.stats()[0].up:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    start, lines = time.monotonic(), server.lines
    during = await _live(data, server, first=2_000_000, until=None)
    took = time.monotonic() - start
    figure("mapper.sink.live_delay_during_replay.p50", percentile(during, 0.5) * 1000, "ms")
    figure("mapper.sink.live_delay_during_replay.p99", percentile(during, 0.99) * 1000, "ms")
    figure("mapper.sink.live_delay_during_replay.max", max(during) * 1000, "ms")
    figure("mapper.sink.replay_rate", (server.lines - lines - len(during)) / took, "samples/s")
    figure("mapper.sink.replay_of_one_hour", took, "s")
    figure("mapper.sink.lost", sum(first + n not in server.seen for n in range(CUT_SAMPLES)), "samples")
    figure("mapper.sink.sent_twice", server.lines - len(server.seen), "samples")
    assert not data.stats()[0].dropped, data.stats()


def _in_memory(data: DataPlane) -> int:
    """Samples on their way to the disk; past 10,000 they would be dropped, which 100 a second never come near."""
    (sink,) = data._sinks.values()  # noqa: SLF001  # what waits in all is public, where it waits is not
    return sink.waiting - sink._backlog.store.waiting  # noqa: SLF001


async def _live(data: DataPlane, server: _Server, *, first: int, until: float | None) -> list[float]:
    """100 samples a second until a time, or until the backlog is sent; the delay of each."""
    sent: dict[int, float] = {}
    tick, number = time.monotonic(), first
    while time.monotonic() < until if until else data.stats()[0].waiting > LIVE_PER_S // 10:
        sent[number] = time.monotonic()
        data.put(_sample(number))
        number += 1
        tick += 1 / LIVE_PER_S
        await asyncio.sleep(max(tick - time.monotonic(), 0))
    while not sent.keys() <= server.seen.keys():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return [server.seen[n] - at for n, at in sent.items()]


def _sample(number: int) -> Sample:
    return Sample(DEVICE, "flow", str(number), "float", time.time_ns() // 1_000_000)
