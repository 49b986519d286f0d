"""What the listener says of clients that it does not take; what it does about them: `tests/cloudcore`."""

import asyncio
import errno
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from cloudedge import certificates, listening, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.listening import _PeerLog, _wrong_with_tls, serve
from cloudedge.traffic import Traffic


def tls_error(type_: type[ssl.SSLError], **of_what: str) -> ssl.SSLError:
    """As the TLS layer raises it: empty, with attributes."""
    error = type_()
    for name, value in of_what.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    (
        (ConnectionResetError(), "it hung up"),
        (
            tls_error(ssl.SSLError, reason="TLSV1_ALERT_UNKNOWN_CA"),
            "TLSV1_ALERT_UNKNOWN_CA; does it trust this cloud's CA?",
        ),
        (tls_error(ssl.SSLError, reason="PEER_DID_NOT_RETURN_A_CERTIFICATE"), "it shows no certificate"),
        (
            tls_error(ssl.SSLCertVerificationError, verify_message="certificate has expired"),
            "its certificate is not accepted: certificate has expired",
        ),
    ),
)
def test_what_is_wrong_with_tls_is_said_in_words(error: OSError, said: str) -> None:
    assert _wrong_with_tls(error) == said


def test_what_a_peer_does_wrong_is_counted_by_what_it_is() -> None:
    traffic = Traffic()
    log = _PeerLog(logging.getLogger("nobody's"), traffic)
    log.error("too big: %s", (1009, "a frame"))
    for args in ((), ("text",), (5,), ((),), ((1002, "a frame"),)):
        log.error("wrong %s" if args else "wrong", *args)
    log.info("came")
    assert (traffic.too_big, traffic.broken) == (1, 5)


async def test_without_file_descriptors_it_goes_on_when_there_are_some_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificates.mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    loop = asyncio.get_running_loop()
    accept, fails = loop.sock_accept, 2

    async def short(listener: socket.socket) -> tuple[socket.socket, Any]:
        nonlocal fails
        if fails:
            fails -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(listening, "ACCEPT_PAUSE_S", 0.01)
    monkeypatch.setattr(loop, "sock_accept", short)
    there: asyncio.Queue[Connection] = asyncio.Queue()
    context = tls.server_context(
        ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "server.crt", key_file=tmp_path / "server.key"
    )
    listener = await serve(lambda _: "edge-1", there.put_nowait, host="127.0.0.1", port=0, ssl_context=context)
    try:
        client = tls.client_context(
            ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "edge-1.crt", key_file=tmp_path / "edge-1.key"
        )
        port = listener.sockets[0].getsockname()[1]
        edge = await connect(f"wss://127.0.0.1:{port}", node="edge-1", ssl_context=client)
        await edge.close()
        await (await there.get()).wait_closed()
        assert listener.refused["no file descriptor"] == 2
        assert sum("limit of open files" in record.getMessage() for record in caplog.records) == 1
    finally:
        listener.close()
        await listener.wait_closed()


async def test_so_many_clients_of_one_address_are_let_in_at_a_time(tmp_path: Path) -> None:
    certificates.mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    ca, server, edge = ((tmp_path / f"{name}.crt", tmp_path / f"{name}.key") for name in ("ca", "server", "edge-1"))
    there: asyncio.Queue[Connection] = asyncio.Queue()
    context = tls.server_context(ca_file=ca[0], cert_file=server[0], key_file=server[1])
    limits = listening.ListenerLimits(upgrading=1)
    listener = await serve(
        lambda _: "edge-1", there.put_nowait, host="127.0.0.1", port=0, ssl_context=context, limits=limits
    )
    try:
        port = listener.sockets[0].getsockname()[1]
        _, stalled = await asyncio.open_connection("127.0.0.1", port)
        while listener.upgrading < 1:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        client = tls.client_context(ca_file=ca[0], cert_file=edge[0], key_file=edge[1])
        dialled = asyncio.create_task(connect(f"wss://127.0.0.1:{port}", node="edge-1", ssl_context=client))
        done, _ = await asyncio.wait([dialled], timeout=0.1)
        assert not done
        stalled.close()
        await (await asyncio.wait_for(dialled, 10)).close()
        await (await there.get()).wait_closed()
    finally:
        listener.close()
        await listener.wait_closed()


async def test_no_socket_stays_open_when_one_of_several_cannot_be_listened_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    create = socket.create_server

    def second_fails(address: Any, **how: Any) -> socket.socket:
        if made:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        made.append(create(("127.0.0.1", 0), **{**how, "family": socket.AF_INET}))
        return made[0]

    async def both(*_: Any, **__: Any) -> list[Any]:
        families = (socket.AF_INET, socket.AF_INET6)
        return [(family, socket.SOCK_STREAM, 6, "", ("localhost", 0)) for family in families]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    monkeypatch.setattr(socket, "create_server", second_fails)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(OSError, match="in use"):
        await serve(lambda _: "", lambda _: None, host="localhost", port=0, ssl_context=context)
    assert made[0].fileno() == -1


def test_no_end_lets_the_other_renegotiate(tmp_path: Path) -> None:
    certificates.mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    ca, server, edge = ((tmp_path / f"{name}.crt", tmp_path / f"{name}.key") for name in ("ca", "server", "edge-1"))
    pair = server[0].read_bytes() + server[1].read_bytes()
    for context in (
        tls.server_context(ca_file=ca[0], cert_file=server[0], key_file=server[1]),
        tls.client_context(ca_file=ca[0], cert_file=edge[0], key_file=edge[1]),
        tls.serving_context(ca[0].read_bytes(), pair, certificate_required=False),
        tls.serving_context(ca[0].read_bytes(), pair, certificate_required=True),
    ):
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
