"""Fixtures: certificates, a cloud, and an edge core in this process or as one of its own."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from cloudedge.certificates import mint
from edgecore.app import serve
from edgecore.bus import Bus
from edgecore.config import (
    DatabaseConfig,
    DeviceTwinConfig,
    EdgeCoreConfig,
    EdgedConfig,
    EdgeHubConfig,
    Modules,
    WebSocketConfig,
)
from tests.edgecore.local_apps import TYPES, Apps
from tests.edgecore.peers import NODE, FakeCloud, FakeMapper, device_object, model_object


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    mint(directory, nodes=[NODE], names=["127.0.0.1"])
    return directory


@pytest.fixture
async def cloud(certificates: Path) -> AsyncIterator[FakeCloud]:
    cloud = FakeCloud(certificates)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


@pytest.fixture
def config(certificates: Path, cloud: FakeCloud, tmp_path: Path) -> EdgeCoreConfig:
    return EdgeCoreConfig(
        database=DatabaseConfig(data_source=str(tmp_path / "edgecore.db")),
        modules=Modules(
            edged=EdgedConfig(hostname_override=NODE),
            edge_hub=EdgeHubConfig(
                tls_ca_file=str(certificates / "ca.crt"),
                tls_cert_file=str(certificates / f"{NODE}.crt"),
                tls_private_key_file=str(certificates / f"{NODE}.key"),
                websocket=WebSocketConfig(server=f"127.0.0.1:{cloud.port}"),
            ),
            device_twin=DeviceTwinConfig(dmi_sock_path=str(tmp_path)),
        ),
    )


class Edge:
    """An edge core in this process."""

    def __init__(self, config: EdgeCoreConfig) -> None:
        self.config = config
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(serve(self.config, ready), name="edgecore under test")
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@pytest.fixture
async def edge(config: EdgeCoreConfig) -> AsyncIterator[Edge]:
    edge = Edge(config)
    await edge.start()
    try:
        yield edge
    finally:
        await edge.stop()


@pytest.fixture
def mapper(tmp_path: Path) -> FakeMapper:
    return FakeMapper(tmp_path)


@pytest.fixture
async def boiler(edge: Edge, cloud: FakeCloud, mapper: FakeMapper) -> AsyncIterator[FakeMapper]:
    """Device `default/boiler-1` everywhere, its mapper registered."""
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        yield mapper


class EdgeProcess:
    """An edge core as the operating system sees it."""

    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self.process: asyncio.subprocess.Process | None = None
        self.log: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edgecore",
            "--config",
            str(self._config_file),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        served = asyncio.Event()
        self._reading = asyncio.create_task(self._read(served), name="log of edgecore")
        async with asyncio.timeout(20):
            await served.wait()
        assert self.process.returncode is None, "\n".join(self.log)

    async def _read(self, served: asyncio.Event) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode().rstrip())
            if "mappers are served" in self.log[-1]:
                served.set()
        served.set()

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        assert self._reading is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        await self.process.wait()
        await self._reading
        code = self.process.returncode
        assert code is not None
        return code


@pytest.fixture
async def edge_process(config: EdgeCoreConfig, tmp_path: Path) -> AsyncIterator[Callable[[], EdgeProcess]]:
    file = tmp_path / "edgecore.yaml"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    made: list[EdgeProcess] = []

    def make() -> EdgeProcess:
        made.append(EdgeProcess(file))
        return made[-1]

    yield make
    for process in made:
        if process.process is not None and process.process.returncode is None:
            await process.end(signal.SIGKILL)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    bus = Bus()
    monkeypatch.setattr("edgecore.app.Bus", lambda: bus)
    return bus


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody misses a mapper."""
    monkeypatch.setattr("edgecore.devicetwin.mappers.NO_MAPPER_GRACE_S", 3600.0)


@pytest.fixture
async def apps(patience: None, bus: Bus, config: EdgeCoreConfig, cloud: FakeCloud) -> AsyncIterator[Apps]:
    """Local apps, at an edge core with a device that nobody has reported so far."""
    apps, edge = Apps(bus), Edge(config)
    await edge.start()
    try:
        await cloud.put(model_object(types=TYPES))
        await cloud.put(device_object(properties=list(TYPES)))
        await apps.hear(1)
        yield apps
    finally:
        await edge.stop()
