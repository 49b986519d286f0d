"""A client of CloudHub that keeps to no rule: TLS with any certificate, any upgrade request, any bytes."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Rogue", "frame", "rogue", "upgrade"]

TEXT, BINARY, CONTINUATION, CLOSE, PING = 1, 2, 0, 8, 9


class Rogue:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def say(self, data: bytes) -> None:
        """A peer that has gone, or takes no more, is no error: it is what the other end is tested for."""
        with contextlib.suppress(OSError):
            self._sock.sendall(data)

    def until_closed(self, within_s: float) -> bytes:
        """All that comes until the other end closes.

        Raises:
            TimeoutError: It does not.
        """
        self._sock.settimeout(within_s)
        heard = b""
        try:
            while data := self._sock.recv(65536):
                heard += data
        except TimeoutError:
            raise
        except OSError:
            pass
        return heard

    def answer(self) -> bytes:
        """The head of an HTTP answer; empty: there is none."""
        heard = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in heard and (data := self._sock.recv(4096)):
                heard += data
        return heard


def upgrade(node: str, *, more: str = "", use: str = "msg") -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /p/{node}/events HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"node_id: {node}\r\nConnectionUse: {use}\r\n{more}\r\n"
    ).encode()


def frame(
    payload: bytes, *, opcode: int = TEXT, fin: bool = True, masked: bool = True, length: int | None = None
) -> bytes:
    """`length`: what the head says, where that is not true. The mask is of zeros."""
    length = len(payload) if length is None else length
    if length < 126:
        size = bytes([length | 0x80 * masked])
    elif length < 65536:
        size = bytes([126 | 0x80 * masked]) + length.to_bytes(2)
    else:
        size = bytes([127 | 0x80 * masked]) + length.to_bytes(8)
    return bytes([0x80 * fin | opcode]) + size + bytes(4 * masked) + payload


@contextlib.contextmanager
def rogue(port: int, certificates: Path, name: str = "") -> Iterator[Rogue]:
    """A connection past TLS. `name`: of the certificate; empty: without one."""
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    if name:
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        yield Rogue(sock)
