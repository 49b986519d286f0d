"""What the hub and those who ask through it seldom meet: faults of their own, a store that fails, no answer."""

import asyncio
import itertools
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from picows import WSCloseCode

from cloudedge import MalformedMessage, reply
from edgecore.bus import Bus, Reply, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edged import asking
from edgecore.edged.asking import NoAnswer, Questions
from edgecore.edgehub import hub, kept
from edgecore.edgehub.asked import _MOST, Asked
from edgecore.joining import joining, worker
from edgecore.joining.identity import Identity, NodeFiles, NoIdentity
from edgecore.joining.job import Job, Outcome
from edgecore.joining.joining import Joining
from edgecore.joining.pair import clear_up, write_file
from edgecore.joining.request import JoinError, _Answer, read_token
from edgecore.store import StoreError
from tests.edgecore.hub_world import Events
from tests.edgecore.peers import FakeCloud
from tests.edgecore.test_edgecore_hub_answers import question
from tests.edgecore.test_edgecore_hub_kept import texts


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


async def test_a_fault_of_the_hub_is_shown_and_not_the_end(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "retry_delays", lambda: itertools.repeat(0.01))
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        dial, troubles = events.hub._dialler.dial_first, [""]

        async def fail(urls: Any) -> Any:
            troubles.append(events.hub.link.trouble)
            if len(troubles) == 2:
                raise RuntimeError("a fault of ours")
            return await dial(urls)

        monkeypatch.setattr(events.hub._dialler, "dial_first", fail)
        await events.connected.get()
        assert "a fault of ours" in troubles[2]
        assert events.count("cloud_losses_total", "failed") == 1
        assert (events.hub.link.connected, events.hub.link.trouble) == (True, "")


async def test_the_next_address_is_dialled_without_a_pause(
    settings: EdgeHubConfig, cloud: FakeCloud, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "retry_delays", lambda: itertools.repeat(3600.0))
    other = FakeCloud(certificates)
    await other.start()
    try:
        server = f"127.0.0.1:{cloud.port},127.0.0.1:{other.port}"
        web_socket = msgspec.structs.replace(settings.websocket, server=server)
        both = msgspec.structs.replace(settings, websocket=web_socket)
        async with Events(both, tmp_path) as events, asyncio.timeout(10):
            await events.connected.get()
            assert cloud.connection is not None
            cloud.connection.hang_up(WSCloseCode.TRY_AGAIN_LATER, "full")
            assert (await events.connected.get()).url.endswith(str(other.port))
    finally:
        await other.stop()


async def test_what_is_kept_goes_though_the_store_failed_to_read_it(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_STORE_RETRY_S", 0.01)
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        run, idle, failed = events.database.run, asyncio.Event(), asyncio.Event()

        async def fail(job: Any, **more: Any) -> Any:
            found = await run(job, **more)
            if more:  # a write
                return found
            if not found and texts(cloud):  # from now on only what is put in has it read again
                idle.set()
            if not found or not idle.is_set():
                return found
            monkeypatch.setattr(events.database, "run", run)
            failed.set()
            raise StoreError("the disk is away")

        monkeypatch.setattr(events.database, "run", fail)
        await events.keep("a")
        await idle.wait()
        await events.keep("b")
        await failed.wait()
        await cloud.until(lambda: texts(cloud) == ["a", "b"])
        await events.emptied()
        assert events.count("cloud_sent_total") == events.count("outbox_sent_total") == 2


async def test_what_stays_unanswered_is_asked_for_seldom_but_for_ever(
    settings: EdgeHubConfig, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "AGAIN_S", 0.005)
    monkeypatch.setattr(kept, "SELDOM_S", 0.01)
    cloud = FakeCloud(certificates)
    cloud.confirms_uploads, cloud.answers_uploads = True, False
    await cloud.start()
    try:
        web_socket = msgspec.structs.replace(settings.websocket, server=f"127.0.0.1:{cloud.port}")
        async with Events(msgspec.structs.replace(settings, websocket=web_socket), tmp_path) as events:
            await events.keep("a")
            await cloud.until(lambda: len(cloud.uploads) >= 16)  # with pauses that double, after three minutes
            assert set(texts(cloud)) == {"a"}
    finally:
        await cloud.stop()


def test_questions_are_remembered_up_to_a_number() -> None:
    asked, first = Asked(), question()
    asked.note(first, 0.0)
    others = [question() for _ in range(_MOST)]
    for one in others:
        asked.note(one, 0.0)
    assert asked.is_late(reply(first), 0.0)
    assert not any(asked.is_late(reply(one), 0.0) for one in others)


async def test_a_question_without_an_answer_ends_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.02)
    bus = Bus()
    questions = Questions(bus, source="edged")
    with pytest.raises(NoAnswer, match="query r"):
        await questions.ask("query", "r")
    assert not questions._waiting


async def test_an_answer_that_carries_no_object_is_told() -> None:
    bus = Bus()
    questions = Questions(bus, source="edged")

    async def answer(event: Upstream) -> None:
        for content in ([1], "OK"):  # what comes twice is taken once
            await bus.publish(Reply(reply(event.message, source="edgecontroller", group="resource", content=content)))

    bus.subscribe(Upstream, answer)
    with pytest.raises(MalformedMessage, match="no object"):
        await questions.ask("query", "r")
    assert not questions._waiting


async def test_an_answer_that_says_no_more_than_ok_is_an_empty_object() -> None:
    bus = Bus()
    questions = Questions(bus, source="edged")

    async def answer(event: Upstream) -> None:
        await bus.publish(Reply(reply(event.message, source="edgecontroller", group="resource", content="OK")))

    bus.subscribe(Upstream, answer)
    assert await questions.ask("update", "r") == {}


@pytest.mark.parametrize("token", ("", "a.b.c", "a.b..d", "a.b.c.d.e", "a.b\n.c.d", "a.b\x00.c.d", "a.ü.c.d"))
def test_what_is_no_token_is_said_without_it(token: str) -> None:
    with pytest.raises(JoinError) as refused:
        read_token(token)
    assert refused.value.final
    assert not token or token not in str(refused.value)
    assert read_token(" AB.b.c.d\n").bearer == "b.c.d"


def test_what_a_cloud_says_is_shown_on_one_line() -> None:
    assert _Answer(503, b"no\r\n\x1b[31mred").said() == "503 'no   [31mred'"
    assert _Answer(500, b"\n").said() == "500"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    path, fsync = tmp_path / "key", os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_file(path, b"content", 0o600)
    assert synced[0] == (len(b"content"), False)
    assert len(synced) == 2, "and its name too"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(OSError, match="key"):
        write_file(tmp_path / "key", b"x", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = (".key.123", ".crt.77", ".ca.9", ".key.trial7")
    stays = ("key", "crt", "ca", ".key.new", ".other.123", "key.123")
    for name in (*left, *stays):
        (tmp_path / name).touch()
    (tmp_path / ".key.0").mkdir()  # it cannot be removed so
    clear_up(NodeFiles(*(str(tmp_path / name) for name in ("ca", "crt", "key"))))
    assert {path.name for path in tmp_path.iterdir()} == {*stays, ".key.0"}


class Renewing:
    """What keeps a node's certificate, without the process that asks for one."""

    def __init__(self, config: EdgeHubConfig, monkeypatch: pytest.MonkeyPatch, *, rotate: bool = True) -> None:
        self.jobs: list[str] = []
        settings = msgspec.structs.replace(config, rotate_certificates=rotate)
        self.joining = Joining(settings, node="edge-1", bus=Bus())

        async def run_job(job: Job) -> Outcome:
            self.jobs.append(job.what)
            return Outcome()

        monkeypatch.setattr(joining, "run_job", run_job)


OVERDUE = Identity("1", 0.0, 1.0)


async def test_certificates_are_renewed_where_that_is_wanted(
    settings: EdgeHubConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = Renewing(settings, monkeypatch, rotate=False)
    await by_hand.joining._renew_if_due(OVERDUE)
    assert not by_hand.jobs
    good = Identity("2", time.time(), time.time() + 1000)
    monkeypatch.setattr(joining, "read_identity", lambda *_: good)
    renewing = Renewing(settings, monkeypatch)
    await renewing.joining._renew_if_due(good)
    assert not renewing.jobs
    await renewing.joining._renew_if_due(OVERDUE)
    assert (renewing.jobs, renewing.joining.trouble) == (["renew"], "")


async def test_certificates_that_are_due_at_once_are_not_asked_for_without_end(
    settings: EdgeHubConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "read_identity", lambda *_: OVERDUE)
    monkeypatch.setattr(joining, "RENEW_LATER_S", 0.05)
    renewing, loop = Renewing(settings, monkeypatch), asyncio.get_running_loop()
    began = loop.time()
    await renewing.joining._renew(OVERDUE)
    assert loop.time() - began >= 0.04
    assert "clocks" in renewing.joining.trouble


async def test_a_renewed_certificate_that_cannot_be_used_is_told(
    settings: EdgeHubConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Identity:
        raise NoIdentity("it is of another node")

    monkeypatch.setattr(joining, "read_identity", fail)
    renewing = Renewing(settings, monkeypatch)
    await renewing.joining._renew(OVERDUE)
    assert renewing.joining.trouble == "it is of another node"
    assert renewing.joining._identity is None
    assert renewing.joining.usable.is_set(), "whether it can, the cloud will say"


async def test_what_a_child_says_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        said = asyncio.create_task(worker._read(reading))
        for piece in (b"a", b"b"):
            os.write(writing, piece)
            for _ in range(3):
                await asyncio.sleep(0)
            assert not said.done()
        os.close(writing)
        assert await asyncio.wait_for(said, 5) == b"ab"
    finally:
        os.close(reading)
