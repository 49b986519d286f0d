"""The conformance suite itself: each of its tests fails on a driver that is broken in just that way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

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
    ReadResult,
)
from mappers.sdk.testing.conformance import DriverConformance
from tests.mappers.kit_toy import (
    PushingDriver,
    PushingLink,
    ToyConfig,
    ToyDriver,
    ToyLink,
    ToySubject,
    ToyVisitor,
    toy_subject,
)

Properties = Sequence[Property[ToyVisitor]]
Results = Mapping[str, ReadResult]
check = DriverConformance()


def driver_of(link: type[ToyLink]) -> ToyDriver:
    driver = ToyDriver()
    driver.link_type = link
    return driver


class FirstValueForEver(ToyLink):
    async def read_many(self, properties: Properties) -> Results:
        if not hasattr(self, "first"):
            self.first = await super().read_many(properties)
        return self.first


class NeverConnectsAgain(ToyDriver):
    connected = False

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ToyConfig) -> AsyncIterator[ToyLink]:
        if self.connected:
            raise DeviceTimeout(device_id, "once is enough")
        self.connected = True
        async with super().connect(device_id, config) as link:
            yield link


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


class HatesHaste(ToyLink):
    """Breaks when it is asked again within a second."""

    asked_at = -10.0

    async def read_many(self, properties: Properties) -> Results:
        before, self.asked_at = self.asked_at, asyncio.get_running_loop().time()
        if self.asked_at - before < 1:
            raise DeviceUnreachable(self.id, "not so fast")
        return await super().read_many(properties)


left_tasks: list[asyncio.Task[Any]] = []
left_threads: list[threading.Event] = []
left_writers: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def cleared() -> AsyncIterator[None]:
    yield
    for task in left_tasks:
        task.cancel()
    await asyncio.gather(*left_tasks, return_exceptions=True)
    for stop in left_threads:
        stop.set()
    for writer in left_writers:
        writer.transport.abort()
    left_tasks.clear()
    left_threads.clear()
    left_writers.clear()


MUTANTS: list[tuple[Callable[[], ToyDriver], Callable[[Any], Awaitable[None]], str]] = [
    (lambda: driver_of(FirstValueForEver), check.test_reads_good_values, "level is 34, and good"),
    (NeverConnectsAgain, check.test_reconnects_after_the_device_restarted, "level is 34, and good"),
    (lambda: driver_of(BelievesHalfLines), check.test_garbage_never_becomes_a_value, "level is stale or bad|became"),
    (lambda: driver_of(RaisesItsLibrarysErrors), check.test_failures_are_device_errors, "no DeviceError"),
    (lambda: driver_of(WaitsForEver), check.test_half_open_links_are_noticed, "did not end within"),
    (lambda: driver_of(TakesAnyAnswer), check.test_a_cancelled_read_leaves_the_link_usable, "the link gives"),
    (lambda: driver_of(SwallowsCancellation), check.test_a_cancelled_read_leaves_the_link_usable, "not CancelledError"),
    (EndsItsTasks, check.test_a_slow_device_is_not_asked_again_meanwhile, "do not wait for the device|more tasks"),
    (OneWaitsForAll, check.test_a_dead_unit_leaves_its_neighbour_alone, "and good"),
    (lambda: driver_of(OnlySaysItWrote), check.test_desired_values_are_applied_and_read_back, "counts as applied"),
    (WritesOnce, check.test_desired_values_are_applied_again_after_a_restart, "is written again"),
    (lambda: driver_of(NoLock), check.test_writes_and_reads_do_not_disturb_each_other, "beside|after a write"),
    (lambda: driver_of(PlansOnce), check.test_another_visitor_is_read_over_the_same_link, "level is 41, and good"),
    (lambda: driver_of(ReconnectsForAnyRead), check.test_another_visitor_is_read_over_the_same_link, "new link"),
    (KeepsTheFirstConfig, check.test_another_protocol_config_reconnects_once, "level is 34, and good"),
    (lambda: driver_of(LeavesATask), check.test_closing_leaves_nothing_behind, "task left"),
    (lambda: driver_of(LeavesAThread), check.test_closing_leaves_nothing_behind, "thread left"),
    (LeavesASocket, check.test_closing_leaves_nothing_behind, "file descriptor"),
    (ClosesSlowly, check.test_closing_leaves_nothing_behind, "did not close within"),
    (lambda: driver_of(HatesHaste), check.test_another_cycle_keeps_the_link, "new link|and good"),
    (DiscoversNonsense, check.test_what_is_discovered_can_be_declared, "discovered, and refused"),
]


@pytest.mark.parametrize(("broken", "test", "words"), MUTANTS)
async def test_a_broken_driver_fails(
    broken: Callable[[], ToyDriver], test: Callable[[ToySubject], Awaitable[None]], words: str
) -> None:
    async with toy_subject(broken()) as subject:
        subject.patience_s = 3.0
        with pytest.raises(AssertionError, match=words):
            await test(subject)


@pytest.mark.parametrize(
    ("broken", "words"),
    ((PushesNothing, "is pushed"), (PushesOn, "after the link was closed"), (ToyDriver, "no subscribe")),
)
async def test_a_driver_that_pushes_badly_fails(broken: Callable[[], ToyDriver], words: str) -> None:
    async with toy_subject(broken()) as subject:
        subject.patience_s = 3.0
        subject.pushed = "level"
        with pytest.raises(AssertionError, match=words):
            await check.test_pushes_what_changed(subject)


async def test_a_driver_that_does_not_say_which_setting_is_wrong_fails() -> None:
    async with toy_subject(RefusesVaguely()) as subject:
        subject.wrong_visitor = {"name": "nowhere"}
        with pytest.raises(AssertionError, match="refused without its path"):
            await check.test_wrong_settings_are_refused_with_their_path(subject)
        subject.wrong_visitor = {}
        subject.wrong_config = {"unit": "anything"}
        with pytest.raises(AssertionError, match="is accepted"):
            await check.test_wrong_settings_are_refused_with_their_path(subject)


async def test_values_that_a_stock_edge_core_drops_are_told_of() -> None:
    async with toy_subject(ToyDriver()) as subject:
        subject.model = msgspec.structs.replace(
            subject.model, properties=(ModelProperty("level", "STRING", "ReadOnly"), subject.model.properties[1])
        )
        subject.values = ("50%", "60%")
        with pytest.raises(AssertionError, match="'50%' is dropped silently"):
            await check.test_a_stock_edge_core_takes_the_reports(subject)


async def test_what_the_subject_does_not_have_is_skipped() -> None:
    async with toy_subject(ToyDriver()) as subject:
        subject.faults, subject.writable, subject.neighbour = None, "", None
        for test in (
            check.test_garbage_never_becomes_a_value,
            check.test_half_open_links_are_noticed,
            check.test_a_dead_unit_leaves_its_neighbour_alone,
            check.test_desired_values_are_applied_and_read_back,
        ):
            with pytest.raises(pytest.skip.Exception):
                await test(subject)
