"""Links of the toy protocol, each broken in its own way: what the conformance suite is there to find."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dmi.values import Value
from mappers.sdk import (
    DeviceTimeout,
    DeviceUnreachable,
    Property,
    ReadResult,
)
from tests.mappers.kit_toy import ToyDriver, ToyLink, ToyVisitor

Properties = Sequence[Property[ToyVisitor]]
Results = Mapping[str, ReadResult]
left_tasks: list[asyncio.Task[Any]] = []
left_threads: list[threading.Event] = []
left_writers: list[asyncio.StreamWriter] = []
"""What they leave behind on purpose, for the tests to clear away."""


def driver_of(link: type[ToyLink]) -> ToyDriver:
    driver = ToyDriver()
    driver.link_type = link
    return driver


class FirstValueForEver(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        if not hasattr(self, "first"):
            self.first = await super().read_many(properties)
        return self.first


class BelievesHalfLines(ToyLink):
    """Takes whatever digits there are in whatever has arrived."""

    async def answer(self) -> str:
        data = await self.reader.read(1000)
        if not data:
            raise ConnectionResetError("closed")
        head, _, tail = data.decode("latin-1").strip().partition(" ")
        return tail if "ok" in tail else f"= {''.join(c for c in tail if c.isdigit()) or len(data) + len(head)}"


class RaisesItsLibrarysErrors(ToyLink):
    async def ask(self, request: str) -> str:
        self.number += 1
        self.writer.write(f"{self.number} {request}\n".encode())
        async with asyncio.timeout(0.2):
            return await self.answer()


class WaitsForEver(ToyLink):
    async def ask(self, request: str) -> str:
        async with self.lock:
            self.number += 1
            self.writer.write(f"{self.number} {request}\n".encode())
            return await self.answer()


class TakesAnyAnswer(ToyLink):
    """Also the late one to a request that was cancelled."""

    async def answer(self) -> str:
        return (await self.reader.readline()).decode().strip().partition(" ")[2]


class SwallowsCancellation(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        try:
            return await super().read_many(properties)
        except asyncio.CancelledError:
            raise OSError("interrupted") from None


class AsksOnWithoutWaiting(ToyLink):
    """Answers from memory at once, and piles up requests behind the caller's back."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory: Results = {}
        self.behind: set[asyncio.Task[None]] = set()

    async def read_many(self, properties: Properties) -> Results:
        if len(self.memory) < len(properties):
            self.memory = {**self.memory, **await super().read_many(properties)}

        async def refresh() -> None:
            self.memory = {**self.memory, **await super(AsksOnWithoutWaiting, self).read_many(properties)}

        task = asyncio.create_task(refresh())
        self.behind.add(task)
        return self.memory


class OnlySaysItWrote(ToyLink):
    """Reads back what it was told to write."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.written: dict[str, Value] = {}

    async def read_many(self, properties: Properties) -> Results:
        return {
            **await super().read_many(properties),
            **{p.name: self.written[p.name] for p in properties if p.name in self.written},
        }

    async def write(self, property_: Property[ToyVisitor], value: Value) -> None:
        self.written[property_.name] = value


class NoLock(ToyLink):
    """Several at once on one wire, and each takes the first answer that comes."""

    async def ask(self, request: str) -> str:
        self.number += 1
        self.writer.write(f"{self.number} {request}\n".encode())
        try:
            async with asyncio.timeout(0.2):
                while True:
                    try:
                        return (await self.reader.readline()).decode().strip().partition(" ")[2]
                    except RuntimeError:  # somebody else reads at this moment
                        await asyncio.sleep(0)
        except TimeoutError:
            raise DeviceTimeout(self.id, "no reply") from None


class PlansOnce(ToyLink):
    """Remembers for each name what it was asked to read first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plan: dict[str, Property[ToyVisitor]] = {}

    async def read_many(self, properties: Properties) -> Results:
        return await super().read_many([self.plan.setdefault(p.name, p) for p in properties])


class ReconnectsForAnyRead(ToyLink):
    """Breaks with every change of what is read together."""

    async def read_many(self, properties: Properties) -> Results:
        if getattr(self, "asked", properties) != properties and len(properties) > 1:
            self.writer.transport.abort()
        if len(properties) > 1:
            self.asked = properties
        return await super().read_many(properties)


class LeavesATask(ToyLink):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.task = asyncio.create_task(asyncio.sleep(30), name="left")
        left_tasks.append(self.task)


class LeavesAThread(ToyLink):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        stop = threading.Event()
        left_threads.append(stop)
        threading.Thread(target=stop.wait, args=(30,), name="left", daemon=True).start()


class HatesHaste(ToyLink):
    """Breaks when it is asked again within a second."""

    asked_at = -10.0

    async def read_many(self, properties: Properties) -> Results:
        before, self.asked_at = self.asked_at, asyncio.get_running_loop().time()
        if self.asked_at - before < 1:
            raise DeviceUnreachable(self.id, "not so fast")
        return await super().read_many(properties)


class HangsOnASlowDevice(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        began = asyncio.get_running_loop().time()
        results = await super().read_many(properties)
        if asyncio.get_running_loop().time() - began > 0.2:
            await asyncio.Event().wait()
        return results


class StopsReadingAfterASlowWrite(ToyLink):
    """Only the read that confirms the write still comes back."""

    slow = False

    async def write(self, property_: Property[ToyVisitor], value: Value) -> None:
        began = asyncio.get_running_loop().time()
        await super().write(property_, value)
        self.slow |= asyncio.get_running_loop().time() - began > 0.05

    async def read_many(self, properties: Properties) -> Results:
        if self.slow and len(properties) > 1:
            await asyncio.Event().wait()
        return await super().read_many(properties)


class LeavesPropertiesOut(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        return await super().read_many(properties[:-1])


class GoesOnThoughCancelled(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        while True:
            try:
                return await super().read_many(properties)
            except asyncio.CancelledError:
                await asyncio.sleep(0)


class EndsTheLinkWhenCancelled(ToyLink):
    """Not broken: a protocol whose replies carry no number may have no other way to get in step again."""

    async def read_many(self, properties: Properties) -> Results:
        try:
            return await super().read_many(properties)
        except asyncio.CancelledError:
            self.writer.transport.abort()
            raise
