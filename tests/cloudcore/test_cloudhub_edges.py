"""The hub where two things meet: nodes that wait and are ended, sessions that are replaced, callers that fail."""

import asyncio
from pathlib import Path

import pytest

from cloudcore.cloudhub import HubSettings, Session
from cloudcore.cloudhub import hub as hub_module
from cloudcore.cloudhub.outbox import ANSWER_TRIES, Outbox
from cloudcore.cloudhub.session import TURN
from cloudedge import Message, new_message
from tests.cloudcore.support import until
from tests.cloudcore.test_cloudhub_sessions import World, for_an_app, running


def report(resource: str = "r") -> Message:
    return new_message(source="twin", group="resource", operation="update", resource=resource)


async def test_nodes_that_wait_are_ended_like_those_that_are_served(certs: Path) -> None:
    async with running(certs) as world, world.edge("edge-1") as moved, world.edge("edge-2") as revoked:
        await until(lambda: len(world.gate.asked) == 2)
        world.hub.end_refused()  # nobody is, yet
        world.hub.end("edge-1", "replica b has it")
        await asyncio.wait_for(moved.connection.wait_closed(), 5)
        assert "replica b" in moved.connection._loss()
        assert not revoked.connection.is_closed
        world.gate.banned.add("edge-2")
        world.hub.end_refused()
        await asyncio.wait_for(revoked.connection.wait_closed(), 5)
        assert "revoked" in revoked.connection._loss()
        await until(lambda: sorted(world.gate.freed) == ["edge-1", "edge-2"])
        assert not world.devices.sessions


async def test_a_node_whose_owner_cannot_be_settled_tries_again(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(certs) as world:
        acquire = world.gate.acquire

        async def fail(node: str, /) -> None:
            monkeypatch.setattr(world.gate, "acquire", acquire)
            raise RuntimeError("a fault of the owners")

        monkeypatch.setattr(world.gate, "acquire", fail)
        world.gate.open.set()
        async with world.edge() as edge:
            await asyncio.wait_for(edge.connection.wait_closed(), 5)
            assert "does not own the node" in edge.connection._loss()
        async with world.edge() as edge:
            await edge.answer(await edge.send(source="twin", group="resource", operation="update", resource="r"))


async def test_nodes_that_come_at_once_are_counted_again(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(certs, HubSettings(host="127.0.0.1", port=0, node_limit=1)) as world:
        world.gate.open.set()
        is_full, free = world.hub._is_full, ["edge-1", "edge-2"]  # as both find it before either is in

        def asked(node: str) -> bool:
            if node in free:
                free.remove(node)
                return False
            return is_full(node)

        monkeypatch.setattr(world.hub, "_is_full", asked)
        async with world.edge("edge-1"), world.edge("edge-2") as late:
            await asyncio.wait_for(late.connection.wait_closed(), 5)
            assert "limit" in late.connection._loss()
            assert world.hub.nodes == {"edge-1"}
            assert world.metric("kubetwin_cloudcore_connections_refused_total", "node limit") == 1
        await until(lambda: world.gate.freed)
        assert (world.gate.asked, world.gate.freed) == (["edge-1"], ["edge-1"]), "the other is nobody's to own"


async def test_a_session_that_is_replaced_is_not_listened_to(certs: Path) -> None:
    async with running(certs) as world:
        world.gate.open.set()
        async with world.edge():
            await until(lambda: world.devices.sessions)
            async with world.edge() as new:
                await new.answer(await new.send(source="twin", group="resource", operation="update", resource="new"))
                old = world.devices.sessions[0]
                world.hub._take(old, report("old"))  # it came before the old connection was closed
                assert [message.route.resource for message in world.devices.taken] == ["new"]
                assert world.metric("kubetwin_cloudcore_messages_received_total", "twin") == 1
                assert world.hub._sessions["edge-1"] is world.devices.sessions[1]
        await until(lambda: world.gate.freed)
        assert world.devices.gone == world.devices.sessions[1:], "only of the one that counted"


async def test_a_message_that_cannot_be_taken_ends_nothing(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(certs) as world:
        world.gate.open.set()
        take = world.devices.take

        def choosy(session: Session, message: Message, /) -> None:
            if message.route.resource == "bad":
                raise RuntimeError("a fault of the handler")
            take(session, message)

        monkeypatch.setattr(world.devices, "take", choosy)
        async with world.edge() as edge:
            await edge.send(source="twin", group="resource", operation="update", resource="bad")
            await edge.answer(await edge.send(source="twin", group="resource", operation="update", resource="good"))


async def test_a_node_that_was_heard_meanwhile_is_looked_at_again(certs: Path) -> None:
    async with running(certs) as world, world.edge():
        world.gate.open.set()
        await until(lambda: world.devices.sessions and world.devices.sessions[0]._timer)
        session, now = world.devices.sessions[0], asyncio.get_running_loop().time()
        assert session._timer is not None
        session._timer.cancel()
        session.keep_alive()
        session._look()  # when its keepalive was due before that one
        assert session._timer is not None, "else it may fall silent, and nobody ever looks"
        assert session._timer.when() >= now + HubSettings().keepalive_s


async def test_a_node_that_stops_reading_is_closed_before_its_keepalive_is_due(certs: Path) -> None:
    async with running(certs, HubSettings(host="127.0.0.1", port=0, write_timeout_s=0.1)) as world:
        world.gate.open.set()
        async with world.edge() as edge:
            await until(lambda: world.devices.sessions)
            session = world.devices.sessions[0]
            session.connection.pause_writing()  # as its socket does
            session.post(for_an_app("x"))
            await asyncio.wait_for(edge.connection.wait_closed(), 5)
            assert "it has not read" in edge.connection._loss()
        await until(lambda: world.metric("kubetwin_cloudcore_sessions_ended_total", "not reading") == 1)


async def test_more_than_one_turn_holds_goes_out_in_order(certs: Path) -> None:
    async with running(certs) as world:
        world.gate.open.set()
        async with world.edge() as edge:
            await until(lambda: world.devices.sessions)
            texts = [str(number) for number in range(3 * TURN)]
            for text in texts:
                world.devices.sessions[0].post(for_an_app(text))
            await until(lambda: len(edge.received) == len(texts))
            assert [message.data(str) for message in edge.received] == texts


async def test_an_answer_that_nobody_acknowledges_is_given_up_and_counted(certs: Path) -> None:
    async with running(certs) as world:
        world.gate.open.set()
        async with world.edge() as edge:
            await until(lambda: world.devices.sessions)
            session = world.devices.sessions[0]
            session._outbox = Outbox(resend_s=0.005)
            session.post(
                new_message(
                    source="edgecontroller",
                    group="resource",
                    operation="response",
                    resource="default/secret/s",
                    parent="asked",
                    content={"a": 1},
                )
            )
            await until(
                lambda: world.metric("kubetwin_cloudcore_messages_dropped_total", "answer never acknowledged") == 1
            )
            assert world.metric("kubetwin_cloudcore_resends_total") == ANSWER_TRIES - 1
            await until(lambda: len(edge.received) == ANSWER_TRIES)
            assert len({message.id for message in edge.received}) == 1
            assert session.outbox.held_bytes == session.outbox.answer_bytes == 0


async def test_refusals_are_remembered_and_named_up_to_a_number(
    certs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "_MAX_REFUSALS", 3)
    monkeypatch.setattr(hub_module, "_REFUSAL_LINES", 5)
    world = World(certs, HubSettings())
    hub = world.hub
    for number in range(20):
        hub._note_refusal("x", f"node-{number}", "no")
        assert len(hub._refusals) <= 3
    assert sum("refused: no" in record.getMessage() for record in caplog.records) == 4
    assert sum("more nodes are refused" in record.getMessage() for record in caplog.records) == 1
    assert hub.counts["refused: x"] == world.metric("kubetwin_cloudcore_connections_refused_total", "x") == 20
