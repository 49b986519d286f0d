"""What each way to run a mapper costs in memory, with one Modbus device that is read every second: VmRSS in MB (10^6
bytes), shared library pages included, of a process of its own with one and with two drivers, and of an edge core on its
cloud channel without and with mappers inside. HTTP API and watchdog are on, as they are by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from benchmarks.figures import figure, rss_mib
from benchmarks.mapper.process import mapper_process
from cloudedge.certificates import mint
from dmi.crd import device_from_crd, model_from_crd
from dmi.ports import MapperInfo, Registration
from edgecore.config import (
    DatabaseConfig,
    DeviceTwinConfig,
    EdgeCoreConfig,
    EdgedConfig,
    EdgeHubConfig,
    MappersConfig,
    Modules,
    WebSocketConfig,
)
from mappers.drivers.modbus.simulator import Simulator
from mappers.sdk.testing import FakeEdgeCore
from tests.edgecore.peers import NODE, FakeCloud

EXAMPLES = Path(__file__).parents[2] / "examples" / "modbus"
MB_PER_MIB = 1.048576

Manifest = dict[str, Any]


class _EdgeCore(FakeEdgeCore):
    """Answers a registration with the devices of its protocol, as a real one does."""

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        answer = await super().register_mapper(mapper, with_data=with_data)
        return msgspec.structs.replace(
            answer, devices=tuple(d for d in answer.devices if d.protocol == mapper.protocol)
        )


def run(seconds: float) -> None:
    for name, value in asyncio.run(measure(seconds)).items():
        figure(name, value, "MB")


async def measure(seconds: float) -> Mapping[str, float]:
    """Each process is looked at `seconds` after its first reported value, at least five."""
    settle_s = max(seconds, 5.0)
    figures: dict[str, float] = {}
    async with Simulator(seed=7) as simulator:
        model, device = _manifests(simulator.port)
        figures["mapper.memory.process"] = await _process(["modbus"], model, device, settle_s)
        figures["mapper.memory.process_of_two"] = await _process(["modbus", "virtual"], model, device, settle_s)
        figures["mapper.memory.edgecore_alone"] = await _edgecore((), model, device, settle_s)
        figures["mapper.memory.edgecore_and_mapper"] = await _edgecore(("modbus",), model, device, settle_s)
        figures["mapper.memory.edgecore_and_two"] = await _edgecore(("modbus", "virtual"), model, device, settle_s)
    return figures


def _manifests(port: int) -> tuple[Manifest, Manifest]:
    model, device = (yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()) for name in ("model", "device"))
    device["spec"]["protocol"]["configData"]["port"] = port
    device["spec"]["nodeName"] = NODE
    return model, device


async def _process(protocols: Sequence[str], model: Manifest, device: Manifest, settle_s: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "dmi.sock"
        core = _EdgeCore(socket, devices=[device_from_crd(device)], models=[model_from_crd(model)])
        async with core, mapper_process(Path(folder), protocols, socket) as mapper:
            await core.until(lambda: bool(core.twins), timeout_s=60)
            await asyncio.sleep(settle_s)
            return rss_mib(mapper.pid) * MB_PER_MIB


async def _edgecore(protocols: tuple[str, ...], model: Manifest, device: Manifest, settle_s: float) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mint(folder, nodes=[NODE], names=["127.0.0.1"])
        cloud = FakeCloud(folder)
        await cloud.start()
        try:
            async with _edgecore_process(_config(folder, cloud.port, protocols), folder) as pid:
                for obj in (model, device):
                    await cloud.put({**obj, "metadata": {"namespace": "default", **obj["metadata"]}})
                if protocols:
                    await cloud.until(lambda: bool(cloud.twins), "a value is reported")
                await asyncio.sleep(settle_s)
                return rss_mib(pid) * MB_PER_MIB
        finally:
            await cloud.stop()


def _config(folder: Path, port: int, protocols: tuple[str, ...]) -> EdgeCoreConfig:
    hub = EdgeHubConfig(
        tls_ca_file=str(folder / "ca.crt"),
        tls_cert_file=str(folder / f"{NODE}.crt"),
        tls_private_key_file=str(folder / f"{NODE}.key"),
        websocket=WebSocketConfig(server=f"127.0.0.1:{port}"),
    )
    return EdgeCoreConfig(
        database=DatabaseConfig(data_source=str(folder / "edgecore.db")),
        modules=Modules(
            edged=EdgedConfig(hostname_override=NODE),
            edge_hub=hub,
            device_twin=DeviceTwinConfig(dmi_sock_path=str(folder)),
            mappers=MappersConfig(enable=bool(protocols), protocols=protocols, common={"http_port": 0}),
        ),
    )


@contextlib.asynccontextmanager
async def _edgecore_process(config: EdgeCoreConfig, folder: Path) -> AsyncIterator[int]:
    file = folder / "edgecore.yaml"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edgecore", "--config", str(file), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
