"""What the sinks' tests share: devices with push methods, a data plane, and real servers to send to."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dmi.types import Device, DeviceId, DeviceProperty
from mappers.sdk.config import DataConfig
from mappers.sdk.samples import Sample
from mappers.sdk.sinks import DataPlane

DEVICE = DeviceId("plant/meter-1")
T0_MS = 1_790_000_000_000


def device(push: Mapping[str, Any] | None, *, name: str = "meter-1", cycle_ms: int = 0, prop: str = "flow") -> Device:
    declared = DeviceProperty(name=prop, push_method=push, report_cycle_ms=cycle_ms)
    return Device(namespace="plant", name=name, properties=(declared,))


def sample(number: int, *, prop: str = "flow", value: str | None = None, type_: str = "float") -> Sample:
    return Sample(DEVICE, prop, str(number) if value is None else value, type_, T0_MS + number * 1000)


def plane(folder: Path, environ: Mapping[str, str] | None = None, **config: Any) -> DataPlane:
    return DataPlane(DataConfig(**config), "mapper-a", folder, environ=environ or {})


async def until(condition: Callable[[], Any], what: str, within_s: float = 20) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  # of several parts, some in other processes
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {within_s} s: {what}")


@dataclass
class Collector:
    """An HTTP server that can be stopped and started on its port, and remembers what it was sent."""

    port: int = 0
    answer: tuple[int, bytes] = (200, b"")
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path with query, headers, body."""
    decide: Callable[[str, bytes], tuple[int, bytes]] | None = None
    gate: asyncio.Event | None = None
    """Answers wait for it, those to bodies that are `held`."""
    held: Callable[[bytes], bool] = lambda body: True
    headers: dict[str, str] = field(default_factory=dict)
    """Of every answer."""
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.requests]

    async def start(self) -> None:
        async def take(request: web.Request) -> web.Response:
            body = await request.read()
            if self.gate is not None and self.held(body):
                await self.gate.wait()
            self.requests.append((request.raw_path, dict(request.headers), body))
            status, text = self.decide(request.raw_path, body) if self.decide else self.answer
            return web.Response(status=status, body=text, headers=self.headers)

        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/{path:.*}", take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    server = Collector()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def program(*names: str) -> str:
    """The path of a Debian package's program. On CI it must be there."""
    found = next((path for name in names if (path := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"))), None)
    if found is None:
        problem = f"{names[0]} is not installed"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process that listens on a TCP port, and can be stopped and started again."""

    def __init__(self, port: int, *command: str, log: Path) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=log, stderr=log)
        async with asyncio.timeout(40):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    if self._process.returncode is not None:
                        pytest.fail(f"{self._command[0]} ended: {self._log.read_text()[-2000:]}")
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def stop(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
