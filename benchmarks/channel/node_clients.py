"""Idle edge nodes, thousands in one process: each with its own certificate, a TLS connection, a keepalive every 15 s.
One that is cut off comes back as our edge core does. Started by `benchmarks.channel.nodes`.
"""

from __future__ import annotations

import argparse
import base64
import heapq
import itertools
import os
import random
import selectors
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Final

from cloudedge import Message, certificates, encode, new_message, tls

KEEPALIVE_S: Final = 15.0
TURNS: Final = 15
DIALLERS: Final = 8
"""Threads; TLS leaves the interpreter's lock to the others."""
TIMEOUT_S: Final = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "first", "count"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--certs", type=Path, required=True)
    options = parser.parse_args()
    fleet = Fleet(
        options.port, options.certs, [f"node-{n}" for n in range(options.first, options.first + options.count)]
    )
    print("ready", flush=True)
    fleet.run()


class Fleet:
    def __init__(self, port: int, certs: Path, names: list[str]) -> None:
        self._port = port
        ca = certificates.load(certs, "ca")
        self._contexts = {name: _context(ca, name) for name in names}
        self._selector = selectors.DefaultSelector()
        self._connected: dict[str, ssl.SSLSocket] = {}
        self._due = [(time.monotonic(), name) for name in names]
        """A heap: who dials next, and when."""
        self._lock = threading.Lock()
        self._turns = [names[turn::TURNS] for turn in range(TURNS)]
        """Whose keepalive goes out together."""

    def run(self) -> None:
        for _ in range(DIALLERS):
            threading.Thread(target=self._dial_for_ever, daemon=True).start()
        next_at = time.monotonic()
        for turn in itertools.cycle(self._turns):
            next_at += KEEPALIVE_S / TURNS
            while (left_s := next_at - time.monotonic()) > 0:
                for key, _ in self._selector.select(timeout=min(left_s, 0.5)):
                    self._read(key.data)
            for name in turn:
                if name in self._connected:
                    self._keep_alive(name)

    def _read(self, name: str) -> None:
        link = self._connected[name]
        try:
            link.settimeout(0.0)
            if not link.recv(65536):
                self._lose(name)
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError:
            self._lose(name)

    def _keep_alive(self, name: str) -> None:
        try:
            self._connected[name].settimeout(5.0)
            self._connected[name].sendall(_frame(encode(_keepalive())))
        except OSError:
            self._lose(name)

    def _lose(self, name: str) -> None:
        link = self._connected.pop(name, None)
        if link is None:
            return
        self._selector.unregister(link)
        link.close()
        self._dial_in(random.uniform(0.1, 1.0), name)

    def _dial_in(self, after_s: float, name: str) -> None:
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + after_s, name))

    def _dial_for_ever(self) -> None:
        while True:
            with self._lock:
                due = bool(self._due) and self._due[0][0] <= time.monotonic()
                name = heapq.heappop(self._due)[1] if due else None
            if name is None:
                time.sleep(0.05)
                continue
            try:
                link = self._dial(name)
            except OSError:
                self._dial_in(random.uniform(1.0, 5.0), name)
                continue
            self._connected[name] = link
            self._selector.register(link, selectors.EVENT_READ, name)

    def _dial(self, name: str) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S)
        try:
            link = self._contexts[name].wrap_socket(raw, server_hostname="127.0.0.1")
        except OSError:
            raw.close()
            raise
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            link.sendall(
                (
                    f"GET /e632aba927ea4ac2b575ec1603d56f10/{name}/events HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
                    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    f"Sec-WebSocket-Key: {key}\r\nnode_id: {name}\r\nConnectionUse: msg\r\n\r\n"
                ).encode()
            )
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = link.recv(4096)
                if not more:
                    raise ConnectionResetError("no upgrade")
                answer += more
            if not answer.startswith(b"HTTP/1.1 101"):
                raise ConnectionRefusedError(answer.split(b"\r\n", 1)[0])
            link.sendall(_frame(encode(_keepalive())))
        except OSError:
            link.close()
            raise
        return link


def _keepalive() -> Message:
    return new_message(source="websocket", group="resource", operation="keepalive", resource="node", content="ping")


def _frame(payload: bytes) -> bytes:
    """A masked text frame of 126 to 65,535 bytes (RFC 6455, 5.2)."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + mask + masked


def _context(ca: certificates.Issued, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.pem(ca)[0].decode())
    tls.load_pair(context, b"".join(certificates.pem(certificates.sign_node(ca, name))))
    return context


if __name__ == "__main__":
    main()
