"""Sessions over their life: owners, admission, what is kept between connections, uploads, and what shows of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudcore.cloudhub import CloudHub, HubSettings, Session
from cloudcore.cloudhub.outbox import OVERHEAD
from cloudcore.cloudhub.waiting import KEEP_S, MAX_MESSAGES, Leftovers
from cloudedge import ConnectionRefused, Message, new_message, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from dmi.metrics import Metrics
from tests.cloudcore.support import Edge, until

HUB = HubSettings(host="127.0.0.1", port=0, node_limit=2)


class Handler:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.gone: list[Session] = []
        self.taken: list[Message] = []

    def node_connected(self, session: Session, /) -> None:
        self.sessions.append(session)

    def node_disconnected(self, session: Session, /) -> None:
        self.gone.append(session)

    def take(self, session: Session, message: Message, /) -> None:
        self.taken.append(message)
        session.post(new_message(source="c", group="twin", operation="response", resource="r", parent=message.id))

    def acknowledged(self, session: Session, message: Message, /) -> None: ...


class Gate:
    """Owners and admission that a test opens and closes."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked: list[str] = []
        self.freed: list[str] = []
        self.banned: set[str] = set()

    def acquire_now(self, node: str, /) -> bool:
        return False

    async def acquire(self, node: str, /) -> None:
        self.asked.append(node)
        await self.open.wait()

    def released(self, node: str, /) -> None:
        self.freed.append(node)

    def refusal(self, node: str, _: Mapping[str, Any] | None, /) -> str:
        return "revoked" if node in self.banned else ""


class World:
    def __init__(self, certs: Path, settings: HubSettings) -> None:
        self.certs = certs
        self.devices, self.gate, self.metrics = Handler(), Gate(), Metrics()
        context = tls.server_context(
            ca_file=certs / "ca.crt", cert_file=certs / "server.crt", key_file=certs / "server.key"
        )
        self.hub = CloudHub(
            settings,
            ssl_context=context,
            devices=self.devices,
            admission=self.gate,
            owners=self.gate,
            metrics=self.metrics,
        )

    async def dial(self, node: str = "edge-1", *, certificate: str = "") -> Connection:
        certs, name = self.certs, certificate or node
        context = tls.client_context(
            ca_file=certs / "ca.crt", cert_file=certs / f"{name}.crt", key_file=certs / f"{name}.key"
        )
        return await connect(f"wss://127.0.0.1:{self.hub.port}", node=node, ssl_context=context)

    @asynccontextmanager
    async def edge(self, node: str = "edge-1") -> AsyncIterator[Edge]:
        edge = Edge(await self.dial(node), node)
        receiving = asyncio.create_task(edge.run())
        try:
            yield edge
        finally:
            await edge.connection.close()
            await receiving

    def metric(self, name: str, *labels: str) -> float:
        source: Any = self.metrics.entries[name].source
        values = source.read() if hasattr(source, "read") else source.values
        return float(values.get(labels, 0))


@asynccontextmanager
async def running(certs: Path, settings: HubSettings = HUB) -> AsyncIterator[World]:
    world = World(certs, settings)
    serving = asyncio.create_task(world.hub.run())
    try:
        await world.hub.listening.wait()
        yield world
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@pytest.fixture
async def world(certs: Path) -> AsyncIterator[World]:
    async with running(certs) as world:
        yield world


async def test_nothing_is_told_or_taken_before_the_node_is_owned(world: World) -> None:
    async with world.edge() as edge:
        sent = await edge.send(source="twin", group="resource", operation="update", resource="r")
        await until(lambda: world.gate.asked)
        assert world.metric("kubetwin_cloudcore_nodes_waiting") == 1
        await asyncio.sleep(0.05)
        assert not world.devices.sessions
        assert not edge.received
        world.gate.open.set()
        await edge.answer(sent)
        assert world.hub.nodes == {"edge-1"}
        assert world.metric("KubeEdge_CloudHub_connected_nodes") == 1
    await until(lambda: world.gate.freed == ["edge-1"])
    assert len(world.devices.gone) == 1


async def test_nodes_that_wait_count_and_the_newest_connection_of_each_stays(world: World) -> None:
    async with world.edge("edge-1") as old, world.edge("edge-2"):
        await until(lambda: len(world.gate.asked) == 2)
        with pytest.raises(ConnectionRefused, match="503"):
            await world.dial("edge-3", certificate="edge-1")
        async with world.edge("edge-1") as new:
            await asyncio.wait_for(old.connection.wait_closed(), 5)
            await until(lambda: len(world.gate.asked) == 3)
            assert not world.gate.freed
            world.gate.open.set()
            await new.answer(await new.send(source="twin", group="resource", operation="update", resource="r"))
            assert world.hub.nodes == {"edge-1", "edge-2"}


async def test_a_node_that_leaves_while_it_waits_leaves_nothing_behind(world: World) -> None:
    async with world.edge():
        await until(lambda: world.gate.asked)
    await until(lambda: world.metric("kubetwin_cloudcore_nodes_waiting") == 0)
    assert not world.devices.sessions
    await until(lambda: world.gate.freed)


async def test_a_node_that_falls_silent_while_it_waits_is_closed(certs: Path) -> None:
    async with running(certs, HubSettings(host="127.0.0.1", port=0, keepalive_s=0.3)) as world, world.edge() as edge:
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
        assert not world.devices.sessions


async def test_refused_nodes_are_ended_live_and_told_why(world: World) -> None:
    world.gate.open.set()
    async with world.edge("edge-1") as revoked, world.edge("edge-2"):
        await until(lambda: len(world.hub.nodes) == 2)
        world.gate.banned.add("edge-1")
        world.hub.end_refused()
        await asyncio.wait_for(revoked.connection.wait_closed(), 5)
        assert "revoked" in revoked.connection._loss()
        await until(lambda: world.hub.nodes == {"edge-2"})
        again = await world.dial("edge-1")
        await asyncio.wait_for(again.wait_closed(), 5)
        assert world.metric("kubetwin_cloudcore_connections_refused_total", "not admitted") == 2
        assert world.metric("kubetwin_cloudcore_sessions_ended_total", "refused") == 1


async def test_a_node_that_another_replica_has_is_ended(world: World) -> None:
    world.gate.open.set()
    async with world.edge() as edge:
        await until(lambda: world.hub.nodes)
        world.hub.end("edge-1", "replica b has it")
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
        assert "replica b" in edge.connection._loss()


async def test_paths_of_other_nodes_reach_nobody(world: World) -> None:
    world.gate.open.set()
    async with world.edge() as edge:
        for resource in ("node/edge-2/default/device/d", "device/../d/twin/edge_updated", "a\r\nb"):
            await edge.send(source="twin", group="resource", operation="update", resource=resource)
        good = await edge.send(source="twin", group="resource", operation="update", resource="r")
        await edge.answer(good)
        assert [message.id for message in world.devices.taken] == [good.id]
        assert world.metric("kubetwin_cloudcore_messages_dropped_total", "malformed resource") == 2
        assert world.metric("kubetwin_cloudcore_messages_dropped_total", "malformed resource of another node") == 1


def for_an_app(text: str) -> Message:
    return new_message(source="router_eventbus", group="user", operation="publish", resource="default/t", content=text)


async def test_what_an_app_is_to_have_waits_for_the_next_connection(world: World) -> None:
    world.gate.open.set()
    first = await world.dial()
    await until(lambda: world.devices.sessions)
    session = world.devices.sessions[0]
    session.connection.pause_writing()  # as a node that does not read
    session.post(for_an_app("a"))
    session.post(new_message(source="devicecontroller", group="twin", operation="update", resource="membership"))
    session.post(for_an_app("b"))
    await asyncio.sleep(0)
    await first.close()
    await until(lambda: world.devices.gone)
    async with world.edge() as edge:
        await until(lambda: len(edge.received) == 2)
        assert [message.data(str) for message in edge.received] == ["a", "b"]


async def test_uploads_that_nobody_takes_are_refused_so_that_nodes_forget_them(world: World) -> None:
    world.gate.open.set()
    async with world.edge() as edge:
        assert edge.connection.confirms_uploads
        answer = await edge.answer(await edge.send(source="bus", group="user", operation="upload", resource="a/../b"))
        assert (answer.route.operation, answer.route.group) == ("error", "user")
        assert world.metric("kubetwin_cloudcore_messages_received_total", "upload") == 1
        assert world.metric("kubetwin_cloudcore_messages_dropped_total", "not served yet") == 1


async def test_what_is_acknowledged_and_what_is_not_shows(world: World) -> None:
    world.gate.open.set()
    async with world.edge() as edge:
        edge.acknowledging = False
        await until(lambda: world.devices.sessions)
        session = world.devices.sessions[0]
        sent = new_message(
            source="edgecontroller", group="resource", operation="update", resource="default/pod/p", content={"a": 1}
        )
        session.post(sent)
        await until(lambda: edge.received)
        assert world.metric("kubetwin_cloudcore_in_flight") == 1
        assert world.metric("kubetwin_cloudcore_outbox_bytes") == sent.size + OVERHEAD
        assert world.metric("kubetwin_cloudcore_oldest_unacknowledged_seconds") > 0
        await edge.send(source="x", group="resource", operation="response", resource="r", parent=sent.id)
        await until(lambda: world.metric("kubetwin_cloudcore_acknowledged_total") == 1)
        assert world.metric("kubetwin_cloudcore_in_flight") == 0
        assert 0 < world.metric("kubetwin_cloudcore_acknowledgement_seconds_total") < 60
        assert world.metric("kubetwin_cloudcore_messages_sent_total", "object") == 1
        assert world.metric("kubetwin_cloudcore_channel_sent_bytes_total") > 100


async def test_leftovers_are_bounded_and_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    leftovers = Leftovers()
    leftovers.keep("a", [for_an_app(str(number)) for number in range(MAX_MESSAGES + 3)])
    assert leftovers.dropped == 3
    assert leftovers.take("a")[0].data(str) == "3"
    assert leftovers.take("a") == []
    big = [for_an_app("x" * 1024 * 1024)]
    for number in range(20):
        leftovers.keep(f"node-{number}", big)
    assert leftovers.take("node-0") == []
    assert leftovers.take("node-19") == big
    loop, late = asyncio.get_running_loop(), asyncio.get_running_loop().time() + KEEP_S + 1
    monkeypatch.setattr(loop, "time", lambda: late)
    assert leftovers.take("node-18") == []
