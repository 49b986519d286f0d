"""A path between edge core and cloud core that sees the messages: it holds the keys of both, as a thief of all would.

So a cut can fall into the middle of one message, and messages can be kept back, dropped, doubled, swapped and replayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from cloudedge import tls
from tests.faults.loop_thread import LoopThread
from tests.faults.proxy import Direction
from tests.faults.rogue import frame

__all__ = ["Fate", "Seen", "Wiretap", "wiretap"]

Fate = Literal["pass", "cut before", "cut within", "cut after", "drop", "twice", "swap"]
"""Of one message: `cut within` lets half of its bytes through; `swap` has it arrive after the next one."""
_TEXT: Final = 1


class Seen:
    """One message on its way; what was seen is kept."""

    def __init__(self, direction: Direction, text: bytes) -> None:
        self.direction = direction
        self.text = text
        content = json.loads(text)
        self.header: dict[str, Any] = content["header"]
        self.route: dict[str, Any] = content.get("route", {})
        self.content: Any = content.get("content")

    @property
    def operation(self) -> str:
        return str(self.route.get("operation", ""))

    @property
    def resource(self) -> str:
        return str(self.route.get("resource", ""))

    @property
    def answers(self) -> str:
        """The message that this one answers or acknowledges; empty: none."""
        return str(self.header.get("parent_msg_id", ""))


class Wiretap:
    """Made by `wiretap`. `judge` decides on every message, in the order they come; it is called in another thread."""

    def __init__(
        self, thread: LoopThread, target: tuple[str, int], *, server: ssl.SSLContext, client: ssl.SSLContext
    ) -> None:
        self.port = 0
        self.connections = 0
        self.seen: list[Seen] = []
        self.judge: Callable[[Seen], Fate] = lambda _: "pass"
        self.happened: list[tuple[Fate, Seen]] = []
        """What was done other than to pass it on."""
        self._target = target
        self._server_context = server
        self._client_context = client
        self._tasks: set[asyncio.Task[None]] = set()
        self._came = threading.Condition()
        self._thread = thread
        self._writers: dict[Direction, asyncio.StreamWriter] = {}
        """Of the newest connection."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._server_context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def until(self, condition: Callable[[], object], *, within_s: float, what: str) -> None:
        """Wait for something that follows from messages."""
        with self._came:
            assert self._came.wait_for(lambda: bool(condition()), within_s), f"not within {within_s:g} s: {what}"

    def say(self, direction: Direction, text: bytes) -> None:
        """Put a message of our own into the newest connection."""
        self.put(direction, frame(text, masked=direction == "up"))

    def put(self, direction: Direction, data: bytes) -> None:
        """Bytes that need be no frame."""
        self._thread.call(lambda: self._writers[direction].write(data))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            there_reader, there = await asyncio.open_connection(*self._target, ssl=self._client_context)
            writers.append(there)
            self.connections += 1
            self._writers = {"up": there, "down": writer}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(reader, there, "up"))
                tasks.create_task(self._carry(there_reader, writer, "down"))
        except* (OSError, EOFError):
            pass
        finally:
            self._tasks.discard(task)
            for one in writers:
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        writer.write(await reader.readuntil(b"\r\n\r\n"))
        later = b""
        while True:
            whole, opcode, payload = await _read_frame(reader)
            if opcode != _TEXT or not whole[0] & 0x80:  # fragments of large messages and control frames: as they are
                writer.write(whole)
                await writer.drain()
                continue
            seen = Seen(direction, payload)
            fate = self.judge(seen)
            with self._came:
                self.seen.append(seen)
                if fate != "pass":
                    self.happened.append((fate, seen))
                self._came.notify_all()
            out, later = _bytes_for(fate, whole, later)
            writer.write(out)
            await writer.drain()
            if fate.startswith("cut"):
                await asyncio.sleep(0.01)  # what was written arrives first
                raise EOFError


def _bytes_for(fate: Fate, whole: bytes, later: bytes) -> tuple[bytes, bytes]:
    """What goes out now, and what after the next message."""
    match fate:
        case "cut before" | "drop":
            return later, b""
        case "cut within":
            return later + whole[: len(whole) // 2], b""
        case "twice":
            return whole + whole + later, b""
        case "swap":
            return later, whole
    return whole + later, b""


async def _read_frame(reader: asyncio.StreamReader) -> tuple[bytes, int, bytes]:
    """One frame as it came, its opcode, and its payload without mask (RFC 6455, 5.2)."""
    head = await reader.readexactly(2)
    length, masked = head[1] & 0x7F, bool(head[1] & 0x80)
    more = await reader.readexactly({126: 2, 127: 8}.get(length, 0) + 4 * masked)
    if length >= 126:
        length = int.from_bytes(more[: -4 if masked else None])
    body = await reader.readexactly(length)
    payload = body
    if masked and length:
        mask = (more[-4:] * (length // 4 + 1))[:length]
        payload = (int.from_bytes(body) ^ int.from_bytes(mask)).to_bytes(length)
    return head + more + body, head[0] & 0x0F, payload


@contextlib.contextmanager
def wiretap(thread: LoopThread, target: tuple[str, int], certificates: Path, node: str) -> Iterator[Wiretap]:
    """Between `node` and the cloud core at `target`, while the block runs. `certificates`: what `mint` wrote."""
    ca, files = certificates / "ca.crt", certificates
    server = tls.server_context(ca_file=ca, cert_file=files / "server.crt", key_file=files / "server.key")
    client = tls.client_context(ca_file=ca, cert_file=files / f"{node}.crt", key_file=files / f"{node}.key")
    tap = Wiretap(thread, target, server=server, client=client)
    thread.run(tap.start())
    try:
        yield tap
    finally:
        thread.run(tap.stop())
