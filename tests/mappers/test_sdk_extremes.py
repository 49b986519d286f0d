"""What is unusual and legal, or wrong and must harm nobody else: cycles, texts, clocks, and many devices at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from dmi.types import DeviceModel, ModelProperty
from mappers.sdk import DeviceRejected, DeviceTimeout, Property, ReadResult
from mappers.sdk import collect as collect_module
from mappers.sdk import connection as connection_module
from mappers.sdk import schedule as schedule_module
from mappers.sdk.declaration import declare
from mappers.sdk.device import DeviceRunner
from mappers.sdk.errors import plain_reason
from mappers.sdk.line import Line
from mappers.sdk.testing import FakeEdgeCore
from tests.mappers.mapper_world import MODEL, MemoryDevice, MemoryDriver, memory_device, prop, running
from tests.mappers.runner_world import ID, AnyVisitor, LinkDriver, Recorder, any_device, running_device

DAY_MS = 24 * 3600 * 1000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))


class Cells:
    """A link whose properties are whatever `values` says, unless `fault` does."""

    def __init__(self, **values: ReadResult) -> None:
        self.values = values
        self.fault: Exception | None = None
        self.reads: list[frozenset[str]] = []

    async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
        self.reads.append(frozenset(p.name for p in properties))
        if self.fault is not None:
            raise self.fault
        return {p.name: self.values[p.name] for p in properties}


# cycles


async def test_ten_milliseconds_and_a_day_on_one_device() -> None:
    link, recorder = Cells(level=1, target=2), Recorder()
    device = any_device(prop("level", cycle_ms=10), prop("target", cycle_ms=DAY_MS))
    async with running_device(LinkDriver(lambda: link), device, recorder) as runner:
        await recorder.until(lambda: len(link.reads) > 20)
        assert link.reads[0] == {"level", "target"}
        assert set(link.reads[1:]) == {frozenset({"level"})}
        assert recorder.value("target") == "2"
        assert runner.stats.reads >= 20


async def test_a_missed_daily_value_is_read_again_before_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "AGAIN_S", 0.02)
    link, recorder = (
        Cells(target=DeviceTimeout(ID, "no reply"), level=DeviceRejected(ID, "no such thing", 2)),
        Recorder(),
    )
    device = any_device(prop("target", cycle_ms=DAY_MS), prop("level", cycle_ms=DAY_MS))
    async with running_device(LinkDriver(lambda: link), device, recorder):
        await recorder.until(lambda: recorder.quality("target") == "bad")
        link.values["target"] = 3
        await recorder.until(lambda: recorder.value("target") == "3" and recorder.quality("target") == "good")
        reads = len(link.reads)
        await asyncio.sleep(0.1)
        assert len(link.reads) == reads
    assert sum("level" in names for names in link.reads) == 1  # refused: asking again would not help


async def test_a_daily_value_does_not_stay_good_on_a_lost_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "AGAIN_S", 0.02)
    monkeypatch.setattr(connection_module, "RECONNECT_S", (60.0, 60.0))
    link, recorder = Cells(target=3), Recorder()
    async with running_device(
        LinkDriver(lambda: link), any_device(prop("target", cycle_ms=DAY_MS)), recorder
    ) as runner:
        await recorder.until(lambda: recorder.quality("target") == "good")
        runner._connection.lose("cable pulled")
        await recorder.until(lambda: recorder.quality("target") == "bad")
        assert (recorder.value("target"), recorder.twins["target"].reported.reason) == ("3", "cable pulled")


def test_a_cycle_shorter_than_any_is_warned_about() -> None:
    device = any_device(prop("level", cycle_ms=9), prop("target", cycle_ms=10, report_ms=1))
    declared = declare(LinkDriver(Cells), device, MODEL)
    assert declared.warnings == (
        "spec.properties[0].collectCycle: 9 ms is shorter than any cycle here: it is 10 ms",
        "spec.properties[1].reportCycle: 1 ms is shorter than any cycle here: it is 10 ms",
    )


async def test_the_longest_cycle_there_is_breaks_nothing() -> None:
    link, recorder = Cells(level=1, target=2), Recorder()
    device = any_device(prop("level", cycle_ms=2**63 - 1, report_ms=2**63 - 1), prop("target", cycle_ms=10))
    asking = msgspec.structs.replace(device, report_state=True, state_report_cycle_ms=2**63 - 1)
    async with running_device(LinkDriver(lambda: link), asking, recorder):
        await recorder.until(lambda: recorder.value("level") == "1" and len(link.reads) > 3)


async def test_a_clock_set_back_or_forth_shifts_the_times_and_no_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    real, shift_s = schedule_module.wall_clock_ns, [0]
    monkeypatch.setattr(schedule_module, "wall_clock_ns", lambda: real() + shift_s[0] * 10**9)
    link, recorder = Cells(level=0), Recorder()
    async with running_device(LinkDriver(lambda: link), any_device(prop("level", cycle_ms=10)), recorder) as runner:
        for value, shift_s[0] in enumerate((0, 86_400, -86_400), start=1):
            link.values["level"] = value
            await recorder.until(lambda value=value: recorder.value("level") == str(value))  # type: ignore[misc]
            told_ms = recorder.twins["level"].reported.collected_ms
            assert abs(told_ms - (real() // 10**6 + shift_s[0] * 1000)) < 60_000
        assert recorder.quality("level") == "good"
        assert runner.stats.read_latency.total_s < 60


# a device that does not answer over a link that stays open


async def test_a_device_that_never_answers_is_offline_until_it_does() -> None:
    link, recorder = Cells(level=1, target=2), Recorder()
    link.fault = DeviceTimeout(ID, "no reply")
    device = any_device(prop("level", cycle_ms=10), prop("target", cycle_ms=10))
    driver = LinkDriver(lambda: link)
    async with running_device(driver, device, recorder):
        await recorder.until(lambda: recorder.states == [("offline", "no reply")])
        link.fault = None
        await recorder.until(lambda: recorder.states[-1] == ("online", ""))
        link.fault, link.values["level"] = None, DeviceTimeout(ID, "no reply")
        await recorder.until(lambda: recorder.quality("level") == "bad")
        assert recorder.states[-1] == ("online", "")  # it answers for the other one
        link.values["target"] = DeviceTimeout(ID, "no reply")
        await recorder.until(lambda: recorder.states[-1] == ("offline", "no reply"))
        link.values["target"] = 3
        await recorder.until(lambda: recorder.states[-1] == ("online", ""))
    assert driver.opened == 1


async def test_three_reads_in_a_row_without_an_answer_make_it_offline_unless_it_has_a_good_value() -> None:
    link, recorder = Cells(level=1, target=2), Recorder()
    device = any_device(prop("level", cycle_ms=60_000), prop("target", cycle_ms=60_000))
    async with running_device(LinkDriver(lambda: link), device, recorder) as runner:

        async def read(*names: str) -> str:
            for name in names:
                with contextlib.suppress(DeviceTimeout):
                    await runner.read_property(name)
            return recorder.states[-1][0]

        await recorder.until(lambda: recorder.states == [("online", "")])
        link.fault = DeviceTimeout(ID, "no reply")
        assert await read("level", "level", "level", "level") == "online"
        assert await read("target") == "offline"
        link.fault = None
        assert await read("level", "target") == "online"
        link.fault = DeviceTimeout(ID, "no reply")
        assert await read("level", "target") == "online"
        assert await read("level") == "offline"


async def test_a_device_that_refuses_everything_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    link, recorder = Cells(), Recorder()
    link.fault = DeviceRejected(ID, "locked", 5)
    async with running_device(LinkDriver(lambda: link), any_device(prop("level", cycle_ms=10)), recorder):
        await recorder.until(lambda: bool(recorder.states) and recorder.states[-1][0] == "unhealthy")
        assert recorder.states[-1] == ("unhealthy", "property level: locked")


async def test_turns_on_a_busy_line_do_not_count_as_a_hanging_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with many requests on a slow line with many others takes longer than any single call may hang."""
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.1)
    line: Line[None] = Line()
    line.opened(None)

    class OnLine(Cells):
        async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
            for _ in range(5):
                async with line.turn(ID):
                    await asyncio.sleep(0.01)
            return await super().read_many(properties)

    async def others() -> None:
        while True:
            async with line.turn(ID.replace("m1", "m2")):  # type: ignore[arg-type]  # another device
                await asyncio.sleep(0.05)

    link, recorder = OnLine(level=1), Recorder()
    crowd = [asyncio.create_task(others()) for _ in range(2)]
    async with running_device(LinkDriver(lambda: link), any_device(prop("level", cycle_ms=10)), recorder) as runner:
        await recorder.until(lambda: len(link.reads) > 2)
        assert (runner.stats.driver_errors, runner.stats.reconnects) == (0, 0)
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)


# texts


async def test_text_that_is_none_is_bad_and_takes_nothing_down(tmp_path: Path) -> None:
    """Halves of characters, as from `bytes.decode(errors="surrogateescape")`: no wire takes them."""
    memory = MemoryDevice(a="caf\udce9", b=1)
    device = memory_device(prop("label", cell="a"), prop("level", cell="b"))
    async with (
        FakeEdgeCore(tmp_path / "dmi.sock", devices=[device], models=[MODEL]) as edge,
        running(edge, tmp_path, MemoryDriver(m1=memory)),
    ):
        await edge.until(lambda: edge.value(ID, "level") == "1" and (ID, "label") in edge.twins)
        reported = edge.twins[ID, "label"].reported
        assert (reported.value, reported.quality) == ("", "bad")
        assert reported.reason.startswith(r"'caf\udce9' is no text")
        memory.cells["a"] = "café ☕"
        await edge.until(lambda: edge.value(ID, "label") == "café ☕")
        memory.read_fault = DeviceTimeout(ID, "no \udc80 reply")
        await edge.until(lambda: edge.twins[ID, "level"].reported.quality == "bad")
        assert edge.twins[ID, "level"].reported.reason == r"no \udc80 reply"
        await edge.until(lambda: edge.states[-1] == (ID, "offline", r"no \udc80 reply"))


async def test_an_endless_reason_is_cut(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    memory.read_fault = ValueError("x" * 8_000_000)  # more than a DMI message takes
    device = memory_device(prop("level", cell="a"))
    async with (
        FakeEdgeCore(tmp_path / "dmi.sock", devices=[device], models=[MODEL]) as edge,
        running(edge, tmp_path, MemoryDriver(m1=memory)),
    ):
        await edge.until(lambda: bool(edge.states))
        assert len(edge.states[0][2]) == 512


def test_a_reason_is_text_of_bounded_length() -> None:
    assert plain_reason("x" * 600) == "x" * 512
    assert plain_reason("zu heiß") == "zu heiß"
    assert plain_reason("a\ud800b") == r"a\ud800b"
    assert len(plain_reason("\ud800" * 600)) <= 512


async def test_names_in_any_script() -> None:
    names = ("température", "温度", "🌡", "a b/c", "x" * 300)
    model = DeviceModel("plant", "meter", properties=tuple(ModelProperty(n, "STRING") for n in names))
    link, recorder = Cells(**dict.fromkeys(names, "ä")), Recorder()
    device = any_device(*(prop(n, cycle_ms=10, İ=1) for n in names))
    async with running_device(LinkDriver(lambda: link), device, recorder, model):
        await recorder.until(lambda: set(recorder.twins) == set(names))


# many


async def test_reports_of_a_device_that_is_gone_are_not_made() -> None:
    """What was under way when it went ends later, on a link that does not let go at once."""
    inside, let_go = asyncio.Event(), asyncio.Event()

    class Slow(Cells):
        async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
            if self.reads:
                inside.set()
                while not let_go.is_set():
                    try:
                        await let_go.wait()
                    except asyncio.CancelledError:
                        continue
            return await super().read_many(properties)

    link, recorder = Slow(level=1), Recorder()
    async with running_device(LinkDriver(lambda: link), any_device(prop("level", cycle_ms=60_000)), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "1")
        link.values["level"] = 2
        asked = asyncio.create_task(runner.read_property("level"))
        await inside.wait()
    reports, states = len(recorder.reports), len(recorder.states)
    let_go.set()
    await asyncio.wait([asked])
    runner.report_all()
    assert (len(recorder.reports), len(recorder.states)) == (reports, states)


async def test_a_thousand_devices_start_together_and_read_spread_out() -> None:
    """Each is read at once, and then in its own part of the cycle."""
    driver, recorder = LinkDriver(lambda: Cells(level=1)), Recorder()
    device = any_device(prop("level", cycle_ms=60_000))
    runners = [
        DeviceRunner(driver, msgspec.structs.replace(device, name=f"m{index}"), MODEL, recorder)
        for index in range(1000)
    ]
    tasks = [asyncio.create_task(r.run()) for r in runners]
    await recorder.until(lambda: all(r.stats.reads for r in runners), 20)
    tenths = [0] * 10
    for runner, task in zip(runners, tasks, strict=True):
        tenths[int((runner._collector._schedule.next_due() or 0.0) % 60 // 6)] += 1
        runner.close()
        task.cancel()
    await asyncio.wait(tasks)
    assert max(tenths) < 200  # of 1000
    assert sum(r.stats.restarts + r.stats.driver_errors + r.stats.overruns for r in runners) == 0
