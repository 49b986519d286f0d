"""`ReportDeviceStatus` of ten twins from one client, with one and with 32 calls in flight, beside a bare grpc.aio
server that parses the same bytes and returns. Each server is a process of its own; turns of both alternate in one run.

Every value is new, and what the edge core answers is committed. `cloud_away`: what the report itself costs;
`cloud_there`: reports also go on to a cloud, a small one in a process of its own (`benchmarks.twin.paced`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

import grpc.aio

from benchmarks.figures import cpu_seconds, figure
from benchmarks.twin.edge import PROPERTIES, Edge, edge_process, report
from dmi import DeviceId
from dmi.rpc import open_channel
from edgecore.store import get_twins, open_database

METHOD = "/v1beta1.DeviceManagerService/ReportDeviceStatus"
DEVICES = 32
IN_FLIGHT = (1, 32)
TURNS = 9
"""Short and many, so that what else the machine does meets both alike."""
WARM_UP_S = 1.0


def run(seconds: float) -> None:
    asyncio.run(_run(seconds))


async def _run(seconds: float) -> None:
    turn_s = max(seconds / (TURNS * len(IN_FLIGHT) * 4), 0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _bare(folder / "bare.sock") as bare, edge_process(folder / "edge") as edge:
            await edge.declare(DEVICES)
            await edge.cloud.stop()
            async with _connected(edge.socket) as path:
                for name, cloud in (("away", contextlib.nullcontext()), ("there", _cloud(edge))):
                    async with cloud:
                        for in_flight in IN_FLIGHT:
                            await _compare(f"cloud_{name}.in_flight_{in_flight}", bare, path, edge.pid, edge.devices,
                                           in_flight, turn_s)  # fmt: skip
        async with open_database(folder / "edge" / "edgecore.db") as database:
            rows = await database.run(lambda db: get_twins(db, DeviceId("default/device-0")))
            stored = {name: row.twin.reported.value for name, row in rows.items()}
        wanted = dict.fromkeys(PROPERTIES, _acknowledged["default/device-0"])
        if stored != wanted:
            raise AssertionError(f"answered {wanted}, stored {stored}")


_acknowledged: dict[str, str] = {}
"""The last value that was acknowledged, by device."""


async def _compare(
    name: str,
    bare: grpc.aio.Channel,
    edge: grpc.aio.Channel,
    pid: int,
    devices: list[DeviceId],
    in_flight: int,
    turn_s: float,
) -> None:
    rates: dict[str, list[float]] = {"bare": [], "edge": []}
    busy = 0.0
    calls = 0
    for channel in (bare, edge):
        await _load(channel, devices, in_flight, WARM_UP_S / 2)
    for _ in range(TURNS):
        rates["bare"].append((await _load(bare, devices, in_flight, turn_s)) / turn_s)
        before = cpu_seconds(pid)
        done = await _load(edge, devices, in_flight, turn_s, note=True)
        busy += cpu_seconds(pid) - before
        calls += done
        rates["edge"].append(done / turn_s)
    figure(f"report.{name}.bare", median(rates["bare"]), "1/s")
    figure(f"report.{name}.edgecore", median(rates["edge"]), "1/s")
    figure(f"report.{name}.ratio", median(e / b for e, b in zip(rates["edge"], rates["bare"], strict=True)), "")
    figure(f"report.{name}.cpu_per_report", busy / calls * 1e6, "us")


async def _load(
    channel: grpc.aio.Channel, devices: list[DeviceId], in_flight: int, seconds: float, *, note: bool = False
) -> int:
    """Calls answered in that time."""
    call = channel.unary_unary(METHOD)
    end = time.monotonic() + seconds
    requests = _requests(devices)
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.monotonic() < end:
            device, value, request = next(requests)
            await call(request, timeout=10)
            done += 1
            if note:
                _acknowledged[device] = value

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return done


def _requests(devices: list[DeviceId]) -> Iterator[tuple[DeviceId, str, bytes]]:
    """For ever, device by device, every value a new one."""
    for device in itertools.cycle(devices):
        now = time.time_ns()
        value = f"{now / 1e15:.15g}"
        yield device, value, report(device, [value] * len(PROPERTIES), now // 1_000_000)


@contextlib.asynccontextmanager
async def _cloud(edge: Edge) -> AsyncIterator[None]:
    """In a process of its own, where the edge core looks for one."""
    arguments = (str(edge.database.parent), str(edge.cloud.port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.twin.paced", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            if not await process.stdout.readline():
                raise RuntimeError("the cloud did not start")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def _bare(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.twin.bare", str(socket))
    try:
        async with _connected(socket) as channel:
            yield channel
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def _connected(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(socket) as channel, asyncio.timeout(30):
        await channel.channel_ready()
    async with open_channel(socket) as channel:
        yield channel
