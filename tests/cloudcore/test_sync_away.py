"""What happens to devices while a node is away reaches its mapper: our cloud core and our edge core, for real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import Key
from dmi import DeviceId
from edgecore.app import serve
from edgecore.config import (
    DatabaseConfig,
    DeviceTwinConfig,
    EdgeCoreConfig,
    EdgedConfig,
    EdgeHubConfig,
    LocalApiConfig,
    Modules,
    WebSocketConfig,
)
from tests.cloudcore.support import Kubernetes, device, model, until
from tests.cloudcore.sync_support import SyncedCloud, synced_cloud
from tests.edgecore.peers import FakeMapper


def _config(cloud: SyncedCloud, certs: Path, folder: Path, node: str) -> EdgeCoreConfig:
    return EdgeCoreConfig(
        database=DatabaseConfig(data_source=str(folder / "edgecore.db")),
        modules=Modules(
            edged=EdgedConfig(enable=False, hostname_override=node),
            edge_hub=EdgeHubConfig(
                tls_ca_file=str(certs / "ca.crt"),
                tls_cert_file=str(certs / f"{node}.crt"),
                tls_private_key_file=str(certs / f"{node}.key"),
                websocket=WebSocketConfig(server=f"127.0.0.1:{cloud.hub.port}"),
            ),
            device_twin=DeviceTwinConfig(dmi_sock_path=str(folder)),
            local_api=LocalApiConfig(enable=False),
        ),
    )


@asynccontextmanager
async def _edge_core(cloud: SyncedCloud, certs: Path, folder: Path, node: str = "edge-1") -> AsyncIterator[FakeMapper]:
    """An edge core with a mapper while the block runs."""
    ready = asyncio.Event()
    serving = asyncio.create_task(serve(_config(cloud, certs, folder, node), ready))
    try:
        await ready.wait()
        async with FakeMapper(folder).running() as mapper:
            yield mapper
    finally:
        serving.cancel()
        await asyncio.wait([serving])


def _valve(mapper: FakeMapper, name: str) -> str:
    found = mapper.devices.get(DeviceId(f"default/{name}"))
    desired = {p.name: p.desired.value for p in found.properties if p.desired is not None} if found is not None else {}
    return desired.get("valve", "")


async def test_changes_of_a_time_away_reach_the_mapper(kube: Kubernetes, certs: Path, tmp_path: Path) -> None:
    await kube.create(MODELS, model())
    for name in ("stays", "changes", "goes", "anew", "moves"):
        await kube.create(DEVICES, device(name))
    one = tmp_path / "1"
    one.mkdir()
    async with synced_cloud(kube, certs) as cloud:
        async with _edge_core(cloud, certs, one) as mapper:
            await until(lambda: len(mapper.devices) == 5, what="all at the mapper")
        before = cloud.count("device_objects_total", "update") + cloud.count("device_objects_total", "insert")
        await _change(kube)
        async with _edge_core(cloud, certs, one) as mapper:
            await until(lambda: _names(mapper) == {"stays", "changes", "anew", "comes"}, what="the four that are there")
            await until(lambda: _valve(mapper, "changes") == "7" and _valve(mapper, "anew") == "3")
            sent = cloud.count("device_objects_total", "update") + cloud.count("device_objects_total", "insert")
            assert sent - before == 3  # changes, anew, comes
            assert cloud.count("device_objects_total", "unchanged") == 2  # stays, and the model


async def test_a_store_that_is_gone_is_filled_again(kube: Kubernetes, certs: Path, tmp_path: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with synced_cloud(kube, certs) as cloud:
        for _ in range(2):
            async with _edge_core(cloud, certs, tmp_path) as mapper:
                await until(lambda mapper=mapper: _names(mapper) == {"thermo-1"})  # type: ignore[misc]
            for file in tmp_path.glob("edgecore.db*"):
                file.unlink()
        assert cloud.count("device_objects_total", "unchanged") == 0


def _names(mapper: FakeMapper) -> set[str]:
    return {device.partition("/")[2] for device in mapper.devices}


async def _change(kube: Kubernetes) -> None:
    """All that can happen to a device, while its node is away."""
    wants = {"properties": [{"name": "valve", "desired": {"value": "7"}}]}
    await kube.patch(DEVICES, Key("default", "changes"), {"spec": wants})
    await kube.delete(DEVICES, Key("default", "goes"))
    await kube.delete(DEVICES, Key("default", "anew"))
    await kube.create(DEVICES, device("anew", properties=[{"name": "valve", "desired": {"value": "3"}}]))
    await kube.create(DEVICES, device("comes"))
    await kube.patch(DEVICES, Key("default", "moves"), {"spec": {"nodeName": "edge-2"}})
