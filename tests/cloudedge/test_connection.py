"""Both ends of the channel over real mutual TLS on loopback."""

import asyncio
import socket
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from picows import WSMsgType

from cloudedge import ConnectionLost, ConnectionRefused, new_message
from cloudedge.certificates import create_ca, load, mint, save, shown, sign_node
from cloudedge.connection import INBOX_MESSAGES, Connection
from cloudedge.dialling import connect
from cloudedge.listening import Refusal, serve
from cloudedge.message import Message
from cloudedge.tls import client_context, node_of, server_context


class Cloud:
    """A listening end that hands out what connects."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connections: asyncio.Queue[Connection] = asyncio.Queue()
        self.port = 0

    @property
    def url(self) -> str:
        return f"wss://127.0.0.1:{self.port}"

    def accept(self, headers: Mapping[str, str]) -> str:
        if headers.get("ConnectionUse") != "msg":
            raise Refusal(400, "ConnectionUse is not msg")
        if headers["node_id"] == "banned":
            raise Refusal(503, "node limit reached")
        return headers["node_id"]

    def client(self, node: str = "edge-1") -> ssl.SSLContext:
        d = self.directory
        return client_context(ca_file=d / "ca.crt", cert_file=d / f"{node}.crt", key_file=d / f"{node}.key")


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1", "localhost"])
    cloud = Cloud(tmp_path)
    context = server_context(
        ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "server.crt", key_file=tmp_path / "server.key"
    )
    server = await serve(cloud.accept, cloud.connections.put_nowait, host="127.0.0.1", port=0, ssl_context=context)
    cloud.port = server.sockets[0].getsockname()[1]
    yield cloud
    server.close()
    await server.wait_closed()


def text(content: object, operation: str = "update") -> Message:
    return new_message(source="twin", group="resource", operation=operation, resource="r", content=content)


async def test_messages_cross_in_both_directions_whatever_their_size(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    assert (hub.peer, node_of(shown(hub.peer_certificate()))) == ("edge-1", "edge-1")
    for size in (0, 10, 5_000, 70_000, 3_000_000):
        await edge.send(text("x" * size))
        assert len((await hub.receive()).data(str)) == size
        await hub.send(text("y" * size))
        assert len((await edge.receive()).data(str)) == size
    await edge.close(reason="going home")
    await hub.wait_closed()
    with pytest.raises(ConnectionLost, match="connection to edge-1 is closed: going home"):
        await hub.receive()
    with pytest.raises(ConnectionLost):
        await hub.send(text("late"))


async def test_fragments_and_an_empty_last_one_are_put_together(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    frame = b'{"header":{"msg_id":"a"},"route":{"operation":"update"},"content":"' + b"z" * 9000 + b'"}\n'
    transport = edge._transport
    assert transport is not None
    transport.send(WSMsgType.TEXT, frame[:4096], fin=False)
    transport.send(WSMsgType.CONTINUATION, frame[4096:], fin=False)
    transport.send(WSMsgType.CONTINUATION, b"", fin=True)
    transport.send(WSMsgType.BINARY, b'{"header":{"msg_id":"b"},"route":{}}')
    assert len((await hub.receive()).data(str)) == 9000
    assert (await hub.receive()).id == "b"
    await edge.close()


async def test_a_malformed_message_is_dropped_and_counted_and_the_next_one_arrives(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    assert edge._transport is not None
    edge._transport.send(WSMsgType.TEXT, b"not json")
    await edge.send(text("after"))
    assert (await hub.receive()).data(str) == "after"
    assert hub.malformed == 1
    await edge.close()


async def test_control_operations_are_answered_and_never_passed_on(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    ping = text("?", operation="ping")
    await edge.send(ping)
    answer = await edge.receive()
    assert (answer.header.parent_msg_id, answer.data(str)) == (ping.id, "ack")
    await edge.send(text("next"))
    assert (await hub.receive()).data(str) == "next"
    await edge.close()


async def test_a_full_inbox_stops_reading_and_loses_nothing(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    count = 2_000

    async def send_all() -> None:
        for number in range(count):
            await edge.send(text(f"{number} " + "x" * 20_000))

    async with asyncio.TaskGroup() as group:
        sender = group.create_task(send_all())
        first = await hub.receive()
        # 40 MB do not fit the sockets: with nobody receiving, the sender comes to stand.
        done, _ = await asyncio.wait([sender], timeout=0.5)
        assert not done
        assert len(hub._inbox) < 10 * INBOX_MESSAGES
        rest = [await hub.receive() for _ in range(count - 1)]
    assert [int(m.data(str).split()[0]) for m in [first, *rest]] == list(range(count))
    await edge.close()


@pytest.mark.parametrize("count", (640, 660, 680))
async def test_the_end_of_a_burst_is_not_left_in_the_tls_layer(cloud: Cloud, count: int) -> None:
    """More than the inbox takes at once, and not so much that the socket has more when it is read again."""
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    for number in range(count):
        hub.send_now(text(str(number)))
    async with asyncio.timeout(10):
        while not edge.is_full:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        assert [(await edge.receive()).data(str) for _ in range(count)] == [str(n) for n in range(count)]
    await edge.close()


async def test_refusals_say_why(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefused, match="answered 503 'node limit reached'"):
        await connect(cloud.url, node="banned", ssl_context=cloud.client())
    with pytest.raises(ConnectionRefused, match="Connect call failed"):
        await connect("wss://127.0.0.1:1", node="edge-1", ssl_context=cloud.client())
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    other_ca = create_ca()
    save(other_ca, stranger, "ca")
    save(sign_node(other_ca, "edge-1"), stranger, "edge-1")
    context = client_context(
        ca_file=stranger / "ca.crt", cert_file=stranger / "edge-1.crt", key_file=stranger / "edge-1.key"
    )
    with pytest.raises(ConnectionRefused, match=r"TLS: .*CERTIFICATE_VERIFY_FAILED"):
        await connect(cloud.url, node="edge-1", ssl_context=context)


async def test_a_client_certificate_of_another_ca_is_not_let_in(cloud: Cloud, tmp_path: Path) -> None:
    save(sign_node(create_ca(), "edge-1"), tmp_path, "forged")
    context = client_context(
        ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "forged.crt", key_file=tmp_path / "forged.key"
    )
    with pytest.raises(ConnectionRefused, match="closed before the upgrade"):
        await connect(cloud.url, node="edge-1", ssl_context=context, timeout_s=5)
    assert cloud.connections.empty()


async def test_a_client_without_a_certificate_is_not_let_in(cloud: Cloud, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with pytest.raises(ConnectionRefused, match="closed before the upgrade"):
        await connect(cloud.url, node="edge-1", ssl_context=context, timeout_s=5)
    assert cloud.connections.empty()


async def test_neither_end_needs_a_file_for_the_other_ones_certificate(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # as good as a full one
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client(), timeout_s=5)
    hub = await cloud.connections.get()
    assert node_of(shown(hub.peer_certificate())) == "edge-1"
    await edge.close()
    await hub.wait_closed()


async def test_no_answer_is_a_refusal_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as quiet:  # the kernel accepts, nobody answers
        port = quiet.getsockname()[1]
        with pytest.raises(ConnectionRefused, match=r"no answer within 0\.2 s"):
            await connect(f"wss://127.0.0.1:{port}", node="n", ssl_context=ssl.create_default_context(), timeout_s=0.2)


def test_minting_again_keeps_the_ca_and_keys_are_private(tmp_path: Path) -> None:
    mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    ca = (tmp_path / "ca.crt").read_bytes()
    mint(tmp_path, nodes=["edge-2"], names=["127.0.0.1"])
    assert (tmp_path / "ca.crt").read_bytes() == ca
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("ca", "server", "edge-1", "edge-2") for kind in ("crt", "key")
    }
    for key in tmp_path.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert load(tmp_path, "edge-2").certificate.issuer == load(tmp_path, "ca").certificate.subject


@pytest.mark.parametrize("node", ("ca", "server", "", "../edge-1"))
def test_a_node_does_not_take_the_files_of_others(tmp_path: Path, node: str) -> None:
    mint(tmp_path / "certs", nodes=[], names=[])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match="cannot be a node here"):
        mint(tmp_path / "certs", nodes=["edge-2", node], names=[])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


async def test_a_probe_returns_when_what_was_sent_before_has_been_read(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client(), pong_timeout_s=5)
    hub = await cloud.connections.get()
    await edge.send(text("before"))
    await asyncio.wait_for(asyncio.gather(edge.probe(), edge.probe()), 5)
    assert len(hub._inbox) == 1
    unread = asyncio.create_task(edge.probe())
    await hub.close()
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(unread, 5)


async def test_large_contents_stop_reading_before_they_are_many(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    sending = asyncio.create_task(send_megabytes(edge, 40))
    async with asyncio.timeout(30):
        while not hub.is_full:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert not sending.done()
    assert len(hub._inbox) < 12
    for _ in range(40):
        await hub.receive()
    await sending
    await edge.close()


async def send_megabytes(edge: Connection, count: int) -> None:
    for _ in range(count):
        await edge.send(text("x" * 1_000_000))


async def test_what_arrived_is_not_handed_out_after_hanging_up(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    await edge.send(text("a"))
    await edge.probe()
    hub.hang_up(reason="x" * 119 + "\u00e9")  # 120 bytes would cut the last letter
    with pytest.raises(ConnectionLost):
        await hub.receive()
    await asyncio.wait_for(edge.wait_closed(), 5)


async def test_who_hangs_up_is_done_at_once(cloud: Cloud) -> None:
    edge = await connect(cloud.url, node="edge-1", ssl_context=cloud.client())
    hub = await cloud.connections.get()
    before = hub.heard_at
    await edge.send(text("a"))
    await hub.receive()
    assert hub.heard_at > before
    hub.hang_up()
    assert (hub._closed, hub.is_closed, hub.can_send) == (False, True, False)
    with pytest.raises(ConnectionLost):
        hub.send_now(text("b"))
    receiving = asyncio.create_task(hub.receive())
    await asyncio.sleep(0)
    assert receiving.done(), "though the socket is there still"
    with pytest.raises(ConnectionLost):
        await receiving
    with pytest.raises(ConnectionLost):
        await hub.probe()
    await edge.close()
    await hub.wait_closed()


async def test_unfinished_clients_go_with_the_listener(cloud: Cloud) -> None:
    context = server_context(
        ca_file=cloud.directory / "ca.crt",
        cert_file=cloud.directory / "server.crt",
        key_file=cloud.directory / "server.key",
    )
    listener = await serve(cloud.accept, cloud.connections.put_nowait, host="", port=0, ssl_context=context)
    with socket.create_connection(listener.sockets[0].getsockname()[:2]) as idle:
        while not listener.upgrading:  # noqa: ASYNC110 - accepted in another task
            await asyncio.sleep(0)
        listener.close()
        await listener.wait_closed()
        assert not listener.upgrading
        assert await asyncio.to_thread(idle.recv, 1) == b""
