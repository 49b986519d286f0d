"""Drivers that raise, hang or leak: contained, started over, counted, and named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from dmi.types import DeviceId
from mappers.sdk import ConfigError, DeviceUnreachable, Link, Property, ReadResult
from mappers.sdk import calls as calls_module
from mappers.sdk import collect as collect_module
from mappers.sdk import connection as connection_module
from mappers.sdk import device as device_module
from mappers.sdk import leaks as leaks_module
from mappers.sdk.context import LinkScope, current_device, current_link, detached
from tests.mappers.mapper_world import prop, wanting
from tests.mappers.runner_world import ID, AnyConfig, AnyVisitor, LinkDriver, Recorder, any_device, running_device

Properties = Sequence[Property[AnyVisitor]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))
    monkeypatch.setattr(device_module, "RESTART_S", (0.01, 60.0))


class Answers:
    """A link whose reads end as `act` does."""

    def __init__(self, act: Callable[[], ReadResult] = lambda: 1) -> None:
        self.act = act

    async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
        return {p.name: self.act() for p in properties}


def raising(error: BaseException) -> Callable[[], ReadResult]:
    def act() -> ReadResult:
        raise error

    return act


@pytest.mark.parametrize("error", (asyncio.CancelledError(), SystemExit(3), BaseExceptionGroup("g", [SystemExit()])))
async def test_what_would_end_a_task_or_the_process_is_a_bug_of_the_driver(error: BaseException) -> None:
    recorder, broken = Recorder(), Answers(raising(error))
    links = iter([broken, broken, Answers()])
    async with running_device(
        LinkDriver(lambda: next(links)), any_device(prop("level", cycle_ms=10)), recorder
    ) as runner:
        await recorder.until(lambda: recorder.value("level") == "1" and recorder.states[-1] == ("online", ""))
        assert recorder.states[0][0] == "unhealthy"
        assert f"{type(error).__name__} raised" in recorder.states[0][1]
        assert (runner.stats.driver_errors, runner.stats.restarts) == (2, 0)


class Stubborn(Answers):
    """Reads that ignore being cancelled until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.ended = asyncio.Event()

    async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        self.ended.set()
        return await super().read_many(properties)


async def test_a_call_that_cannot_be_cancelled_is_given_up_and_the_device_started_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.05)
    monkeypatch.setattr(calls_module, "STUCK_S", 0.05)
    monkeypatch.setattr(device_module, "END_DEADLINE_S", 0.05)
    stubborn, recorder = Stubborn(), Recorder()
    links = iter([stubborn, Answers(lambda: 2)])
    async with running_device(
        LinkDriver(lambda: next(links)), any_device(prop("level", cycle_ms=10)), recorder
    ) as runner:
        await recorder.until(lambda: runner._connection.cycle._task is not None)
        waiting = asyncio.create_task(runner.read_property("level"))
        await recorder.until(lambda: recorder.value("level") == "2")
        assert (runner.stats.restarts, runner.stats.leaked_tasks) == (1, 1)
        stubborn.let_go.set()
        await stubborn.ended.wait()
        await asyncio.wait([waiting], timeout=5)
        assert isinstance(waiting.exception(), DeviceUnreachable)  # it was the turn of a link that is given up
        assert runner.stats.reconnects == 1
        assert recorder.states[-1] == ("online", "")
        reports = len(recorder.reports)
        await asyncio.sleep(0.02)
        assert {r["level"].reported.value for r in recorder.reports[:reports]} <= {"", "2"}
    assert f"did not let go of: collect {ID}" in caplog.text


async def test_a_disconnect_that_hangs_does_not_keep_the_device_from_its_next_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_DEADLINE_S", 0.05)
    monkeypatch.setattr(calls_module, "STUCK_S", 0.05)
    monkeypatch.setattr(device_module, "END_DEADLINE_S", 0.05)
    let_go = asyncio.Event()

    class Clinging(LinkDriver):
        stubborn = False

        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            first = self.opened == 0
            async with super().connect(device_id, config) as link:
                try:
                    yield link
                finally:
                    while first and not let_go.is_set():
                        try:
                            await let_go.wait()
                        except asyncio.CancelledError:
                            if not self.stubborn:
                                raise

    for stubborn in (False, True):
        let_go.clear()
        recorder = Recorder()
        links = iter([Answers(raising(DeviceUnreachable(ID, "gone"))), Answers(lambda: 2)])
        driver = Clinging(lambda links=links: next(links))  # type: ignore[misc]
        driver.stubborn = stubborn
        async with running_device(driver, any_device(prop("level", cycle_ms=10)), recorder) as runner:
            await recorder.until(lambda recorder=recorder: recorder.value("level") == "2")  # type: ignore[misc]
            assert runner.stats.restarts == int(stubborn)
            assert runner.stats.driver_errors >= 1
            let_go.set()


async def test_a_connect_given_up_long_ago_does_not_harm_the_link_that_came_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.05)
    monkeypatch.setattr(calls_module, "STUCK_S", 0.05)
    monkeypatch.setattr(device_module, "END_DEADLINE_S", 0.05)
    let_go = asyncio.Event()

    class Late(LinkDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            first = self.opened == 0
            async with super().connect(device_id, config) as link:
                while first and not let_go.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await let_go.wait()
                yield link

    reads = 0

    def count() -> int:
        nonlocal reads
        reads += 1
        return 7

    driver, recorder = Late(lambda: Answers(count)), Recorder()
    async with running_device(driver, any_device(prop("level", cycle_ms=10)), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "7")
        let_go.set()
        await recorder.until(lambda: driver.closed == 1)  # what was opened too late is closed
        before = reads
        await recorder.until(lambda: reads > before + 5)
        assert (driver.opened, driver.closed, runner.stats.restarts) == (2, 1, 1)
        assert recorder.states[-1] == ("online", "")


async def test_a_device_that_waits_to_be_started_over_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "RESTART_S", (60.0, 60.0))
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.05)
    monkeypatch.setattr(calls_module, "STUCK_S", 0.05)
    monkeypatch.setattr(device_module, "END_DEADLINE_S", 0.05)
    stubborn, recorder = Stubborn(), Recorder()
    async with running_device(LinkDriver(lambda: stubborn), any_device(prop("level", cycle_ms=10)), recorder) as runner:
        await recorder.until(lambda: runner.stats.restarts == 1)
        stubborn.let_go.set()
        await stubborn.ended.wait()
        assert recorder.states == [("unhealthy", "a call of the driver does not end; it is started again")]
        with pytest.raises(DeviceUnreachable, match="does not end"):
            await runner.read_property("level")


async def test_a_config_refused_on_connect_is_tried_again_in_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONFIG_RETRY_S", 0.1)
    faults: list[Exception] = [ConfigError("host", "no such file")] * 3

    class Refusing(LinkDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            async with super().connect(device_id, config) as link:
                if faults:
                    raise faults.pop()
                yield link

    driver, recorder = Refusing(Answers), Recorder()
    async with running_device(driver, any_device(prop("level", cycle_ms=10)), recorder) as runner:
        started = asyncio.get_running_loop().time()
        await recorder.until(lambda: recorder.quality("level") == "bad")
        assert recorder.twins["level"].reported.reason == "spec.protocol.configData.host: no such file"
        await recorder.until(lambda: recorder.quality("level") == "good")
        assert driver.opened == 4
        assert asyncio.get_running_loop().time() - started > 0.25  # and not as soon as after a lost link
        assert recorder.states == [
            ("unhealthy", "spec.protocol.configData.host: no such file"),
            ("online", ""),
        ]
        assert [r["level"].reported.quality for r in recorder.reports][:2] == ["bad", "good"]
        assert (runner.stats.driver_errors, runner.stats.reconnects) == (0, 0)


async def test_tasks_left_behind_a_closed_link_are_ended_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    left: list[asyncio.Task[None]] = []
    shared: list[asyncio.Task[None]] = []
    kept: list[asyncio.Task[None]] = []

    async def forever() -> None:
        await asyncio.Event().wait()

    class Leaking(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            if not left:
                left.append(asyncio.create_task(self._nested(), name="leaked by a read"))
                shared.append(asyncio.create_task(forever(), name="shared line", context=detached()))
            return await super().read_many(properties)

        async def _nested(self) -> None:
            left.append(asyncio.create_task(forever(), name="leaked by a leaked one"))
            await forever()

    class Tidy(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            if not kept:
                kept.append(asyncio.create_task(forever(), name="of the open link"))
            return await super().read_many(properties)

    links = iter([Leaking(), Tidy()])
    recorder = Recorder()
    device = any_device(prop("level", cycle_ms=10))
    async with running_device(LinkDriver(lambda: next(links)), device, recorder) as runner:
        await recorder.until(lambda: len(left) == 2)
        runner.update(any_device(prop("level", cycle_ms=10), host="there"), runner.model)
        await recorder.until(lambda: bool(kept))
        await recorder.until(lambda: runner.stats.leaked_tasks == 2)
        await asyncio.wait(left, timeout=5)
        assert [t.cancelled() for t in left] == [True, True]
        assert not shared[0].done()
        assert not kept[0].done()
    await recorder.until(kept[0].done)
    assert (
        "left 2 tasks running behind a closed link; they are ended: leaked by a leaked one, leaked by a read"
        in caplog.text
    )
    shared[0].cancel()
    await asyncio.wait(shared)


async def test_a_link_whose_tasks_pile_up_is_opened_again_and_one_that_has_many_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaks_module, "COUNT_S", 0.05)
    monkeypatch.setattr(leaks_module, "MOST_TASKS", 5)
    piled: list[asyncio.Task[None]] = []

    async def forever() -> None:
        await asyncio.Event().wait()

    class Piling(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            if len(piled) < 8:
                piled.append(asyncio.create_task(forever()))
            return await super().read_many(properties)

    class Busy(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            await asyncio.gather(*(asyncio.sleep(0.02) for _ in range(20)))
            return await super().read_many(properties)

    piling, busy = iter([Piling(), Answers(lambda: 2)]), Recorder()
    recorder, driver, other = Recorder(), LinkDriver(lambda: next(piling)), LinkDriver(Busy)
    device = any_device(prop("level", cycle_ms=10))
    async with (
        running_device(driver, device, recorder) as runner,
        running_device(other, device, busy) as busy_runner,
    ):
        await recorder.until(lambda: recorder.value("level") == "2")
        await recorder.until(lambda: runner.stats.leaked_tasks == 8)
        await asyncio.wait(piled, timeout=5)
        assert all(t.cancelled() for t in piled)
        assert (runner.stats.driver_errors, runner.stats.reconnects, runner.stats.restarts) == (1, 1, 0)
        assert [state for state, _ in recorder.states] == ["online", "unhealthy", "online"]
        assert "tasks of it run on and on" in recorder.states[1][1]
        assert (other.opened, busy_runner.stats.driver_errors) == (1, 0)


async def test_many_links_that_close_together_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    all_tasks = asyncio.all_tasks

    def counted() -> set[asyncio.Task[object]]:
        nonlocal looks
        looks += 1
        return all_tasks()

    monkeypatch.setattr(asyncio, "all_tasks", counted)
    scopes, leaked = [LinkScope() for _ in range(100)], []
    for scope in scopes:
        token = current_link.set(scope)
        leaked.append(asyncio.create_task(asyncio.Event().wait()))
        current_link.reset(token)
    found: list[str] = []
    for scope in scopes:
        leaks_module.end_leaked(scope, lambda tasks: found.extend(t.get_name() for t in tasks))
    await asyncio.wait(leaked, timeout=5)
    assert sorted(found) == sorted(t.get_name() for t in leaked)
    assert looks == 1


async def test_closing_a_link_ends_the_read_under_way() -> None:
    class Hanging(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            await asyncio.Event().wait()
            raise AssertionError

    links = iter([Hanging(), Answers(lambda: 2)])
    recorder = Recorder()
    async with running_device(
        LinkDriver(lambda: next(links)), any_device(prop("level", cycle_ms=10)), recorder
    ) as runner:
        await recorder.until(lambda: runner._connection.cycle._task is not None)
        runner.update(any_device(prop("level", cycle_ms=10), host="there"), runner.model)
        await recorder.until(lambda: recorder.value("level") == "2")
        assert (runner.stats.restarts, runner.stats.driver_errors) == (0, 0)


async def test_a_connect_under_way_is_given_up_for_a_newer_declaration() -> None:
    class Dialling(LinkDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            async with super().connect(device_id, config) as link:
                if config.host == "nowhere":
                    await asyncio.Event().wait()
                yield link

    driver, recorder = Dialling(Answers), Recorder()
    async with running_device(driver, any_device(prop("level", cycle_ms=10), host="nowhere"), recorder) as runner:
        await recorder.until(lambda: driver.opened == 1)
        runner.update(any_device(prop("level", cycle_ms=10)), runner.model)
        await recorder.until(lambda: recorder.value("level") == "1")
        assert (driver.opened, driver.closed, runner.stats.driver_errors) == (2, 1, 0)
        assert {state for state, _ in recorder.states} == {"online"}


async def test_a_failure_of_the_runtime_itself_starts_the_device_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, fail = Recorder(), [True]
    observe = collect_module.Collector._take

    def broken(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # passed on
        if fail.pop() if fail else False:
            raise RuntimeError("our own bug")
        return observe(self, *args, **kwargs)

    monkeypatch.setattr(collect_module.Collector, "_take", broken)
    driver = LinkDriver(Answers)
    with caplog.at_level(logging.ERROR):
        async with running_device(driver, any_device(prop("target", cycle_ms=10, desired="")), recorder) as runner:
            await recorder.until(lambda: recorder.value("target") == "1")
            assert runner.stats.restarts == 1
            assert (driver.opened, driver.closed) == (2, 1)
            runner.update(wanting(runner.device, target="7"), runner.model)
            await recorder.until(
                lambda: recorder.write("target") == "failed"
            )  # the link cannot write: but it was tried
    assert "our own bug" in caplog.text
    assert "starting the device again" in caplog.text


async def test_the_driver_runs_in_the_context_of_its_device() -> None:
    seen: set[tuple[str, str, bool]] = set()

    def note(what: str) -> None:
        seen.add((what, current_device.get(), current_link.get() is not None))

    class Noting(Answers):
        async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
            note("read")
            return await super().read_many(properties)

        async def write(self, property_: Property[AnyVisitor], value: object) -> None:
            note("write")

    class NotingDriver(LinkDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            note("connect")
            async with super().connect(device_id, config) as link:
                yield link
            note("close")

    recorder = Recorder()
    device = any_device(prop("target", cycle_ms=10))
    async with running_device(NotingDriver(Noting), device, recorder) as runner:
        await recorder.until(lambda: recorder.value("target") == "1")
        runner.update(wanting(device, target="1"), runner.model)
        await recorder.until(lambda: recorder.write("target") == "applied")
        assert current_device.get() == ""
    assert seen == {(what, ID, True) for what in ("connect", "read", "write", "close")}


async def test_a_device_with_nothing_to_write_has_no_task_for_it() -> None:
    before = asyncio.all_tasks()
    recorder = Recorder()
    async with running_device(LinkDriver(Answers), any_device(prop("level", cycle_ms=60_000)), recorder):
        await recorder.until(lambda: recorder.value("level") == "1")
        names = sorted(t.get_name() for t in asyncio.all_tasks() - before)
        assert names == [f"collect {ID}", f"connect {ID}", f"device {ID}"]
