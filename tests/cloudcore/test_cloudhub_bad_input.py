"""What a hostile or broken client can do to the hub: nothing but end its own connection, and be counted."""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picows import WSMsgType

from cloudcore.cloudhub import HubSettings
from cloudedge import tls
from cloudedge.connection import Connection
from tests.cloudcore.support import Cloud, Edge, Kubernetes, running_cloud, until

DEEP = 100_000
SMALL = HubSettings(host="127.0.0.1", port=0, max_message_bytes=64 * 1024, upgrade_s=1.0)


@pytest.fixture
async def small(kube: Kubernetes, certs: Path) -> AsyncIterator[Cloud]:
    """With a cap of 64 KiB and a second for an upgrade."""
    async with running_cloud(kube, certs, hub=SMALL) as cloud:
        yield cloud


def write(connection: Connection, payload: bytes, *, kind: WSMsgType = WSMsgType.TEXT, fin: bool = True) -> None:
    assert connection._transport is not None
    connection._transport.send(kind, payload, fin=fin)


async def still_serves(edge: Edge) -> None:
    await edge.answer(await edge.ask_membership())


@asynccontextmanager
async def raw_tls(cloud: Cloud, certs: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = tls.client_context(
        ca_file=certs / "ca.crt", cert_file=certs / "edge-1.crt", key_file=certs / "edge-1.key"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", cloud.hub.port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with_errors = await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        assert len(with_errors) == 1


def envelope(content: bytes, **more: str) -> bytes:
    route = {"source": "twin", "group": "resource", "operation": "update", **more}
    names = ",".join(f'"{name}":"{value}"' for name, value in route.items())
    return b'{"header":{"msg_id":"m"},"route":{' + names.encode() + b'},"content":' + content + b"}"


@pytest.mark.parametrize(
    "frame",
    (
        b"",
        b"\x00\xff\xfe",
        b"[1,2,3]",
        b'{"header":{"msg_id":7},"route":{}}',
        b'{"header":null,"route":[]}',
        b'{"header":{"msg_id":"m"},"route":{"operation":{}}}',
        b'{"header":{"msg_id":"m"},"route":{},"content":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"a":' * DEEP,
        b'"\xff\xff',
    ),
)
async def test_what_is_no_envelope_is_dropped_answered_and_counted(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, frame: bytes
) -> None:
    async with cloud.edge() as edge:
        write(edge.connection, frame)
        await still_serves(edge)
        (answer,) = [m for m in edge.received if m.route.operation == "error"]
        assert answer.data(str).startswith("message dropped: not an envelope")
        assert (answer.route.source, answer.route.group, answer.header.parent_msg_id) == ("", "", "")
    assert cloud.hub.listener is not None
    assert cloud.hub.listener.traffic.malformed == 1
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.parametrize(
    "frame",
    (
        envelope(b'"' + b"[" * 50_000 + b'"', resource="device/default/d/twin/edge_updated"),
        envelope(b'"\\ud800"', resource="device/default/d/state/update"),
        envelope(b"7", resource="membership/detail", operation="get"),
        envelope(b'{"twin":7}', resource="device/default/d/twin/edge_updated"),
        envelope(b"{}", resource="device/../d/twin/edge_updated"),
        envelope(b"{}", resource="node/edge-2/default/device/d"),
        envelope(b"{}", resource="a/b/c", operation="no such", source="no such", group="no such"),
        envelope(b"{}", resource="a/b/c", source="cloudStream"),
        envelope(b"{}", resource="x" * 5000, source="edged", group="meta"),
        envelope(b"{}", resource="x", operation="y" * 5000, source="z" * 5000),
        envelope(b"{}", operation="response"),
    ),
)
async def test_envelopes_that_make_no_sense_end_nothing(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, frame: bytes
) -> None:
    async with cloud.edge() as edge:
        write(edge.connection, frame)
        await still_serves(edge)
        assert not edge.connection.is_closed
    assert not [r for r in caplog.records if r.exc_info]
    assert all(len(r.getMessage()) < 3000 for r in caplog.records)


async def test_what_is_turned_down_is_answered_unless_it_is_an_answer(cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        for route in (
            {"source": "edged", "group": "meta", "operation": "query", "resource": "default/../x"},
            {"source": "edged", "group": "meta", "operation": "patch", "resource": "node/edge-2/null/nodepatch/edge-2"},
            {"source": "bus", "group": "user", "operation": "upload", "resource": "x" * 70_000},
            {"source": "edgecontroller", "group": "resource", "operation": "update", "resource": "a/b/c"},
        ):
            answer = await edge.answer(await edge.send(**route))
            assert answer.route.operation == "error"
            assert answer.route.group == ("user" if route["group"] == "user" else "resource")
            assert "turned it down" in answer.data(str)
        answers = [
            await edge.send(source=source, group="resource", operation=operation, resource="a/../c")
            for operation in ("response", "error")
            for source in ("edgecontroller", "x")
        ]
        await still_serves(edge)
        assert not [answer for message in answers for answer in edge.answers(message)]


async def test_who_shows_the_certificate_of_another_node_is_audited(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        stranger = await cloud.dial("edge-1", certificate="edge-2")
        await asyncio.wait_for(stranger.wait_closed(), 5)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "cloudcore.audit"]
    assert json.loads(line) == {
        "refused": "connection: certificate",
        "node": "edge-2",
        "resource": "",
        "operation": "connect",
        "detail": "the certificate is node edge-2's, not node edge-1's",
    }


@pytest.mark.parametrize("pieces", (1, 40), ids=("a frame", "fragments"))
async def test_a_message_over_the_cap_ends_the_connection_with_a_reason(
    small: Cloud, caplog: pytest.LogCaptureFixture, pieces: int
) -> None:
    async with small.edge("edge-2") as healthy, small.edge() as edge:
        if pieces == 1:
            write(edge.connection, b"x" * (65 * 1024))
        else:
            write(edge.connection, b"x" * 2048, fin=False)
            for _ in range(pieces):
                write(edge.connection, b"x" * 2048, kind=WSMsgType.CONTINUATION, fin=False)
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
        assert "65536" in edge.connection._loss()
        await still_serves(healthy)
        assert small.hub.listener is not None
        assert small.hub.listener.traffic.too_big == 1
        assert small.hub.nodes == {"edge-2"}
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]


async def test_why_a_frame_ended_the_connection_is_logged_though_the_node_says_no_goodbye(
    small: Cloud, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with raw_tls(small, certs) as (reader, writer):
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nnode_id: edge-1\r\nConnectionUse: msg\r\n\r\n"
        )
        await until(lambda: small.hub.nodes == {"edge-1"})
        writer.write(b"\x81\xff" + (2**20).to_bytes(8, "big") + b"mask")
        await asyncio.wait_for(reader.read(), 5)
    await until(lambda: [m for m in caplog.messages if "edge-1 disconnected" in m and "1048576 > 65536" in m])


async def test_fragments_out_of_order_end_the_connection(small: Cloud) -> None:
    async with small.edge() as edge:
        write(edge.connection, b"x", kind=WSMsgType.CONTINUATION)
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
    async with small.edge() as edge:
        write(edge.connection, b"{", fin=False)
        write(edge.connection, b"{")
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
    assert small.hub.listener is not None
    assert small.hub.listener.traffic.broken == 2


@pytest.mark.parametrize("bit", ("rsv1", "rsv2", "rsv3"))
@pytest.mark.parametrize("kind", (WSMsgType.TEXT, WSMsgType.PING))
async def test_a_reserved_bit_ends_the_connection(small: Cloud, kind: WSMsgType, bit: str) -> None:
    async with small.edge() as edge:
        assert edge.connection._transport is not None
        edge.connection._transport.send(kind, b"{}", **{bit: True})
        await asyncio.wait_for(edge.connection.wait_closed(), 5)
        assert "reserved bit" in edge.connection._loss()
    assert small.hub.listener is not None
    assert small.hub.listener.traffic.broken == 1


async def test_pings_whose_answers_nobody_reads_take_no_memory(cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        session = cloud.hub._sessions["edge-1"]
        session.connection.pause_writing()
        for _ in range(100):
            await edge.send(source="x", group="y", operation="ping", resource="r")
        assert cloud.hub.listener is not None
        traffic = cloud.hub.listener.traffic
        await until(lambda: traffic.unanswered == 100)
        session.connection.resume_writing()
        await edge.answer(await edge.send(source="x", group="y", operation="ping", resource="r"))


@pytest.mark.parametrize(
    ("headers", "status"),
    (
        ("node_id: edge-1\r\nnode_id: edge-2\r\nConnectionUse: msg\r\n", 400),
        ("node_id: edge-1\r\n", 400),
        ("node_id: \xff\xfe\r\nConnectionUse: msg\r\n", 400),
        ("node_id: " + "x" * 9000 + "\r\nConnectionUse: msg\r\n", 400),
        ("node_id: edge-1\r\nConnectionUse: msg\r\nOrigin: http://evil\r\n", 403),
        ("node_id : edge-1\r\n", 400),
        ("no header at all\r\n", 400),
        ("a: b\r\n" * 200, 400),
    ),
)
async def test_upgrade_requests_that_are_wrong_are_answered_and_closed(
    small: Cloud, certs: Path, caplog: pytest.LogCaptureFixture, headers: str, status: int
) -> None:
    async with raw_tls(small, certs) as (reader, writer):
        writer.write(
            (
                "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n"
            ).encode("latin-1")
        )
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert not small.hub.nodes
    assert not [r for r in caplog.records if r.exc_info]


async def test_clients_that_never_finish_hold_up_nobody(small: Cloud, certs: Path) -> None:
    idle = [socket.create_connection(("127.0.0.1", small.hub.port)) for _ in range(20)]
    try:
        async with raw_tls(small, certs) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost")
            async with small.edge("edge-2") as healthy:
                await still_serves(healthy)
                assert await asyncio.wait_for(reader.read(), 5) == b""
                listener = small.hub.listener
                assert listener is not None
                await until(lambda: listener.upgrading == 0)
                assert sum(listener.refused.values()) == 21
                await still_serves(healthy)
    finally:
        for sock in idle:
            sock.close()


async def test_one_address_does_not_keep_out_another(small: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = small.hub.listener
    assert listener is not None
    monkeypatch.setattr(listener, "_limits", type(listener._limits)(waiting=6, upgrading=2, upgrade_s=10.0))
    at = ("127.0.0.1", small.hub.port)
    idle = [socket.create_connection(at, source_address=("127.0.0.2", 0)) for _ in range(8)]
    try:
        await until(lambda: listener.refused["too many at once"] == 2)
        async with small.edge() as edge:  # from another address, which takes the place of one of those
            await still_serves(edge)
            assert listener.refused["too many at once"] == 3
            assert listener.upgrading == 5
    finally:
        for sock in idle:
            sock.close()
    await until(lambda: listener.upgrading == 0)
    assert (listener._queued, listener._ending) == ({}, set())


async def test_more_clients_than_may_wait_are_closed_at_once(small: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = small.hub.listener
    assert listener is not None
    monkeypatch.setattr(listener, "_limits", type(listener._limits)(waiting=2, upgrade_s=1.0))
    idle = [socket.create_connection(("127.0.0.1", small.hub.port)) for _ in range(4)]
    try:
        await until(lambda: listener.refused["too many at once"] == 2)
        await until(lambda: listener.upgrading == 0)
        async with small.edge() as edge:
            await still_serves(edge)
    finally:
        for sock in idle:
            sock.close()


async def test_tls_that_is_broken_off_or_corrupted_prints_no_traceback(
    small: Cloud, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with small.edge("edge-2") as healthy:
        with socket.create_connection(("127.0.0.1", small.hub.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.settimeout(0)
            await until(lambda: small.hub.listener and small.hub.listener.refused["no TLS"] == 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", small.hub.port, ssl=context)
        # No certificate; in TLS 1.3 the first read says so.
        (ended,) = await asyncio.gather(reader.read(), return_exceptions=True)
        assert isinstance(ended, OSError) or ended == b""
        writer.close()
        await until(lambda: small.hub.listener and small.hub.listener.refused["no TLS"] == 2)
        assert [m for m in caplog.messages if m.endswith("was not taken, no TLS: HTTP_REQUEST")]
        async with small.edge() as edge:
            assert edge.connection._transport is not None
            fd = edge.connection._transport.underlying_transport.get_extra_info("socket").fileno()
            with socket.socket(fileno=socket.dup(fd)) as wire:
                wire.send(b"\x17\x03\x03\x00\x20" + b"garbage!" * 4)
            await until(lambda: small.hub.nodes == {"edge-2"})
        await still_serves(healthy)
    assert not [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=80).map(str.encode)), max_size=8))
async def test_any_bytes_end_at_most_their_own_connection(cloud: Cloud, frames: list[bytes]) -> None:
    async with cloud.edge("edge-2") as healthy:
        connection = await cloud.dial("edge-1")
        for number, frame in enumerate(frames):
            kind = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION)[len(frame) % 3]
            if not connection.is_closed:
                write(connection, frame, kind=kind, fin=number % 4 != 3)
        await asyncio.sleep(0)
        await connection.close()
        await still_serves(healthy)


ROUTES = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["twin", "edged", "bus", "edgecontroller", "x", ""]),
        "group": st.sampled_from(["resource", "meta", "user", "twin", ""]),
        "operation": st.sampled_from(["update", "response", "error", "get", "upload", "query", "\u0000"]),
        "resource": st.one_of(
            st.text(max_size=40),
            st.lists(
                st.sampled_from(["..", "device", "default", "node", "twin", "membership", "", "x"]), max_size=7
            ).map("/".join),
        ),
    },
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    envelopes=st.lists(
        st.tuples(ROUTES, st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists, max_leaves=4)),
        max_size=12,
    )
)
async def test_any_envelopes_are_taken_or_counted(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, envelopes: list[tuple[dict[str, str], object]]
) -> None:
    async with cloud.edge() as edge:
        for route, content in envelopes:
            await edge.send(**{"source": "", "group": "", "operation": "", "resource": "", **route}, content=content)
        await still_serves(edge)
    assert not [r for r in caplog.records if r.exc_info]
