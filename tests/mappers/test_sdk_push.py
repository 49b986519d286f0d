"""Links that push: what they send goes the way of what is read, and what is wrong with it stays with them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from mappers.sdk import DeviceError, DeviceUnreachable, DeviceUnsupported, Property, Push, ReadResult, Value
from mappers.sdk import connection as connection_module
from mappers.sdk import writer as writer_module
from mappers.sdk.context import current_device, current_link
from mappers.sdk.samples import Sample
from tests.mappers.mapper_world import prop, wanting
from tests.mappers.runner_world import ID, AnyVisitor, LinkDriver, Recorder, any_device, running_device

Properties = Sequence[Property[AnyVisitor]]


class Pushing:
    """A link that pushes the properties named, and cannot read."""

    def __init__(self, *names: str, fault: Exception | None = None) -> None:
        self.names = names
        self.fault = fault
        self.asked: list[set[str]] = []
        self.push: Push = lambda values: None

    async def subscribe(self, properties: Properties, push: Push) -> Collection[str]:
        self.asked.append({p.name for p in properties})
        self.push = push
        if self.fault is not None:
            raise self.fault
        return self.names


class PushingAndReading(Pushing):
    def __init__(self, *names: str, fault: Exception | None = None) -> None:
        super().__init__(*names, fault=fault)
        self.read: list[set[str]] = []

    async def read_many(self, properties: Properties) -> Mapping[str, ReadResult]:
        self.read.append({p.name for p in properties})
        return {p.name: 1 for p in properties}


class PushingAndWriting(Pushing):
    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.writes: list[Value] = []
        self.answer: Value | None = None

    async def write(self, property_: Property[AnyVisitor], value: Value) -> None:
        self.writes.append(value)
        if self.answer is not None:
            self.push({property_.name: self.answer})


async def test_pushed_properties_are_not_read_and_the_others_are() -> None:
    link, recorder = PushingAndReading("level"), Recorder()
    device = any_device(prop("level", cycle_ms=20), prop("target", cycle_ms=20))
    async with running_device(LinkDriver(lambda: link), device, recorder):
        await recorder.until(lambda: len(link.read) > 3)
        assert link.asked == [{"level", "target"}]
        assert {frozenset(names) for names in link.read} == {frozenset({"target"})}
        assert recorder.states == [("online", "")]
        link.push({"level": 7})
        await recorder.until(lambda: recorder.value("level") == "7")
        reads = len(link.read)
        await recorder.until(lambda: len(link.read) > reads + 4)
        assert recorder.quality("level") == "good"


async def test_a_burst_of_pushes_is_one_report_and_all_samples() -> None:
    link, recorder = Pushing("level", "target"), Recorder()
    level = msgspec.structs.replace(prop("level"), push_method={"mqtt": {}})
    async with running_device(LinkDriver(lambda: link), any_device(level, prop("target")), recorder) as runner:
        await recorder.until(lambda: bool(recorder.states))
        for value in range(1, 6):
            link.push({"level": value})
        link.push({"target": 9})
        await recorder.until(lambda: bool(recorder.reports))
        assert [{n: t.reported.value for n, t in r.items()} for r in recorder.reports] == [
            {"level": "5", "target": "9"}
        ]
        assert [s.value for s in recorder.samples] == ["1", "2", "3", "4", "5"]
        assert (runner.stats.values_good, runner.stats.reads) == (6, 0)


async def test_what_comes_of_a_push_is_not_a_task_of_the_link() -> None:
    """A sink that starts a task when a sample comes must not lose it with the link."""
    seen: list[tuple[str, bool]] = []

    class Noting(Recorder):
        def put(self, sample: Sample) -> None:
            seen.append((current_device.get(), current_link.get() is None))

    class FromItsTask(Pushing):
        async def subscribe(self, properties: Properties, push: Push) -> Collection[str]:
            names = await super().subscribe(properties, push)
            assert current_link.get() is not None
            push({"level": 1})
            return names

    recorder = Noting()
    level = msgspec.structs.replace(prop("level"), push_method={"mqtt": {}})
    async with running_device(LinkDriver(lambda: FromItsTask("level")), any_device(level), recorder):
        await recorder.until(lambda: recorder.value("level") == "1")
    assert seen == [(ID, True)]


async def test_changed_properties_are_subscribed_to_anew_and_changed_cycles_are_not() -> None:
    link, recorder = PushingAndReading("level", "target"), Recorder()
    device = any_device(prop("level"))
    driver = LinkDriver(lambda: link)
    async with running_device(driver, device, recorder) as runner:
        await recorder.until(lambda: len(link.asked) == 1)
        both = any_device(prop("level", cycle_ms=20), prop("target"))
        runner.update(both, runner.model)
        await recorder.until(lambda: len(link.asked) == 2)
        assert link.asked[1] == {"level", "target"}
        runner.update(any_device(prop("level", cycle_ms=30), prop("target")), runner.model)
        await asyncio.sleep(0.01)
        runner.update(any_device(prop("level", cycle_ms=30), prop("target", cell="b")), runner.model)
        await recorder.until(lambda: len(link.asked) == 3)
    assert len(link.asked) == 3
    assert driver.opened == 1


async def test_garbage_that_is_pushed_harms_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    link, recorder = Pushing("level", "flow"), Recorder()
    garbage: list[Any] = [{"nobody": 1}, {"nobody": 2}, {"level": object()}, {3: 4}, 17, None]
    async with running_device(LinkDriver(lambda: link), any_device(prop("level"), prop("flow")), recorder) as runner:
        await recorder.until(lambda: bool(recorder.states))
        for thing in garbage:
            link.push(thing)
        link.push({"flow": 2.5})
        await recorder.until(lambda: recorder.value("flow") == "2.5")
        assert (recorder.value("level"), recorder.quality("level")) == ("", "bad")
        assert "is not a value of type INT" in recorder.twins["level"].reported.reason
        assert runner.stats.driver_errors == 5
    warned = [r.getMessage() for r in caplog.records if "no property of it" in r.getMessage()]
    assert warned == [
        f"device {ID}: the driver pushed {name}, which is no property of it" for name in ("'nobody'", "3")
    ]


async def test_pushing_that_the_link_is_gone_connects_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))
    links = [Pushing("level"), Pushing("level")]
    made = iter(links)
    recorder = Recorder()
    driver = LinkDriver(lambda: next(made))
    async with running_device(driver, any_device(prop("level", cycle_ms=20)), recorder) as runner:
        await recorder.until(lambda: ("online", "") in recorder.states)
        links[0].push({"level": 5})
        links[0].push({"level": DeviceUnreachable(ID, "cable pulled")})
        await recorder.until(lambda: driver.opened == 2 and recorder.states[-1] == ("online", ""))
        assert ("offline", "cable pulled") in recorder.states
        links[0].push({"level": 99})  # of a link that is closed
        await asyncio.sleep(0.01)
        links[1].push({"level": 6})
        await recorder.until(lambda: recorder.value("level") == "6")
        assert runner.stats.reconnects == 1
    assert driver.closed == 2
    assert "99" not in [r["level"].reported.value for r in recorder.reports if "level" in r]


async def test_what_a_link_neither_reads_nor_pushes_is_bad() -> None:
    recorder = Recorder()
    link = Pushing("level")
    device = any_device(prop("level", cycle_ms=20), prop("target", cycle_ms=20))
    async with running_device(LinkDriver(lambda: link), device, recorder):
        await recorder.until(lambda: recorder.quality("target") == "bad")
        assert "the driver cannot read it" in recorder.twins["target"].reported.reason
        link.push({"level": 1})
        await recorder.until(lambda: recorder.value("level") == "1")


async def test_a_subscription_that_is_refused_is_read_instead() -> None:
    link, recorder = PushingAndReading(fault=DeviceError(ID, "no such thing")), Recorder()
    driver = LinkDriver(lambda: link)
    async with running_device(driver, any_device(prop("level", cycle_ms=20)), recorder):
        await recorder.until(lambda: recorder.value("level") == "1")
    assert (driver.opened, len(link.asked)) == (1, 1)


async def test_a_link_that_is_of_no_use_without_its_subscription_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))
    links = [Pushing(fault=DeviceError(ID, "busy")), Pushing("level")]
    made = iter(links)
    recorder = Recorder()
    async with running_device(LinkDriver(lambda: next(made)), any_device(prop("level")), recorder):
        await recorder.until(lambda: recorder.states[-1:] == [("online", "")])
        assert ("offline", "busy") in recorder.states
        assert len(links[1].asked) == 1


async def test_a_subscription_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.05)
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))

    class Hanging(PushingAndReading):
        async def subscribe(self, properties: Properties, push: Push) -> Collection[str]:
            await asyncio.Event().wait()
            raise AssertionError

    links = [Hanging(), PushingAndReading()]
    made = iter(links)
    recorder = Recorder()
    async with running_device(LinkDriver(lambda: next(made)), any_device(prop("level")), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "1")
        assert runner.stats.driver_errors == 1


async def test_a_write_is_confirmed_by_what_the_device_sends() -> None:
    link, recorder = PushingAndWriting("target"), Recorder()
    link.answer = 5
    device = any_device(prop("target"))
    async with running_device(LinkDriver(lambda: link), device, recorder) as runner:
        await recorder.until(lambda: bool(recorder.states))
        runner.update(wanting(device, target="5"), runner.model)
        await recorder.until(lambda: recorder.write("target") == "applied")
        assert (link.writes, recorder.value("target")) == ([5], "5")
        link.answer = None
        runner.update(wanting(device, target="6"), runner.model)
        await recorder.until(lambda: link.writes == [5, 6])
        link.push({"target": 5})  # what it had until now
        link.push({"target": 6})
        await recorder.until(lambda: recorder.write("target") == "applied" and recorder.value("target") == "6")
    assert link.writes == [5, 6]


async def test_a_write_that_nothing_confirms_is_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "PUSHED_BACK_S", 0.05)
    link, recorder = PushingAndWriting("target"), Recorder()
    device = any_device(prop("target", desired="5"), prop("speed", desired="2"))
    async with running_device(LinkDriver(lambda: link), device, recorder):
        await recorder.until(lambda: recorder.write("target") == "failed" and recorder.write("speed") == "applied")
        reason = recorder.twins["target"].desired.reason
        assert reason == "written, not confirmed: the device did not send it within 0.05 s"
        assert recorder.twins["speed"].desired.reason.startswith("not verified: the driver cannot read it")


async def test_what_a_link_cannot_write_is_failed_and_not_tried_again() -> None:
    link, recorder = PushingAndReading(), Recorder()
    device = any_device(prop("target", cycle_ms=20, desired="5"))
    async with running_device(LinkDriver(lambda: link), device, recorder) as runner:
        await recorder.until(lambda: recorder.write("target") == "failed")
        assert recorder.twins["target"].desired.reason == "the any driver cannot write it"
        with pytest.raises(DeviceUnsupported, match="cannot write"):
            await runner.write_property("target", "7")
        assert runner._writer.task is None
        assert runner.stats.writes == 0


async def test_a_link_that_can_do_nothing_is_the_drivers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    async with running_device(LinkDriver(object), any_device(prop("target")), recorder):
        await recorder.until(lambda: bool(recorder.states))
    state, reason = recorder.states[0]
    assert state == "unhealthy"
    assert "neither read_many nor subscribe" in reason


async def test_a_pushed_value_is_confirmed_with_its_heartbeat() -> None:
    link, recorder = Pushing("level"), Recorder()
    device = any_device(prop("level", heartbeat=30))
    async with running_device(LinkDriver(lambda: link), device, recorder):
        await recorder.until(lambda: bool(recorder.states))
        link.push({"level": 5})
        await recorder.until(lambda: len(recorder.reports) >= 4)
        assert recorder.news[:4] == [True, False, False, False]
        assert len({r["level"].reported.collected_ms for r in recorder.reports}) == 1
