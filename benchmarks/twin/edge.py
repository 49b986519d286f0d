"""A real edge core process with as many devices as asked for, on a small cloud in this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import yaml

from benchmarks.figures import rss_mib
from cloudedge.certificates import mint
from dmi import DeviceId, Reported, Twin, split_id
from dmi.report import encode_report
from edgecore.config import (
    DatabaseConfig,
    DeviceTwinConfig,
    EdgeCoreConfig,
    EdgedConfig,
    EdgeHubConfig,
    EventBusConfig,
    Modules,
    WebSocketConfig,
)
from tests.edgecore.peers import NODE, FakeCloud, device_object, model_object, object_message

__all__ = ["MB_PER_MIB", "PROPERTIES", "Edge", "edge_process", "report", "rss_mb"]

MB_PER_MIB = 1.048576
PROPERTIES: Sequence[str] = tuple(f"p{index}" for index in range(10))
_KNOWN_WITHIN_S = 120.0


class Edge:
    """A running edge core and its cloud."""

    def __init__(self, folder: Path, pid: int, cloud: FakeCloud, log: Path) -> None:
        self.socket = folder / "dmi.sock"
        self.database = folder / "edgecore.db"
        self.pid = pid
        self.cloud = cloud
        self.log = log
        self.devices: list[DeviceId] = []

    async def declare(self, count: int) -> None:
        """Declare that many devices with ten properties each, and wait until the edge has acknowledged them all."""
        model = model_object(types=dict.fromkeys(PROPERTIES, "FLOAT"))
        objects = [model, *(device_object(f"device-{index}", properties=PROPERTIES) for index in range(count))]
        messages = [object_message("insert", self.cloud.keep(obj)) for obj in objects]
        for message in messages:
            await self.cloud.send(message)
        wanted = {message.id for message in messages}
        async with asyncio.timeout(_KNOWN_WITHIN_S):
            while not wanted <= self.cloud.acknowledged:  # noqa: ASYNC110 - a look ten times a second costs nothing
                await asyncio.sleep(0.1)
        self.devices = [DeviceId(f"default/device-{index}") for index in range(count)]


def rss_mb(pid: int) -> float:
    """In 10^6 bytes, shared library pages included."""
    return rss_mib(pid) * MB_PER_MIB


def report(device: DeviceId, values: Sequence[object], at_ms: int) -> bytes:
    """A `ReportDeviceStatusRequest` of ten twins, as a mapper on the SDK sends it."""
    twins = [
        Twin(name, reported=Reported(value=str(value), type="float", collected_ms=at_ms))
        for name, value in zip(PROPERTIES, values, strict=True)
    ]
    return encode_report(*split_id(device), twins)


@contextlib.asynccontextmanager
async def edge_process(folder: Path, *, event_bus: EventBusConfig | None = None) -> AsyncIterator[Edge]:
    """`python -m edgecore` while the block runs, connected to its cloud. Its modules' bytecode is kept beside `folder`,
    as it is beside the modules where a package was installed: compiling at the start costs a megabyte.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mint(folder, nodes=[NODE], names=["127.0.0.1"])
    cloud = _Cloud(folder)
    await cloud.start()
    file, log = folder / "edgecore.yaml", folder / "edgecore.log"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(_config(folder, cloud.port, event_bus))))
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgecore", "--config", str(file), stderr=stderr, env=environment
        )
    try:
        await cloud.until(lambda: cloud.connection is not None, "edgecore connects")
        yield Edge(folder, process.pid, cloud, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await cloud.stop()


def _config(folder: Path, port: int, event_bus: EventBusConfig | None) -> EdgeCoreConfig:
    return EdgeCoreConfig(
        database=DatabaseConfig(data_source=str(folder / "edgecore.db")),
        modules=Modules(
            edged=EdgedConfig(hostname_override=NODE),
            edge_hub=EdgeHubConfig(
                tls_ca_file=str(folder / "ca.crt"),
                tls_cert_file=str(folder / f"{NODE}.crt"),
                tls_private_key_file=str(folder / f"{NODE}.key"),
                websocket=WebSocketConfig(server=f"127.0.0.1:{port}"),
            ),
            device_twin=DeviceTwinConfig(dmi_sock_path=str(folder), report_rate=1_000_000, report_burst=1_000_000),
            event_bus=event_bus or EventBusConfig(),
        ),
    )


class _Cloud(FakeCloud):
    """One that remembers the newest and not every message, since a benchmark sends millions."""

    async def notify(self) -> None:
        self.messages.clear()
        if len(self.acknowledged) > 100_000:
            self.acknowledged.clear()
        await super().notify()
