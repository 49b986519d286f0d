"""Drivers of the toy protocol that are broken where they connect, close, discover, or do the same for all links."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dmi.values import Value
from mappers.sdk import (
    ConfigError,
    DeviceId,
    DeviceTimeout,
    DeviceUnreachable,
    Found,
    FoundProperty,
    ModelProperty,
    Property,
)
from tests.mappers.kit_broken import (
    AsksOnWithoutWaiting,
    EndsTheLinkWhenCancelled,
    Properties,
    Results,
    TakesAnyAnswer,
    left_tasks,
    left_writers,
)
from tests.mappers.kit_toy import PushingDriver, PushingLink, ToyConfig, ToyDriver, ToyLink, ToyVisitor


class NeverConnectsAgain(ToyDriver):
    connected = False

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        if self.connected:
            raise DeviceTimeout(device_id, "once is enough")
        self.connected = True
        async with super().connect(device_id, config) as link:
            yield link


class EndsItsTasks(ToyDriver):
    link_type = AsksOnWithoutWaiting

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        async with super().connect(device_id, config) as link:
            yield link
            assert isinstance(link, AsksOnWithoutWaiting)
            for task in link.behind:
                task.cancel()
            await asyncio.gather(*link.behind, return_exceptions=True)


class OneWaitsForAll(ToyDriver):
    """One lock over all units, held by whoever waits."""

    def __init__(self) -> None:
        lock = asyncio.Lock()

        class Link(ToyLink):
            async def read_many(self, properties: Properties) -> Results:
                async with lock:
                    results = await super().read_many(properties)
                    if any(isinstance(r, DeviceTimeout) for r in results.values()):
                        await asyncio.sleep(60)
                    return results

        self.link_type = Link


class WritesOnce(ToyDriver):
    """Remembers over links what it wrote, and spares itself to write it again."""

    def __init__(self) -> None:
        written: dict[str, Value] = {}

        class Link(ToyLink):
            async def write(self, property_: Property[ToyVisitor], value: Value) -> None:
                if written.get(property_.name) != value:
                    await super().write(property_, value)
                written[property_.name] = value

        self.link_type = Link


class RefusesVaguely(ToyDriver):
    visitor_config = ToyVisitor

    def resolve(self, visitor: ToyVisitor, model: ModelProperty) -> ToyVisitor:
        if visitor.name == "nowhere":
            raise ConfigError("", "something is wrong")
        return visitor


class KeepsTheFirstConfig(ToyDriver):
    """Another config does not reach the device: the new link fails for as long as the mapper runs."""

    first: ToyConfig | None = None

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        self.first = self.first or config
        if config != self.first:
            raise DeviceTimeout(device_id, "busy")
        async with super().connect(device_id, config) as link:
            yield link


class LeavesASocket(ToyDriver):
    async def close(self, writer: asyncio.StreamWriter) -> None:
        left_writers.append(writer)


class ClosesSlowly(ToyDriver):
    async def close(self, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(20)
        finally:
            writer.transport.abort()


class DiscoversNonsense(ToyDriver):
    async def discover(self, config: ToyConfig) -> AsyncIterator[Found]:
        yield Found("found", {}, (FoundProperty("level", "INT", {"name": "level"}),))


class PushesNothing(PushingDriver):
    def __init__(self) -> None:
        class Link(PushingLink):
            async def listen(self, *args: Any) -> None:
                args[2].transport.abort()

        self.link_type = Link


class PushesOn(PushingDriver):
    """Goes on when the link is closed."""

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        async with super(PushingDriver, self).connect(device_id, config) as link:
            yield link
            assert isinstance(link, PushingLink)
            assert link.pushing is not None
            left_tasks.append(link.pushing)


class NeverConnectsOnceCancelled(ToyDriver):
    def __init__(self) -> None:
        self.cancelled = False
        driver = self

        class Link(EndsTheLinkWhenCancelled):
            async def read_many(self, properties: Properties) -> Results:
                try:
                    return await super().read_many(properties)
                except asyncio.CancelledError:
                    driver.cancelled = True
                    raise

        self.link_type = Link

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        if self.cancelled:
            raise DeviceUnreachable(device_id, "never again")
        async with super().connect(device_id, config) as link:
            yield link


class ReopensInNameOnly(ToyDriver):
    """Each link ends with a cancellation, and the next one goes on with the same connection and what is still to come
    on it."""

    def __init__(self) -> None:
        self.first: ToyLink | None = None

        class Link(TakesAnyAnswer):
            ended = False

            async def read_many(self, properties: Properties) -> Results:
                if self.ended:
                    raise DeviceUnreachable(self.id, "ended")
                try:
                    return await super().read_many(properties)
                except asyncio.CancelledError:
                    self.ended = True
                    raise

        self.link_type = Link

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        if self.first is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
            left_writers.append(writer)
            self.first = self.link_type(device_id, config, reader, writer)
        yield self.link_type(device_id, config, self.first.reader, self.first.writer)


class ForgetsWhatIsOwedToTheLinkBefore(ToyDriver):
    """All links share one connection. Each waits for the late answers to its own requests, and takes those to the
    requests of an earlier one."""

    def __init__(self) -> None:
        self.first: ToyLink | None = None

        class Link(TakesAnyAnswer):
            owed = 0

            async def read_many(self, properties: Properties) -> Results:
                while self.owed:
                    await self.answer()
                    self.owed -= 1
                sent = self.number
                try:
                    return await super().read_many(properties)
                except asyncio.CancelledError:
                    self.owed += self.number - sent
                    raise

        self.link_type = Link

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        if self.first is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
            left_writers.append(writer)
            self.first = self.link_type(device_id, config, reader, writer)
        yield self.link_type(device_id, config, self.first.reader, self.first.writer)


class BlocksTheLoopWhenItCloses(ToyDriver):
    """Once it has been used for some time."""

    links = 0

    async def close(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self.links += 1
        if self.links > 2:
            time.sleep(1.2)  # noqa: ASYNC251  # on purpose


class DiscoversNothing(ToyDriver):
    async def discover(self, config: ToyConfig) -> AsyncIterator[Found]:
        nothing: tuple[Found, ...] = ()
        for found in nothing:
            yield found
