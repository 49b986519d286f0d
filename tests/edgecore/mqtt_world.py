"""EventBus in this process, with what stands around it: a store, the bus, an app on the broker, and brokers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest

from cloudedge import Message, new_message
from dmi.metrics import Metrics
from edgecore.bus import Bus, MqttIn, MqttOut, UpstreamKept, UserMessage
from edgecore.config import EventBusConfig
from edgecore.eventbus import EventBus
from edgecore.eventbus.link import Link
from edgecore.store import Database, StoreError, open_database

DEADLINE_S = 30.0
UPDATE = "$hw/events/device/default/boiler-1/twin/update"


async def until(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  # of several parts, some in other processes
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {within_s} s: {what}")


class World:
    """One node's EventBus; the device twin and the cloud are noted down."""

    def __init__(self, config: EventBusConfig, database: Database) -> None:
        self.bus = Bus()
        self.metrics = Metrics()
        self.database = database
        self.twin: list[MqttIn] = []
        self.cloud: list[Message] = []
        self.store_takes = True
        self.twin_may = asyncio.Event()
        self.twin_may.set()
        self.bus.subscribe(MqttIn, self._take)
        self.bus.subscribe(UpstreamKept, self._upload)
        self.events = EventBus(config, self.bus, node="edge-1", database=database, metrics=self.metrics)

    async def _take(self, event: MqttIn) -> None:
        await self.twin_may.wait()
        self.twin.append(event)

    async def _upload(self, event: UpstreamKept) -> None:
        if not self.store_takes:
            raise StoreError("no room")
        self.cloud.append(event.message)

    async def say(self, operation: str, resource: str, content: Any = None) -> None:
        """As the cloud's router."""
        message = new_message(
            source="router_eventbus", group="user", operation=operation, resource=resource, content=content
        )
        await self.bus.publish(UserMessage(message))

    def tell(self, topic: str, payload: bytes, *, latest: bool = False) -> None:
        self.bus.tell(MqttOut(topic, payload, latest))

    def count(self, name: str, *labels: str) -> float:
        source: Any = self.metrics.entries[f"kubetwin_edgecore_mqtt_{name}"].source
        return float(source.values[labels])

    @property
    def links(self) -> list[Link]:
        """The connections that are read from."""
        return [c.reading for c in self.events._clients if c.reading is not None]

    async def settled(self) -> None:
        """Everything that is to be subscribed to is."""
        clients = self.events._clients
        await until(lambda: all(c._applied == c._desired for c in clients), "subscribed")

    async def up(self) -> None:
        await until(lambda: self.events.is_up, f"connected; {self.events.trouble}")


@asynccontextmanager
async def world(config: EventBusConfig, directory: Path, *, connect: bool = True) -> AsyncIterator[World]:
    strays: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strays.append(context))
    async with open_database(directory / "edgecore.db") as database:
        made = World(config, database)
        task = asyncio.create_task(made.events.run(), name="eventbus under test")
        try:
            if connect:
                await made.up()
                await made.settled()
            yield made
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    await asyncio.sleep(0)
    assert not strays, "a callback of the loop failed"


class App:
    """A local app: what it hears, by topic, in order."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.heard: list[tuple[str, bytes]] = []

    async def publish(self, topic: str, payload: Any = b"", qos: int = 1, *, retain: bool = False) -> None:
        body = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        await self.client.publish(topic, body, qos, retain)

    def on(self, topic: str) -> list[bytes]:
        return [payload for one, payload in self.heard if one == topic]

    async def hears(self, topic: str, count: int = 1) -> bytes:
        await until(lambda: len(self.on(topic)) >= count, f"{count} on {topic}, of {self.heard[-5:]}")
        return self.on(topic)[count - 1]


@asynccontextmanager
async def app(port: int, *filters: str, hostname: str = "127.0.0.1", **options: Any) -> AsyncIterator[App]:
    async with aiomqtt.Client(hostname, port, **options) as client:
        client.pending_calls_threshold = 10_000
        made = App(client)
        for one in filters:
            await client.subscribe(one, 1)

        async def listen() -> None:
            with contextlib.suppress(aiomqtt.MqttError):
                async for message in client.messages:
                    made.heard.append((str(message.topic), bytes(message.payload)))

        task = asyncio.create_task(listen(), name="app under test")
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.wait([task])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """Debian's broker on a port of its own. What it is told it keeps in `directory`."""

    def __init__(self, directory: Path, *lines: str) -> None:
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert program is not None, "mosquitto is not installed: make test-programs"
        self._program = program
        self.port = free_port()
        self.log = directory / "mosquitto.log"
        self._config = directory / "mosquitto.conf"
        self._directory = directory
        self._lines = lines or ("listener PORT 127.0.0.1", "allow_anonymous true")
        self.configure()
        self._process: asyncio.subprocess.Process | None = None

    def configure(self, *more: str) -> None:
        """For the next start."""
        general = ("user root", "log_type all", "persistence true", f"persistence_location {self._directory}/")
        lines = [*general, *more, *self._lines, ""]
        self._config.write_text("\n".join(lines).replace("PORT", str(self.port)))

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._program, "-c", str(self._config), stdout=log, stderr=log
            )
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    assert self._process.returncode is None, self.log.read_text()[-2000:]
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.send_signal(number)
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def mosquitto(directory: Path, *lines: str) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(directory, *lines)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop(signal.SIGKILL)
