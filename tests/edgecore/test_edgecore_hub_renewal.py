"""The hub with a renewed certificate: the next connection is there before the old one goes."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from cloudedge import ConnectionLost
from cloudedge.certificates import mint
from edgecore.bus import CertificateRenewed, CloudLost, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edgehub import dialling, hub
from tests.edgecore.hub_world import Events, upload
from tests.edgecore.peers import NODE, FakeCloud


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


@pytest.fixture
def renewable(settings: EdgeHubConfig, certificates: Path, tmp_path: Path) -> tuple[EdgeHubConfig, Path]:
    """Settings with files of their own."""
    for suffix in ("crt", "key"):
        shutil.copy(certificates / f"{NODE}.{suffix}", tmp_path / f"node.{suffix}")
    mine = msgspec.structs.replace(
        settings,
        tls_cert_file=str(tmp_path / "node.crt"),
        tls_private_key_file=str(tmp_path / "node.key"),
    )
    return mine, tmp_path


async def test_with_a_new_certificate_the_next_connection_is_there_before_the_old_one_goes(
    renewable: tuple[EdgeHubConfig, Path], cloud: FakeCloud, certificates: Path
) -> None:
    """Messages are written all the while, none fails, and what is kept arrives in order."""
    settings, directory = renewable
    mint(directory / "new", nodes=[NODE], names=["127.0.0.1"])
    async with Events(settings, directory) as events, asyncio.timeout(15):
        await events.connected.get()
        before = cloud.connection
        failed: list[ConnectionLost] = []

        async def send(text: str) -> None:
            try:
                await events.bus.publish(Upstream(upload(f"direct {text}")))
            except ConnectionLost as error:
                failed.append(error)

        async def talk() -> None:
            for number in range(100):
                await send(str(number))
                await events.keep(str(number))
                await asyncio.sleep(0.005)

        async def talk_between(_: CloudLost) -> None:
            await send("between the two")

        events.bus.subscribe(CloudLost, talk_between)
        talking = asyncio.create_task(talk())
        await asyncio.sleep(0.1)
        for suffix in ("crt", "key"):
            shutil.copy(certificates / f"{NODE}.{suffix}", directory / f"node.{suffix}")
        await events.bus.publish(CertificateRenewed())
        await events.lost.get()
        assert events.hub.link.connected
        await events.connected.get()
        assert cloud.connection is not before
        await talking
        await events.emptied()
        assert not failed
        events.bus._handlers[CloudLost].remove(talk_between)  # the end of the test is no change-over
        kept = [m.data(str) for m in cloud.uploads if not m.data(str).startswith("direct")]
        assert list(dict.fromkeys(kept)) == [str(number) for number in range(100)]
        assert events.count("cloud_losses_total", "renewed") == 1
        assert events.count("cloud_connects_total") == 2
        assert events.connected.empty()


async def test_a_new_certificate_that_does_not_work_leaves_the_connection_there_is(
    renewable: tuple[EdgeHubConfig, Path], cloud: FakeCloud, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "FIRST_RETRY_S", 0.11)
    settings, directory = renewable
    async with Events(settings, directory) as events, asyncio.timeout(15):
        await events.connected.get()
        (directory / "node.crt").write_text("nonsense")
        await events.bus.publish(CertificateRenewed())
        while not events.count("cloud_dial_failures_total", "certificates"):  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.01)
        await events.keep("still there")
        await cloud.until(lambda: cloud.uploads)
        assert cloud.connected == 1
        shutil.copy(certificates / f"{NODE}.crt", directory / "node.crt")
        await events.connected.get()
        assert cloud.connected == 2


async def test_new_files_are_tried_at_once_while_there_is_no_connection(
    renewable: tuple[EdgeHubConfig, Path], cloud: FakeCloud, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, directory = renewable
    (directory / "node.crt").write_text("nonsense")
    monkeypatch.setattr(hub, "retry_delays", lambda: iter([3600.0] * 3))
    async with Events(settings, directory) as events, asyncio.timeout(10):
        while not events.count("cloud_dial_failures_total", "certificates"):  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.01)
        shutil.copy(certificates / f"{NODE}.crt", directory / "node.crt")
        await events.bus.publish(CertificateRenewed())
        await events.connected.get()
