"""What must not be lost: kept through cuts, restarts and kills, in order, until the cloud has it."""

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloudedge import new_message, reply
from cloudedge.listening import ListenerLimits
from cloudedge.message import encode
from edgecore.bus import Upstream, UpstreamKept
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edgehub import kept
from edgecore.store import StoreError, open_database
from edgecore.store.outbox import next_kept, put_kept
from tests.edgecore.hub_world import Events, Wire, upload
from tests.edgecore.peers import FakeCloud
from tests.edgecore.test_flow_disk import no_larger_files, until


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


@pytest.fixture
async def ours(certificates: Path) -> AsyncIterator[FakeCloud]:
    """A cloud that answers uploads, not started yet."""
    cloud = FakeCloud(certificates)
    cloud.confirms_uploads = True
    try:
        yield cloud
    finally:
        await cloud.stop()


def texts(cloud: FakeCloud) -> list[str]:
    return [message.data(str) for message in cloud.uploads]


def at(settings: EdgeHubConfig, *ports: int) -> EdgeHubConfig:
    server = ",".join(f"127.0.0.1:{port}" for port in ports)
    return msgspec.structs.replace(settings, websocket=msgspec.structs.replace(settings.websocket, server=server))


async def test_what_waits_goes_in_order_and_what_comes_follows(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    await cloud.stop()
    async with Events(settings, tmp_path) as events:
        for number in range(2 * kept.WINDOW + 3):
            await events.keep(str(number))
        assert events.count("outbox_messages") == 2 * kept.WINDOW + 3
        await cloud.start()
        await cloud.until(lambda: len(cloud.uploads) >= 2 * kept.WINDOW + 3)
        await events.keep("now")
        await cloud.until(lambda: texts(cloud)[-1:] == ["now"])
        await events.emptied()
        assert texts(cloud) == [*map(str, range(2 * kept.WINDOW + 3)), "now"]
        assert events.count("outbox_arrived_total") == 2 * kept.WINDOW + 4
        assert (events.count("outbox_messages"), events.count("outbox_bytes")) == (0, 0)


async def test_a_cloud_that_answers_is_believed_only_when_it_has_answered(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path
) -> None:
    ours.answers_uploads = False
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events:
        await events.keep("one")
        await events.keep("two")
        await ours.until(lambda: len(ours.uploads) == 2)
        assert events.hub._connection is not None
        await events.hub._connection.probe()  # it has read them, which says nothing
        assert events.count("outbox_messages") == 2
        ours.answers_uploads = True
        await ours.cut()
        await ours.until(lambda: len(ours.uploads) == 4)
        await events.emptied()
        assert texts(ours) == ["one", "two"] * 2
        assert [m.id for m in ours.uploads[:2]] == [m.id for m in ours.uploads[2:]]


async def test_an_answer_that_never_comes_is_asked_for_again(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "AGAIN_S", 0.2)
    ours.answers_uploads = False
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events:
        await events.keep("one")
        await events.keep("two")
        await ours.until(lambda: len(ours.uploads) >= 4)
        ours.answers_uploads = True
        await events.emptied()
        assert ours.connected == 1
        assert texts(ours)[:4] == ["one", "two"] * 2


async def test_what_the_cloud_refuses_is_dropped_and_holds_nothing_up(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path
) -> None:
    ours.answers_uploads = False
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events:
        await events.keep("nobody wants it")
        await ours.until(lambda: len(ours.uploads) == 1)
        first = ours.uploads[0]
        ours.answers_uploads = True
        await ours.send(
            new_message(source="", group="", operation="error", resource="", content="no rule", parent=first.id)
        )
        await events.keep("next")
        await events.emptied()
        assert events.count("outbox_dropped_total", "refused") == 1
        assert events.count("outbox_arrived_total") == 1


async def test_of_one_key_the_newest_goes(settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path) -> None:
    await cloud.stop()
    async with Events(settings, tmp_path) as events:
        for number in range(20):
            await events.keep(f"event {number}")
            await events.keep(f"state {number}", key="state")
        await cloud.start()
        await events.emptied()
        assert texts(cloud) == [*(f"event {number}" for number in range(20)), "state 19"]


async def test_there_is_room_for_so_much_and_the_oldest_goes(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await cloud.stop()
    small = msgspec.structs.replace(settings, outbox_messages=10, outbox_bytes=64 * 1024)
    async with Events(small, tmp_path) as events:
        for number in range(30):
            await events.keep(str(number))
        assert (events.count("outbox_messages"), events.count("outbox_dropped_total", "full")) == (10, 20)
        await events.keep("x" * 60 * 1024)
        assert events.count("outbox_bytes") <= 64 * 1024
        with pytest.raises(StoreError, match="outboxBytes"):
            await events.keep("x" * 70 * 1024)
        assert events.count("outbox_dropped_total", "too large") == 1
        left = int(events.count("outbox_messages"))
        await cloud.start()
        await events.emptied()
        assert texts(cloud)[:-1] == [str(number) for number in range(31 - left, 30)]
        assert events.count("outbox_arrived_total") == left
    assert sum("the oldest is dropped" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("up_bytes", (1500, 2600, 5000))
async def test_a_cut_in_the_middle_of_a_frame_loses_nothing(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, up_bytes: int
) -> None:
    async with Wire(cloud.port) as wire, Events(at(settings, wire.port), tmp_path) as events:
        await events.connected.get()
        for number in range(40):
            await events.keep(f"{number} " + "." * 500)
            if number == 3:
                wire.up_bytes = up_bytes
        await events.emptied()
        assert wire.accepted >= 2
        seen = dict.fromkeys(message.data(str).split(" ")[0] for message in cloud.uploads)
        assert list(seen) == [str(number) for number in range(40)]


async def test_a_stored_message_that_makes_no_sense_is_dropped_alone(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async with open_database(tmp_path / "hub.db") as database:
        bodies = (b"{", encode(upload("good")))
        await database.run(lambda db: [put_kept(db, body, max_messages=9, max_bytes=9999) for body in bodies])
    async with Events(settings, tmp_path) as events:
        await events.emptied()
        assert texts(cloud) == ["good"]
        assert events.count("outbox_dropped_total", "malformed") == 1


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from cloudedge import new_message
from dmi.metrics import Metrics
from edgecore.bus import UpstreamKept
from edgecore.edgehub.kept import KeptMessages
from edgecore.store import open_database

async def main():
    async with open_database(Path(sys.argv[1])) as database:
        kept = KeptMessages(database, max_messages=1000, max_bytes=1 << 20, metrics=Metrics())
        for number in range(200):
            message = new_message(source="bus", group="user", operation="upload", resource="a", content=str(number))
            await kept.keep(UpstreamKept(message))
            print(number, flush=True)
            if number == 117:
                os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_kill_loses_nothing_that_was_said_to_be_kept(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KILLED, str(tmp_path / "hub.db"), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == -9
    numbers = said.decode().split()
    assert len(numbers) == 118
    async with Events(settings, tmp_path) as events:
        await events.emptied()
        assert texts(cloud) == numbers


async def test_a_full_disk_keeps_in_memory_and_writes_back(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.store.worker.PROBE_EVERY_S", 0.05)
    await cloud.stop()
    async with Events(settings, tmp_path) as events:
        await events.keep("on disk")
        with no_larger_files(8192):
            for number in range(50):
                await events.keep(f"{number} " + "." * 2000)
            assert events.database.trouble
            assert events.count("outbox_messages") == 51
        await until(lambda: not events.database.trouble)
        rows = await events.database.run(lambda db: next_kept(db, after=0, limit=99, max_bytes=1 << 20))
        assert len(rows) == 51
        await cloud.start()
        await events.emptied()
        assert [text.split(" ")[0] for text in texts(cloud)] == ["on", *map(str, range(50))]


async def test_what_is_kept_outlives_a_damaged_database(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    """The rows that can be read of the damaged file are sent from the new one."""
    await cloud.stop()
    async with Events(settings, tmp_path) as events:
        for number in range(5):
            await events.keep(str(number))

        def damage(_: sqlite3.Connection) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorname = "SQLITE_CORRUPT"
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            if not events.database._medium.rebuilt:
                raise error

        await events.database.run(damage)
        assert events.database._medium.rebuilt == 1
        await events.keep("5")
        await cloud.start()
        await events.emptied()
        assert texts(cloud) == [str(number) for number in range(6)]
        assert events.count("outbox_messages") == 0


async def test_what_is_lost_with_a_damaged_database_is_not_shown_as_kept(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cloud.stop()
    monkeypatch.setattr("edgecore.store.medium.copy_readable", lambda *_: None)
    async with Events(settings, tmp_path) as events:
        await events.keep("0")
        assert events.count("outbox_messages") == 1

        def damage(_: sqlite3.Connection) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorname = "SQLITE_CORRUPT"
            if not events.database._medium.rebuilt:
                raise error

        await events.database.run(damage)
        await until(lambda: events.count("outbox_messages") == 0)


async def test_what_is_kept_outlives_a_database_that_is_damaged_at_the_start(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    file = tmp_path / "hub.db"
    async with open_database(file) as database:
        bodies = [encode(upload(str(number))) for number in range(5)]
        await database.run(lambda db: [put_kept(db, body, max_messages=9, max_bytes=9999) for body in bodies])
    with contextlib.closing(sqlite3.connect(file)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'twin'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    async with Events(settings, tmp_path) as events:
        assert list(tmp_path.glob("hub.db.damaged-*"))
        await events.emptied()
        assert texts(cloud) == [str(number) for number in range(5)]


async def test_other_messages_are_proved_by_a_ping_from_a_cloud_that_answers_uploads(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path
) -> None:
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events:
        event = new_message(source="edged", group="meta", operation="insert", resource="default/event/x", content={})
        await events.bus.publish(UpstreamKept(event))
        await events.keep("upload")
        await events.emptied()
        assert [m.route.resource for m in ours.messages if m.route.operation == "insert"] == ["default/event/x"]


async def test_a_ping_that_stays_unanswered_is_sent_again(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloud whose socket is full answers none."""
    monkeypatch.setattr(kept, "AGAIN_S", 0.1)
    async with Events(settings, tmp_path) as events:
        await events.connected.get()
        await cloud.until(lambda: cloud.connection is not None)
        connection = cloud.connection
        assert connection is not None
        connection.pause_writing()
        await events.keep("one")
        async with asyncio.timeout(10):
            while not connection.traffic.unanswered:  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.01)
        assert events.count("outbox_messages") == 1
        connection.resume_writing()
        await events.emptied()
        assert (texts(cloud), cloud.connected) == (["one"], 1)


async def test_what_is_too_large_for_the_cloud_costs_one_connection(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path
) -> None:
    """The cloud closes over such a message, and would close over it again and again."""
    ours.limits = ListenerLimits(max_message_bytes=64 * 1024)
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events, asyncio.timeout(10):
        assert (await events.connected.get()).most_bytes == 0
        await events.keep("x" * 70_000)
        await events.keep("x" * 60_000)
        assert (await events.connected.get()).most_bytes == 64 * 1024
        await events.bus.publish(Upstream(upload("x" * 64 * 1024)))
        await events.keep("after")
        await events.emptied()
        assert [len(text) for text in texts(ours)] == [60_000, 5]
        assert events.count("outbox_dropped_total", "too large") == 1
        assert events.count("cloud_too_large_total") == 1
        assert ours.connected == 2


async def test_an_answer_to_something_else_removes_nothing(
    settings: EdgeHubConfig, ours: FakeCloud, tmp_path: Path
) -> None:
    ours.answers_uploads = False
    await ours.start()
    async with Events(at(settings, ours.port), tmp_path) as events:
        await events.keep("one")
        await ours.until(lambda: len(ours.uploads) == 1)
        await ours.send(reply(upload("not sent"), source="cloudhub"))
        await ours.send(reply(upload("nor this"), group="twin"))
        assert events.hub._connection is not None
        await events.hub._connection.probe()
        assert events.count("outbox_messages") == 1
