"""The two hubs together: what nobody takes is not kept for ever, and a new connection takes over from the old one."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.cloudhub.session import Session
from cloudedge import Message, new_message, reply
from cloudedge.tls import server_context
from dmi import DeviceId, NodeName, Reported, Twin
from edgecore.bus import CertificateRenewed, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.devicetwin import outbox
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import TwinRow, dirty_devices, open_database, put_twins
from tests.edgecore.hub_world import Events
from tests.edgecore.peers import NODE


class Devices:
    """Notes sessions and what comes of source `twin`."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.taken: asyncio.Queue[Message] = asyncio.Queue()
        self.confirming = False

    def node_connected(self, session: Session, /) -> None:
        self.sessions.append(session)

    def node_disconnected(self, session: Session, /) -> None:
        self.sessions.remove(session)

    def take(self, session: Session, message: Message, /) -> None:
        self.taken.put_nowait(message)
        if self.confirming and message.route.operation == "update":
            session.post(reply(message, source="devicecontroller", group="twin"))

    def acknowledged(self, session: Session, message: Message, /) -> None: ...


class Waiting:
    """As while the API server is away: nobody owns a node yet."""

    def __init__(self) -> None:
        self.back = asyncio.Event()
        self.back.set()

    def acquire_now(self, node: str, /) -> bool:
        return self.back.is_set()

    async def acquire(self, node: str, /) -> None:
        await self.back.wait()

    def released(self, node: str, /) -> None: ...


@pytest.fixture
def owners() -> Waiting:
    return Waiting()


@pytest.fixture
def devices() -> Devices:
    return Devices()


@pytest.fixture
async def settings(
    config: EdgeCoreConfig, certificates: Path, devices: Devices, owners: Waiting
) -> AsyncIterator[EdgeHubConfig]:
    """Of an edge hub that dials a CloudHub which runs meanwhile."""
    d = certificates
    context = server_context(ca_file=d / "ca.crt", cert_file=d / "server.crt", key_file=d / "server.key")
    cloud = CloudHub(HubSettings(host="127.0.0.1", port=0), ssl_context=context, devices=devices, owners=owners)
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


async def test_a_node_with_much_to_say_waits_connected_while_the_cloud_waits_for_its_api(
    settings: EdgeHubConfig, devices: Devices, owners: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand twins, sent again and again for want of a confirmation, would fill what the cloud holds for a node;
    then it reads no more, pings included, and the node takes it for dead.
    """
    monkeypatch.setattr(outbox, "ACK_TIMEOUT_S", 0.5)
    owners.back.clear()
    devices.confirming = True
    row = TwinRow(Twin("p", Reported("1", "int", 1)), version=1)

    def fill(db: sqlite3.Connection) -> None:
        for index in range(1000):
            put_twins(db, DeviceId(f"default/d{index}"), [row])

    async with open_database(tmp_path / "hub.db") as database:
        await database.run(fill)
    async with Events(settings, tmp_path) as events, asyncio.timeout(30):
        sync = CloudSync(events.database, events.bus, node=NodeName(NODE))  # before the hub connects
        running = asyncio.create_task(sync.run())
        await events.connected.get()
        connection = events.hub._connection
        assert connection is not None
        for _ in range(8):
            await asyncio.sleep(0.5)
            await connection.probe()  # it still reads
        monkeypatch.undo()  # on a slow machine a second is not enough for a thousand
        owners.back.set()
        while await events.database.run(dirty_devices):  # noqa: ASYNC110 - rows of a file
            await asyncio.sleep(0.05)
        assert events.hub._connection is connection
        running.cancel()
        await asyncio.wait([running])
