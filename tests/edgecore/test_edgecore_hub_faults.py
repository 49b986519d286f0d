"""The hub on bad paths: silent, stuffed, cut in a frame, closed with a reason; and with several addresses."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picows import WSCloseCode

from cloudedge import ConnectionLost, Message, new_message
from dmi import ConfigError
from edgecore.bus import ObjectMessage, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edgehub import dialling, hub
from edgecore.edgehub.addresses import Addresses
from edgecore.store import get_object, open_database
from tests.edgecore.conftest import Edge
from tests.edgecore.hub_world import Events, Wire
from tests.edgecore.peers import FakeCloud, device_object, model_object, object_message


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


def at(settings: EdgeHubConfig, *ports: int, **options: float) -> EdgeHubConfig:
    server = ", ".join(f"127.0.0.1:{port}" for port in ports)
    web_socket = msgspec.structs.replace(settings.websocket, server=server, **options)
    return msgspec.structs.replace(settings, websocket=web_socket)


@pytest.fixture
async def other(certificates: Path) -> AsyncIterator[FakeCloud]:
    cloud = FakeCloud(certificates)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


async def test_a_path_that_falls_silent_is_noticed_by_a_ping(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudedge.dialling._PING_IDLE_S", 0.3)
    async with (
        Wire(cloud.port) as wire,
        Events(at(settings, wire.port, read_deadline=0.3), tmp_path) as events,
        asyncio.timeout(10),
    ):
        await events.connected.get()
        wire.silent = True
        await events.keep("into the void")
        await events.lost.get()
        assert "does not answer a ping" in events.hub.link.trouble
        wire.silent = False
        await events.connected.get()
        await events.emptied()
        assert [m.data(str) for m in cloud.uploads] == ["into the void"]
        assert events.count("cloud_losses_total", "silent") == 1


async def test_a_cloud_that_takes_nothing_is_given_up_at_the_write_deadline(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async with (
        Wire(cloud.port) as wire,
        Events(at(settings, wire.port, write_deadline=0.3), tmp_path) as events,
        asyncio.timeout(20),
    ):
        await events.connected.get()
        wire.stuffed.clear()
        big = new_message(source="twin", group="resource", operation="update", resource="x", content="x" * 4_000_000)

        async def fill() -> None:
            while True:
                await events.bus.publish(Upstream(big))

        with pytest.raises(ConnectionLost, match="took nothing"):
            await fill()
        await events.lost.get()
        assert events.count("cloud_losses_total", "stuck") == 1
        wire.stuffed.set()
        await events.connected.get()


async def test_a_reason_that_the_cloud_gives_is_shown(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        assert cloud.connection is not None
        cloud.connection.hang_up(WSCloseCode.TRY_AGAIN_LATER, "the node limit is reached")
        await events.lost.get()
        assert "the node limit is reached" in events.hub.link.trouble
        assert events.count("cloud_losses_total", "closed") == 1
        await events.connected.get()


@pytest.mark.parametrize("down_bytes", (60, 700, 5000))
async def test_a_cut_in_the_middle_of_what_the_cloud_sends_leaves_nothing_behind(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, down_bytes: int
) -> None:
    """Half a message is forgotten with its connection; what comes over the next one is whole."""
    taken: list[Message] = []
    arrived = asyncio.Event()

    async def take(event: ObjectMessage) -> None:
        taken.append(event.message)
        arrived.set()

    async with Wire(cloud.port) as wire, Events(at(settings, wire.port), tmp_path) as events, asyncio.timeout(10):
        events.bus.subscribe(ObjectMessage, take)
        await events.connected.get()
        wire.down_bytes = down_bytes
        large = {
            **model_object(),
            "filler": "x" * 20_000,
            "metadata": {**model_object()["metadata"], "resourceVersion": "1"},
        }
        await cloud.send(object_message("insert", large))
        await events.lost.get()
        assert not taken
        await events.connected.get()
        await cloud.send(object_message("insert", large))
        await arrived.wait()
        assert taken[0].data()["filler"] == "x" * 20_000


# Several addresses


def test_addresses_are_tried_in_turn_and_the_one_that_worked_goes_first() -> None:
    addresses = Addresses(" a:1, b:2,,a:1 ,c:3")
    assert str(addresses) == "wss://a:1, wss://b:2, wss://c:3"
    assert [(addresses.current, addresses.failed()) for _ in range(4)] == [
        ("wss://a:1", False),
        ("wss://b:2", False),
        ("wss://c:3", True),
        ("wss://a:1", False),
    ]
    addresses.worked()
    assert [(addresses.current, addresses.failed()) for _ in range(3)] == [
        ("wss://b:2", False),
        ("wss://c:3", False),
        ("wss://a:1", True),
    ]
    for empty in ("", " , "):
        with pytest.raises(ConfigError, match="no address"):
            Addresses(empty)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_between_two_pauses_every_address_is_tried_once(outcomes: list[bool], count: int) -> None:
    addresses = Addresses(",".join(f"h{n}:1" for n in range(count)))
    tried: list[str] = []
    for works in outcomes:
        tried.append(addresses.current)
        if works:
            addresses.worked()
            assert addresses.current == tried[-1]
            tried.clear()
        elif addresses.failed():
            assert len(set(tried)) == len(tried) == count
            tried.clear()


async def test_a_dead_address_is_passed_over_at_once(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "retry_delays", lambda: iter([3600.0]))
    async with Wire(1) as dead:
        port = dead.port
    async with Events(at(settings, port, cloud.port), tmp_path) as events, asyncio.timeout(10):
        connected = await events.connected.get()
        assert connected.url == f"wss://127.0.0.1:{cloud.port}"
        assert events.hub.link.url == connected.url
        assert (events.hub.link.connected, events.hub.link.trouble) == (True, "")
        assert events.count("cloud_dial_failures_total", "unreachable") == 1


async def test_an_address_that_does_not_answer_is_overtaken(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a router that drops packets. The dial that lost ends at once, and not at its timeout."""
    monkeypatch.setattr(dialling, "NEXT_AFTER_S", 0.1)
    monkeypatch.setattr(hub, "STABLE_AFTER_S", 0.0)
    ended = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                pass
        ended.set()
        writer.transport.abort()

    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    async with Events(at(settings, port, cloud.port), tmp_path) as events, asyncio.timeout(10):
        connected = await events.connected.get()
        assert connected.url == f"wss://127.0.0.1:{cloud.port}"
        await ended.wait()
        assert events.count("cloud_dial_failures_total", "overtaken") == 1
        assert cloud.connected == 1
        await cloud.cut()
        assert (await events.connected.get()).url == connected.url  # what worked goes first
        assert events.count("cloud_dial_failures_total", "overtaken") == 1
    mute.close()
    await mute.wait_closed()


async def test_of_two_that_are_there_at_once_one_is_let_go(
    settings: EdgeHubConfig, cloud: FakeCloud, other: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "NEXT_AFTER_S", 0.0)
    async with Events(at(settings, cloud.port, other.port), tmp_path) as events, asyncio.timeout(10):
        url = (await events.connected.get()).url
        won, lost = (cloud, other) if url.endswith(str(cloud.port)) else (other, cloud)
        await won.until(lambda: won.connection is not None)
        if lost.connection is not None:
            await lost.connection.wait_closed()
        assert events.hub.link.connected
        assert events.count("cloud_connects_total") == 1


async def test_an_address_that_throws_us_out_is_not_stuck_to(
    settings: EdgeHubConfig, cloud: FakeCloud, other: FakeCloud, tmp_path: Path
) -> None:
    async with Events(at(settings, cloud.port, other.port), tmp_path) as events, asyncio.timeout(10):
        assert (await events.connected.get()).url.endswith(str(cloud.port))
        assert cloud.connection is not None
        cloud.connection.hang_up(WSCloseCode.TRY_AGAIN_LATER, "full")
        assert (await events.connected.get()).url.endswith(str(other.port))


async def test_after_a_good_connection_its_address_goes_first(
    settings: EdgeHubConfig, cloud: FakeCloud, other: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "STABLE_AFTER_S", 0.0)
    async with Events(at(settings, cloud.port, other.port), tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        await cloud.cut()
        assert (await events.connected.get()).url.endswith(str(cloud.port))
        await cloud.stop()
        assert (await events.connected.get()).url.endswith(str(other.port))
        assert other.connected == 1


async def test_what_is_wrong_with_each_address_is_said_once(
    settings: EdgeHubConfig,
    cloud: FakeCloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dialling, "FIRST_RETRY_S", 0.11)
    monkeypatch.setattr(dialling, "MAX_RETRY_S", 0.12)
    await cloud.stop()
    async with Wire(1) as one, Wire(1) as two:
        ports = (one.port, two.port)
    async with Events(at(settings, *ports), tmp_path) as events, asyncio.timeout(10):
        while events.count("cloud_dial_failures_total", "unreachable") < 8:  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.02)
        link = events.hub.link
        assert link.url == f"wss://127.0.0.1:{ports[0]}, wss://127.0.0.1:{ports[1]}"
        assert all(str(port) in link.trouble for port in ports)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2


async def test_a_host_that_cannot_be_one_is_named_and_the_next_is_dialled(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = f"a..b:1,127.0.0.1:{cloud.port}"
    odd = msgspec.structs.replace(settings, websocket=msgspec.structs.replace(settings.websocket, server=servers))
    async with Events(odd, tmp_path) as events, asyncio.timeout(10):
        assert (await events.connected.get()).url.endswith(str(cloud.port))
        assert events.count("cloud_dial_failures_total", "address") == 1
    (warning,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert "wss://a..b:1 is no address" in warning.getMessage()
    assert warning.exc_info is None


async def test_the_end_is_no_fault_of_the_address_that_is_dialled(
    settings: EdgeHubConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dialled = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with Events(at(settings, mute.sockets[0].getsockname()[1]), tmp_path) as events, asyncio.timeout(10):
        await dialled.wait()
    assert events.count("cloud_dial_failures_total", "overtaken") == 0
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    mute.close()
    await mute.wait_closed()


async def test_what_nothing_takes_is_remembered_by_its_beginning(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the kinds of messages that were dropped there is a list, and the cloud writes their names."""
    caplog.set_level(logging.DEBUG)
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        for number in range(2):
            operation = "x" * 300_000 + str(number)
            await cloud.send(new_message(source="x", group="x", operation=operation, resource="x"))
        while events.count("cloud_not_taken_total") < 2:  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.02)
        assert events.hub._not_taken == {"x" * 200: 2}


# The whole edge core


async def test_an_acknowledgement_that_went_with_the_link_is_made_up_for(
    settings: EdgeHubConfig, config: EdgeCoreConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    """The cloud sends again what was not acknowledged, over the next connection, under the same id or another: it is
    acknowledged then, stored once, and never goes back to what it was before.
    """
    async with Wire(cloud.port) as wire:
        modules = msgspec.structs.replace(config.modules, edge_hub=at(settings, wire.port))
        edge = Edge(msgspec.structs.replace(config, modules=modules))
        await edge.start()
        try:
            await cloud.put(model_object())
            old, new = cloud.keep(device_object()), cloud.keep(device_object())
            newer, older = object_message("update", new), object_message("insert", old)
            connection = cloud.connection
            assert connection is not None
            wire.up_bytes = 40  # the acknowledgement breaks off
            await connection.send(newer)
            await cloud.until(lambda: cloud.connected >= 2)
            assert newer.id not in cloud.acknowledged
            for message in (newer, older, newer):
                await cloud.send(message)
            await cloud.until(lambda: {newer.id, older.id} <= cloud.acknowledged)
        finally:
            await edge.stop()
    async with open_database(Path(config.database.data_source)) as database:
        stored = await database.run(lambda db: get_object(db, "device", "default", "boiler-1"))
    assert stored is not None
    assert stored.version == new["metadata"]["resourceVersion"]
