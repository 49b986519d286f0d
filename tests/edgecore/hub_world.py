"""A hub of its own with what it tells and logs, and a path to the cloud that can be spoilt."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

from cloudedge import Message, new_message
from dmi.metrics import Counter, Metrics
from edgecore.bus import Bus, CloudConnected, CloudLost, Reply, UpstreamKept
from edgecore.config import EdgeHubConfig
from edgecore.edgehub import EdgeHub
from edgecore.store import open_database
from edgecore.store.outbox import OutboxSize, outbox_size
from tests.edgecore.peers import NODE


class Told(logging.Filter):
    """Waits for log lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def filter(self, record: logging.LogRecord) -> bool:
        self._lines.put_nowait(record.getMessage())
        return True

    async def until(self, text: str) -> None:
        async with asyncio.timeout(10):
            while text not in await self._lines.get():
                pass


class Events:
    """A hub of its own, and what it tells."""

    def __init__(self, settings: EdgeHubConfig, directory: Path) -> None:
        self.bus = Bus()
        self.metrics = Metrics()
        self.replies: asyncio.Queue[Reply] = asyncio.Queue()
        self._settings = settings
        self._directory = directory
        self._around = contextlib.AsyncExitStack()
        self.connected: asyncio.Queue[CloudConnected] = asyncio.Queue()
        self.lost: asyncio.Queue[CloudLost] = asyncio.Queue()
        self.bus.subscribe(CloudConnected, self.connected.put)
        self.bus.subscribe(CloudLost, self.lost.put)
        self.bus.subscribe(Reply, self.replies.put)

    async def __aenter__(self) -> "Events":
        self.database = await self._around.enter_async_context(open_database(self._directory / "hub.db"))
        self.hub = EdgeHub(self._settings, node=NODE, bus=self.bus, database=self.database, metrics=self.metrics)
        self._task = asyncio.create_task(self.hub.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._around.aclose()
        assert self._task.cancelled()

    def count(self, name: str, *labels: str) -> float:
        source: Any = self.metrics.entries[f"kubetwin_edgecore_{name}"].source
        return float(source.values[labels] if isinstance(source, Counter) else source.read()[labels])

    async def keep(self, text: str, key: str = "") -> None:
        await self.bus.publish(UpstreamKept(upload(text), key))

    async def emptied(self) -> None:
        """Everything that was kept has arrived, as far as the hub knows."""
        async with asyncio.timeout(10):
            while await self.database.run(outbox_size) != OutboxSize():  # noqa: ASYNC110 - a row of a file
                await asyncio.sleep(0.02)


def upload(text: str) -> Message:
    return new_message(source="bus", group="user", operation="upload", resource="default/user/a", content=text)


class Wire:
    """A TCP path to `port` that can fall silent, take nothing, or break after so many bytes."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self.silent = False
        """Both ends' bytes are taken and go nowhere: a half-open connection."""
        self.stuffed = asyncio.Event()
        """Cleared: nothing is read from the edge any more."""
        self.stuffed.set()
        self.up_bytes: int | None = None
        """So many more from the edge get through, and then it breaks."""
        self.down_bytes: int | None = None
        self._to = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._open, "127.0.0.1", 0, limit=16 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            there, to = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(to)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(reader, to, up=True))
                tasks.create_task(self._carry(there, writer, up=False))
        except* (OSError, EOFError):
            pass
        finally:
            for one in writers:
                one.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        while data := await reader.read(4096):
            if up:
                await self.stuffed.wait()
            left = self.up_bytes if up else self.down_bytes
            if left is not None:
                data = data[:left]
                left -= len(data)
                self.up_bytes, self.down_bytes = (left, self.down_bytes) if up else (self.up_bytes, left)
            if self.silent:
                continue
            writer.write(data)
            await writer.drain()
            if left == 0:
                self.up_bytes = self.down_bytes = None
                raise ConnectionResetError
        raise EOFError
