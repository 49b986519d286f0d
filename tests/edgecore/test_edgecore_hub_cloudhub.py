"""The two hubs together: what nobody takes is not kept for ever, and a new connection takes over from the old one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.cloudhub.session import Session
from cloudedge import Message, new_message
from cloudedge.tls import server_context
from edgecore.bus import CertificateRenewed, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from tests.edgecore.hub_world import Events
from tests.edgecore.peers import NODE


class Devices:
    """Notes sessions and what comes of source `twin`."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.taken: asyncio.Queue[Message] = asyncio.Queue()

    def node_connected(self, session: Session, /) -> None:
        self.sessions.append(session)

    def node_disconnected(self, session: Session, /) -> None:
        self.sessions.remove(session)

    def take(self, session: Session, message: Message, /) -> None:
        self.taken.put_nowait(message)

    def acknowledged(self, session: Session, message: Message, /) -> None: ...


@pytest.fixture
def devices() -> Devices:
    return Devices()


@pytest.fixture
async def settings(config: EdgeCoreConfig, certificates: Path, devices: Devices) -> AsyncIterator[EdgeHubConfig]:
    """Of an edge hub that dials a CloudHub which runs meanwhile."""
    d = certificates
    context = server_context(ca_file=d / "ca.crt", cert_file=d / "server.crt", key_file=d / "server.key")
    cloud = CloudHub(HubSettings(host="127.0.0.1", port=0), ssl_context=context, devices=devices)
    task = asyncio.create_task(cloud.run())
    await cloud.listening.wait()
    mine = config.modules.edge_hub
    web_socket = msgspec.structs.replace(mine.websocket, server=f"127.0.0.1:{cloud.port}")
    yield msgspec.structs.replace(mine, websocket=web_socket)
    task.cancel()
    await asyncio.wait([task])


async def test_an_upload_that_the_cloud_does_not_take_leaves_the_outbox(
    settings: EdgeHubConfig, tmp_path: Path
) -> None:
    async with Events(settings, tmp_path) as events, asyncio.timeout(15):
        await events.connected.get()
        assert events.hub._connection is not None
        assert events.hub._connection.confirms_uploads
        for number in range(100):
            await events.keep(str(number))
        await events.emptied()
        assert events.count("outbox_dropped_total", "refused") == 100
        assert events.count("outbox_sent_total") == 100


async def test_a_renewed_certificate_changes_over_without_a_gap(
    settings: EdgeHubConfig, devices: Devices, tmp_path: Path
) -> None:
    async with Events(settings, tmp_path) as events, asyncio.timeout(15):
        await events.connected.get()
        while not devices.sessions:  # noqa: ASYNC110 - of the cloud
            await asyncio.sleep(0.01)
        await events.bus.publish(CertificateRenewed())
        await events.lost.get()
        await events.connected.get()
        assert events.hub.link.connected
        last = new_message(source="twin", group="resource", operation="update", resource="device/a/b/x", content=NODE)
        await events.bus.publish(Upstream(last))
        while (await devices.taken.get()).id != last.id:
            pass
        assert events.count("cloud_losses_total", "renewed") == 1
        assert events.count("cloud_connects_total") == 2
