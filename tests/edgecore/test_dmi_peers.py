"""Who may call the DMI socket where there is a list of users: real processes of real users."""

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import yaml

from dmi import ConfigError, PeerRefused
from dmi.metrics import Metrics
from edgecore.config import EdgeCoreConfig
from edgecore.devicetwin import peers
from edgecore.devicetwin.peers import Allowed, Peer, allowed_of, guarded_socket, inner_socket, peer_of
from tests.edgecore.conftest import Edge, EdgeProcess
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

STRANGER, FRIEND, GROUP = 4711, 4712, 4713
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

CALL = """
import asyncio, os, sys
path, uid, groups = sys.argv[1], int(sys.argv[2]), [int(g) for g in sys.argv[3].split(",") if g]
os.setgroups(groups); os.setgid(uid); os.setuid(uid)
import socket
s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(path)
try:
    s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print("answered" if s.recv(9) else "closed")
except ConnectionError:
    print("closed")
"""


async def connect_as(path: Path, uid: int, groups: Sequence[int] = ()) -> str:
    """What a process of that user gets after the first bytes of HTTP/2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALL, path, str(uid), ",".join(map(str, groups)), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    return out.decode().strip()


def open_way(path: Path) -> None:
    """pytest's directories are its user's alone."""
    for directory in (path, *path.parents):
        if directory.owner() == pwd.getpwuid(os.geteuid()).pw_name and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)


@pytest.fixture
async def listed(config: EdgeCoreConfig, cloud: FakeCloud, tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge core that lets one user and one group in."""
    edge = Edge(with_list(config, users=[FRIEND], groups=[str(GROUP)]))
    await edge.start()
    open_way(tmp_path)
    try:
        await cloud.until(lambda: cloud.connected, "the cloud is connected")  # not cut off in the middle of TLS
        yield edge
    finally:
        await edge.stop()


def with_list(config: EdgeCoreConfig, users: Sequence[str | int], groups: Sequence[str | int]) -> EdgeCoreConfig:
    twin = msgspec.structs.replace(
        config.modules.device_twin, dmi_allowed_users=tuple(users), dmi_allowed_groups=tuple(groups)
    )
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, device_twin=twin))


@needs_root
async def test_only_those_on_the_list_are_let_in(
    listed: Edge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dmi.sock"
    assert await connect_as(path, 0) == "answered"  # root
    assert await connect_as(path, FRIEND) == "answered"
    assert await connect_as(path, STRANGER, [GROUP]) == "answered"  # by a supplementary group
    for _ in range(2):
        assert await connect_as(path, STRANGER) == "closed"
    assert await connect_as(path, STRANGER + 100, [GROUP + 100]) == "closed"
    lines = [r.getMessage() for r in caplog.records if "may not call the DMI socket" in r.getMessage()]
    assert [line.split()[1] for line in lines] == [str(STRANGER), str(STRANGER + 100)]  # each once


@needs_root
async def test_without_a_list_the_mode_decides(edge: Edge, tmp_path: Path) -> None:
    open_way(tmp_path)
    path = tmp_path / "dmi.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not (tmp_path / ".dmi").exists()
    assert await connect_as(path, 0) == "answered"
    assert await connect_as(path, FRIEND) == ""  # it may not even connect


async def test_a_mapper_works_through_the_guard_as_without(listed: Edge, cloud: FakeCloud, tmp_path: Path) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with FakeMapper(tmp_path).running() as mapper:
        assert set(mapper.devices) == {"default/boiler-1"}
        await asyncio.gather(*(mapper.report("default/boiler-1", temperature=str(n)) for n in range(50)))
        with pytest.raises(PeerRefused, match="has no property 'label'"):
            await mapper.report("default/boiler-1", label="x" * 600_000)
        await mapper.report("default/boiler-1", temperature="50")
        await cloud.until_value("default/boiler-1", "temperature", "50")


async def test_grpcs_own_socket_is_out_of_reach_and_goes_with_the_edge_core(listed: Edge, tmp_path: Path) -> None:
    path, inner = tmp_path / "dmi.sock", tmp_path / ".dmi" / "dmi.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
    assert inner.exists()
    await listed.stop()
    assert not path.exists()
    assert not inner.exists()


async def test_a_refused_one_is_counted_and_gets_no_byte_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs this, for root and the own user are always let in: here the list says no to all."""
    monkeypatch.setattr(Allowed, "admits", lambda self, peer: False)
    metrics, reached = Metrics(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    path, inner = tmp_path / "dmi.sock", inner_socket(tmp_path / "dmi.sock")
    nobody = Allowed(frozenset(), frozenset())
    async with await asyncio.start_unix_server(serve, inner), guarded_socket(path, inner, nobody, metrics):
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
    assert not reached.is_set()
    assert metrics.counter("kubetwin_edgecore_dmi_connections_refused_total", "").total() == 3
    assert len([r for r in caplog.records if "may not call" in r.getMessage()]) == 1


async def test_connections_that_are_open_end_with_the_guard(tmp_path: Path) -> None:
    """A mapper that stays connected holds nobody up, and a connection that breaks off ends on the other side too."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        ended.set()
        writer.close()

    path, inner = tmp_path / "dmi.sock", inner_socket(tmp_path / "dmi.sock")
    async with await asyncio.start_unix_server(serve, inner):
        async with guarded_socket(path, inner, Allowed(frozenset(), frozenset()), Metrics()):
            first_reader, first = await asyncio.open_unix_connection(path)
            first.write(b"hello")
            assert await first_reader.readexactly(5) == b"hello"
            first.close()
            async with asyncio.timeout(10):
                await ended.wait()
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        assert await reader.read() == b""
        writer.close()
    assert not path.exists()


async def test_one_that_half_closes_and_takes_nothing_leaves_no_descriptor_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of its descriptor is the next connection's, which must not be taken for it."""
    monkeypatch.setattr(peers, "END_S", 0.05)
    answer = b"x" * 4_000_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
            await reader.read()
        writer.close()

    path, inner = tmp_path / "dmi.sock", inner_socket(tmp_path / "dmi.sock")
    nobody = Allowed(frozenset(), frozenset())
    async with await asyncio.start_unix_server(serve, inner), guarded_socket(path, inner, nobody, Metrics()):
        before, deaf = len(os.listdir("/proc/self/fd")), []  # noqa: PTH208 - the number is all
        for _ in range(20):
            reader, writer = await asyncio.open_unix_connection(path, limit=1024)
            await reader.readexactly(10)
            writer.write_eof()
            deaf.append(writer)
        reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.timeout(30):
            assert await reader.readexactly(len(answer)) == answer
            for other in (*deaf, writer):
                other.close()
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110, PTH208 - nobody tells
                await asyncio.sleep(0.02)


def test_the_peer_is_who_it_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


def test_names_and_numbers_are_resolved_at_the_start() -> None:
    me, mine = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert allowed_of([], []) is None
    assert allowed_of([me.pw_name, 4711, "4712"], [mine.gr_name]) == Allowed(
        frozenset({me.pw_uid, 4711, 4712}), frozenset({mine.gr_gid})
    )
    with pytest.raises(ConfigError, match=r"dmiAllowedUsers\[1\]: there is no user 'nobody-here' on this machine"):
        allowed_of([0, "nobody-here"], [])
    with pytest.raises(ConfigError, match=r"dmiAllowedGroups\[0\]: there is no group 'nobodies'"):
        allowed_of([], ["nobodies"])
    with pytest.raises(ConfigError, match=r"dmiAllowedUsers\[0\]: -1 is not the number of a user"):
        allowed_of([-1], [])


async def test_an_edge_core_does_not_start_with_a_name_that_it_does_not_know(
    config: EdgeCoreConfig, tmp_path: Path
) -> None:
    file = tmp_path / "edgecore.yaml"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(with_list(config, ["nobody-here"], []))))
    edge = EdgeProcess(file)
    with contextlib.suppress(AssertionError):  # it ends before it serves
        await edge.start()
    assert edge.process is not None
    async with asyncio.timeout(20):
        assert await edge.process.wait() == 1
    assert any(
        "edgecore ends: modules.deviceTwin.dmiAllowedUsers[0]: there is no user 'nobody-here'" in line
        for line in edge.log
    ), edge.log


def test_who_is_admitted() -> None:
    allowed = Allowed(frozenset({10}), frozenset({20}))
    for peer, expected in (
        (Peer(1, 0, frozenset()), True),
        (Peer(1, os.geteuid(), frozenset()), True),
        (Peer(1, 10, frozenset({99})), True),
        (Peer(1, 4711, frozenset({98, 20})), True),
        (Peer(1, 20, frozenset({10})), False),  # a user's number is not a group's
    ):
        assert allowed.admits(peer) is expected, peer
