"""What is left of connections that could not be made, and of those that have ended."""

import asyncio
import contextlib
import gc
from pathlib import Path
from typing import Literal

import pytest

from cloudedge import ConnectionLost, ConnectionRefused
from cloudedge.certificates import mint
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.listening import serve
from cloudedge.loop_errors import LoopErrors
from cloudedge.tls import client_context, server_context
from tests.garbage import uncollected

DIALS = 5


@pytest.mark.parametrize("ending", ("cut", "no TLS", "no upgrade", "no HTTP"))
async def test_nothing_large_is_left_of_a_connection_that_could_not_be_made(
    tmp_path: Path, ending: Literal["cut", "no TLS", "no upgrade", "no HTTP"]
) -> None:
    """It goes with its refusal, not only when all garbage is collected: an edge core dials for days."""
    asyncio.get_running_loop().set_exception_handler(LoopErrors())
    mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    files = {"ca_file": tmp_path / "ca.crt"}
    server = server_context(**files, cert_file=tmp_path / "server.crt", key_file=tmp_path / "server.key")
    client = client_context(**files, cert_file=tmp_path / "edge-1.crt", key_file=tmp_path / "edge-1.key")

    async def spoil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(10)
            match ending:
                case "no TLS":
                    writer.write(b"x" * 500)
                case "no upgrade":
                    writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                case "no HTTP":
                    writer.write(b"HTTP/1.1 \xff\r\n\r\n")
            writer.close()

    tls = server if ending in ("no upgrade", "no HTTP") else None
    listening = await asyncio.start_server(spoil, "127.0.0.1", 0, ssl=tls)
    url = f"wss://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    async def dial() -> None:
        with contextlib.suppress(ConnectionRefused):  # pytest.raises would keep its frames
            await connect(url, node="edge-1", ssl_context=client, timeout_s=5.0)
            raise AssertionError

    async with listening:
        await dial()
        with uncollected():
            for _ in range(DIALS):
                await dial()
            await asyncio.sleep(0)
            kept = [type(one).__name__ for one in gc.get_objects()]
    assert not [name for name in kept if name in ("WSProtocol", "SSLTransport_Socket")]


async def test_nothing_is_left_of_a_connection_that_has_ended(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_exception_handler(LoopErrors())
    mint(tmp_path, nodes=["edge-1"], names=["127.0.0.1"])
    files = {"ca_file": tmp_path / "ca.crt"}
    server = server_context(**files, cert_file=tmp_path / "server.crt", key_file=tmp_path / "server.key")
    client = client_context(**files, cert_file=tmp_path / "edge-1.crt", key_file=tmp_path / "edge-1.key")
    listener = await serve(lambda _: "edge-1", Connection.abort, host="127.0.0.1", port=0, ssl_context=server)
    url = f"wss://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def dial() -> None:
        with contextlib.suppress(ConnectionLost, ConnectionRefused):
            connection = await connect(url, node="edge-1", ssl_context=client, timeout_s=5.0)
            await connection.receive()

    await dial()
    with uncollected():
        for _ in range(DIALS):
            await dial()
        await asyncio.sleep(0)
        kept = [one for one in gc.get_objects() if isinstance(one, Connection)]
    listener.close()
    await listener.wait_closed()
    assert not kept
