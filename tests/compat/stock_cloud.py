"""Plays upstream's CloudCore: a TLS server that speaks as it was recorded (channel contract 1.3, 2.2, 4.3, 5.3).

It answers nothing that upstream leaves unanswered: no membership, no upload, no keepalive. What is to be confirmed
goes out again every five seconds under its id, five times at most.
"""

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from pathlib import Path
from typing import Any

from tests.compat.frames import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    Frame,
    accept_key,
    frame,
    from_cloud,
    go_json,
    read_frame,
    read_head,
)
from tests.compat.recorded import Json, line, route
from tests.compat.stock_edge import SUITES

RESEND_S = 5.0
KEEPALIVE_S = 30.0
DEADLINE_S = 20.0
RECORDED_AS = "edge1"


class StockCloud:
    """`directory`: what `mint` wrote. Serves one node at a time."""

    def __init__(self, directory: Path, node: str) -> None:
        self.directory, self.node = directory, node
        self.port = 0
        self.requests: list[tuple[str, list[tuple[str, str]]]] = []
        """Upgrades: the request line, and the headers as they were written."""
        self.received: list[tuple[float, Json]] = []
        self.frames: list[Frame] = []
        self.acked: set[str] = set()
        self.sent: dict[str, int] = {}
        """How often each message that is to be confirmed went out."""
        self.losing_acks = 0
        """So many acknowledgements are not heard."""
        self.answering = True
        self.versions = 45000
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "StockCloud":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(SUITES)
        context.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        context.load_verify_locations(self.directory / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = await asyncio.start_server(self._open, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def drop(self) -> None:
        """Close the socket without a WebSocket close frame, as upstream does."""
        if self._writer is not None:
            self._writer.transport.abort()

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer), "stock cloud")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            first, headers = await read_head(reader)
            self.requests.append((first, headers))
            key = next(value for name, value in headers if name.lower() == "sec-websocket-key")
            lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
            writer.write("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""]).encode())
            self._writer = writer
            await self._read(reader, writer)
        writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts: list[bytes] = []
        while True:
            one = await read_frame(reader)
            self.frames.append(one)
            if one.opcode == PING:
                writer.write(frame(PONG, one.payload))
            elif one.opcode == CLOSE:
                return
            elif one.opcode != PONG:
                assert (one.opcode == CONTINUATION) == bool(parts), "frames out of order"
                parts.append(one.payload)
                if one.fin:
                    await self._take(json.loads(b"".join(parts)))
                    parts = []

    async def _take(self, msg: Json) -> None:
        async with self._changed:
            self.received.append((time.monotonic(), msg))
            if msg["route"]["operation"] == "response":
                if self.losing_acks:
                    self.losing_acks -= 1
                else:
                    self.acked.add(msg["header"]["parent_msg_id"])
            self._changed.notify_all()
        if self.answering and (answer := self._answer(msg)) is not None:
            await self.write(answer)

    def _answer(self, msg: Json) -> Json | None:
        """What was recorded for such a request, for this node and with this request's id as parent."""
        source, _, operation, resource = route(msg)
        kind = resource.split("/")[1] if resource.count("/") == 2 else ""
        match source, operation, kind:
            case "edged", "insert", "node":
                answer = self.adapted(10)
                answer["content"]["Object"]["metadata"]["labels"] = msg["content"]["metadata"]["labels"]
            case "edged", "patch", "nodepatch":
                assert isinstance(msg["content"], str), "a patch travels as text"
                answer = self.adapted(15)
            case "edged", "query", "lease":
                answer = self.adapted(4)
            case "edged", "insert" | "update", "lease":
                answer = self.adapted(7)
            case "twin", "update", _ if resource.startswith("device/"):
                answer = self.adapted(28)
            case _:
                return None
        answer["header"]["parent_msg_id"] = msg["header"]["msg_id"]
        return answer

    def adapted(self, number: int) -> Json:
        """A recorded message for our node, under an id of its own."""
        text = json.dumps(line(number).msg).replace(RECORDED_AS, self.node)
        msg: Json = json.loads(text)
        msg["header"].update(msg_id=str(uuid.uuid4()), timestamp=time.time_ns() // 1_000_000)
        return msg

    async def write(self, msg: Json, *, encoded: bytes = b"") -> None:
        assert self._writer is not None
        for one in from_cloud(encoded or go_json(msg)):
            self._writer.write(one)
        await self._writer.drain()

    async def send(self, msg: Json, *, encoded: bytes = b"") -> str:
        """Send what is to be confirmed, until it is; its id."""
        id_: str = msg["header"]["msg_id"]
        self.sent[id_] = 0
        self._spawn(self._repeat(msg, encoded), f"resend {id_}")
        return id_

    async def _repeat(self, msg: Json, encoded: bytes) -> None:
        id_ = msg["header"]["msg_id"]
        for _ in range(5):
            self.sent[id_] += 1
            with contextlib.suppress(ConnectionError):
                await self.write(msg, encoded=encoded)
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESEND_S):
                        await self._changed.wait_for(lambda: id_ in self.acked)
                        return

    async def until(self, condition: Any, what: str) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_S), self._changed:
                return await self._changed.wait_for(condition)
        except TimeoutError:
            seen = [route(msg) for _, msg in self.received]
            raise AssertionError(f"never: {what}; there were {seen}") from None

    async def confirmed(self, *ids: str) -> None:
        await self.until(lambda: self.acked.issuperset(ids), f"{len(ids)} acknowledged")

    def of(self, operation: str, resource: str) -> list[Json]:
        return [m for _, m in self.received if route(m)[2:] == (operation, resource)]

    async def first(self, operation: str, resource: str, number: int = 0) -> Json:
        await self.until(lambda: len(self.of(operation, resource)) > number, f"{operation} {resource}")
        return self.of(operation, resource)[number]
