"""Plays upstream's EdgeCore: its join, its upgrade, its frames, its acknowledgements (channel contract 1.3, 2, 3.5)."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.compat.frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    accept_key,
    frame,
    from_edge,
    go_json,
    read_frame,
    read_head,
)
from tests.compat.recorded import Json, handshake, route

SUITES = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
PROJECT = "e632aba927ea4ac2b575ec1603d56f10"
REPLIES_ACKNOWLEDGED = frozenset({"lease", "configmap", "secret", "node", "serviceaccounttoken"})
"""Of what comes back to it, EdgeCore confirms these (contract 4.3), the node only when it was to be made."""
DEADLINE_S = 15.0


class Pair:
    """What a join leaves behind."""

    def __init__(self, directory: Path, node: str) -> None:
        self.node = node
        self.ca = directory / f"{node}-rootCA.crt"
        self.cert = directory / f"{node}-server.crt"
        self.key = directory / f"{node}-server.key"

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(SUITES)
        context.load_cert_chain(self.cert, self.key)
        return context


async def get(
    port: int, context: ssl.SSLContext, path: str, headers: list[str], body: bytes = b""
) -> tuple[int, bytes]:
    """One GET as Go's client writes it: canonical names, a body with its length, and gzip where it may be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "User-Agent: Go-http-client/1.1", *length, *headers]
    try:
        writer.write("\r\n".join([*lines, "Accept-Encoding: gzip", "", ""]).encode() + body)
        first, answered = await read_head(reader)
        sizes = [int(value) for name, value in answered if name.lower() == "content-length"]
        assert len(sizes) == 1, answered
        return int(first.split()[1]), await reader.readexactly(sizes[0])
    finally:
        writer.transport.abort()


async def join(port: int, token: str, pair: Pair) -> None:
    """Fetch CA and certificate as EdgeCore's certificate manager does (contract 3.5)."""
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    status, ca = await get(port, blind, "/ca.crt", [])
    hashed, _, bearer = token.partition(".")
    assert status == 200
    assert hashlib.sha256(ca).hexdigest() == hashed
    assert len(token.split(".")) == 4
    pair.ca.write_bytes(x509.load_der_x509_certificate(ca).public_bytes(serialization.Encoding.PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CN"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Hangzhou"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Zhejiang"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{pair.node}"),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    headers = [f"Authorization: Bearer {bearer}", f"Nodename: {pair.node}"]
    trusting = ssl.create_default_context(cafile=str(pair.ca))
    body = request.public_bytes(serialization.Encoding.DER)
    status, signed = await get(port, trusting, "/edge.crt", headers, body)
    assert status == 200, signed
    pair.cert.write_bytes(x509.load_der_x509_certificate(signed).public_bytes(serialization.Encoding.PEM))


class StockEdge:
    """One connection of an EdgeCore: everything received is kept, and acknowledged as EdgeCore does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Json) -> None:
        self._reader, self._writer = reader, writer
        self.answer_headers = headers
        self.received: list[tuple[float, Json]] = []
        self.frames: list[Frame] = []
        self.taken: set[str] = set()
        """Ids of the messages that the test has looked at."""
        self.asked: set[str] = set()
        self.acknowledging = True
        self.sent_acks: list[Json] = []
        self.goodbye: Frame | None = None
        self._changed = asyncio.Event()

    async def send(self, msg: Json) -> Json:
        """`msg` as it was recorded, under an id and a time of its own."""
        header = {**msg["header"], "msg_id": str(uuid.uuid4()), "timestamp": time.time_ns() // 1_000_000}
        sent = {**msg, "header": header}
        if "parent_msg_id" not in header:
            self.asked.add(header["msg_id"])
        await self.send_bytes(go_json(sent))
        return sent

    async def send_bytes(self, payload: bytes) -> None:
        for one in from_edge(payload):
            self._writer.write(one)
        await self._writer.drain()

    async def keep_alive(self) -> None:
        await self.send(message("websocket", "resource", "keepalive", "node", "ping"))

    async def run(self) -> None:
        parts: list[bytes] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                one = await read_frame(self._reader)
                self.frames.append(one)
                if one.opcode == PING:
                    self._writer.write(frame(PONG, one.payload, mask=True))
                elif one.opcode == CLOSE:
                    self.goodbye = one
                elif one.opcode != PONG:
                    assert (one.opcode == TEXT) == (not parts), "frames out of order, or not text"
                    parts.append(one.payload)
                    if one.fin:
                        await self._take(json.loads(b"".join(parts)))
                        parts = []
        self._changed.set()

    async def _take(self, msg: Json) -> None:
        self.received.append((time.monotonic(), msg))
        self._changed.set()
        if self.acknowledging and (ack := self._ack(msg)) is not None:
            self.sent_acks.append(await self.send(ack))

    def _ack(self, msg: Json) -> Json | None:
        source, group, operation, resource = route(msg)
        if group != "resource":
            return None
        parent = msg["header"].get("parent_msg_id", "")
        kind = resource.split("/")[1] if "/" in resource else ""
        if parent and (parent not in self.asked or kind not in REPLIES_ACKNOWLEDGED or operation == "error"):
            return None
        if source == "devicecontroller" and operation in ("insert", "delete"):
            source, group = "meta", "twin"  # as it was recorded
        ack = message(source, group, "response", resource, "OK")
        ack["header"]["parent_msg_id"] = msg["header"]["msg_id"]
        return ack

    async def next(self, of: tuple[str, str, str, str], *, parent: str = "") -> Json:
        """The first message of this route that was not taken yet."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for _, msg in self.received:
                    header = msg["header"]
                    if (
                        route(msg) == of
                        and header.get("parent_msg_id", "") == parent
                        and header["msg_id"] not in self.taken
                    ):
                        self.taken.add(header["msg_id"])
                        return msg
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        self._writer.transport.abort()


def message(source: str, group: str, operation: str, resource: str, content: Any) -> Json:
    return {
        "header": {"msg_id": "", "timestamp": 0},
        "route": {"source": source, "group": group, "operation": operation, "resource": resource},
        "content": content,
    }


async def upgrade(
    port: int, pair: Pair, lines: list[str]
) -> tuple[str, Json, asyncio.StreamReader, asyncio.StreamWriter]:
    """Send an upgrade request of these lines; the status line, the headers, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pair.context())
    writer.write("\r\n".join([*lines, "", ""]).encode())
    first, headers = await read_head(reader)
    return first, {name.lower(): value for name, value in headers}, reader, writer


@contextlib.asynccontextmanager
async def stock_edge(port: int, pair: Pair) -> AsyncIterator[StockEdge]:
    """Dial CloudHub with the recorded request: names in Go's canonical form, no Origin."""
    recorded = handshake()
    key = base64.b64encode(os.urandom(16)).decode()
    fixed = {"host": f"127.0.0.1:{port}", "node_id": pair.node, "sec-websocket-key": key}
    lines = [f"GET {recorded['path'].replace('edge1', pair.node)} HTTP/1.1"]
    lines += [f"{name.title()}: {fixed.get(name, value)}" for name, value in recorded["headers"].items()]
    assert any(line.startswith("Node_Id: ") for line in lines)
    lines = [line.replace("Node_Id", "Node_id").replace("Project_Id", "Project_id") for line in lines]
    first, headers, reader, writer = await upgrade(port, pair, lines)
    assert first.split()[1] == "101", first
    assert headers["sec-websocket-accept"] == accept_key(key)
    assert "sec-websocket-extensions" not in headers
    edge = StockEdge(reader, writer, headers)
    reading = asyncio.create_task(edge.run(), name="stock edge")
    try:
        await edge.keep_alive()
        yield edge
    finally:
        await edge.close()
        await reading
