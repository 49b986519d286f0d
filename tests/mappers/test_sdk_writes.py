"""Desired values while other things happen: what changes meanwhile, what does not end, what comes again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from dmi.types import Device, DeviceId, DeviceModel, ModelProperty
from mappers.sdk import ConversionError, DeviceError, DeviceTimeout, Link, Property, ReadResult, Value
from mappers.sdk import connection as connection_module
from mappers.sdk import tracking as tracking_module
from tests.mappers.mapper_world import MODEL, prop, wanting
from tests.mappers.runner_world import ID, AnyConfig, AnyVisitor, LinkDriver, Recorder, any_device, running_device


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.02))


class Board:
    """Cells in memory. While `gate` is closed a write waits, and `late` says what it does when it is cut off then."""

    def __init__(self, **cells: Value) -> None:
        self.cells = cells
        self.writes: list[tuple[str, Value]] = []
        self.reads = 0
        self.keeps: Value | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.late: str = ""
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        self.waiting = False
        self.silent: set[str] = set()

    async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
        self.reads += 1
        await self._pass(self.read_gate)
        return {p.name: DeviceTimeout(ID, "no reply") if p.name in self.silent else self._cell(p) for p in properties}

    def _cell(self, p: Property[AnyVisitor]) -> Value:
        return self.cells[p.visitor.cell or p.name]

    async def write(self, property_: Property[AnyVisitor], value: Value) -> None:
        self.writes.append((property_.name, value))
        await self._pass(self.gate)
        self.cells[property_.visitor.cell or property_.name] = value if self.keeps is None else self.keeps

    async def _pass(self, gate: asyncio.Event) -> None:
        self.waiting = True
        try:
            await gate.wait()
        except asyncio.CancelledError:
            if self.late == "":
                raise
            await asyncio.sleep(0.05)
            if self.late == "gone":
                raise
        finally:
            self.waiting = False


def at(device: Device, host: str) -> Device:
    return msgspec.structs.replace(device, protocol_config={"host": host})


@pytest.mark.parametrize("late", ("", "gone", "done"))
@pytest.mark.parametrize("why", ("declared anew", "lost"))
async def test_a_write_cut_off_by_a_new_connection_is_done_on_that(late: str, why: str) -> None:
    """Whether it ends at once, later and in vain, or later and done: on the device that it began on."""
    here, there, recorder = Board(target=1), Board(target=1), Recorder()
    here.gate.clear()
    here.late = late
    links = iter([here, there])
    device = any_device(prop("target", cycle_ms=10, desired="5"))
    async with running_device(LinkDriver(lambda: next(links)), device, recorder) as runner:
        await recorder.until(lambda: bool(here.writes))
        if why == "lost":
            runner._connection.lose("cable pulled")
        else:
            runner.update(at(device, "there"), MODEL)
        await recorder.until(lambda: there.cells["target"] == 5)
        await recorder.until(lambda: recorder.write("target") == "applied" and recorder.value("target") == "5")
    assert (here.writes, there.writes) == ([("target", 5)], [("target", 5)])


@pytest.mark.parametrize("late", ("read-back", "write"))
async def test_what_a_device_had_that_is_not_this_one_any_more_says_nothing(late: str) -> None:
    """The write, or the read-back, ends well after the declaration has named another device, which is still away."""
    here, recorder, away = Board(target=1), Recorder(), asyncio.Event()

    class Elsewhere(LinkDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: AnyConfig) -> AsyncIterator[Link[AnyVisitor]]:
            if config.host == "there":
                await away.wait()
            async with super().connect(device_id, config) as link:
                yield link

    device = any_device(prop("target", cycle_ms=60_000))
    async with running_device(Elsewhere(lambda: here), device, recorder) as runner:
        await recorder.until(lambda: recorder.value("target") == "1")
        (here.gate if late == "write" else here.read_gate).clear()
        here.late = "done"
        runner.update(wanting(device, target="5"), MODEL)
        await recorder.until(lambda: bool(here.writes) and here.waiting)
        runner.update(at(wanting(device, target="5"), "there"), MODEL)
        await recorder.until(lambda: not here.waiting)
        for _ in range(5):
            await asyncio.sleep(0)
        (twin,) = runner.twins()
        assert (twin.reported.value, twin.desired.write) == ("1", "pending")


async def test_a_comparison_that_ends_after_its_link_was_lost_is_made_again() -> None:
    here, there, recorder = Board(target=1), Board(target=5), Recorder()
    here.read_gate.clear()
    here.late = "done"
    links = iter([here, there])
    device = any_device(prop("target", cycle_ms=60_000, desired="5"))
    async with running_device(LinkDriver(lambda: next(links)), device, recorder) as runner:
        await recorder.until(lambda: here.reads == 2)  # the cycle's and the comparison's
        runner._connection.lose("cable pulled")
        await recorder.until(lambda: recorder.write("target") == "applied")
    assert (here.writes, there.writes) == ([], [])


async def test_what_is_not_wanted_any_more_when_its_turn_comes_is_not_written() -> None:
    board, recorder = Board(target=1), Recorder()
    device = any_device(prop("target", cycle_ms=10))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.value("target") == "1")
        board.gate.clear()
        asked = asyncio.create_task(runner.write_property("target", "2"))
        await recorder.until(lambda: board.writes == [("target", 2)])
        runner.update(wanting(device, target="5"), MODEL)
        await recorder.until(lambda: runner._connection.command.lock._waiters is not None)
        await asyncio.sleep(0)
        runner.update(wanting(device, target="6"), MODEL)
        board.gate.set()
        await asked
        await recorder.until(lambda: recorder.write("target") == "applied")
    assert board.writes == [("target", 2), ("target", 6)]


async def test_a_write_on_demand_does_not_go_where_the_property_was() -> None:
    board, recorder = Board(a=1, b=1), Recorder()
    device = any_device(prop("target", cycle_ms=10, cell="a"), prop("speed", cycle_ms=10, cell="b"))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.value("target") == "1")
        board.gate.clear()
        first = asyncio.create_task(runner.write_property("speed", "3"))
        await recorder.until(lambda: bool(board.writes))
        second = asyncio.create_task(runner.write_property("target", "9"))
        await asyncio.sleep(0.01)
        runner.update(any_device(prop("target", cell="c"), device.properties[1]), MODEL)
        board.cells["c"] = 1
        board.gate.set()
        await first
        with pytest.raises(DeviceError, match="declared anew meanwhile: nothing was written"):
            await second
    assert board.cells == {"a": 1, "b": 3, "c": 1}


async def test_a_property_that_goes_while_it_is_written_is_gone() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    device = any_device(prop("target", cycle_ms=10, desired="5"), prop("level", cycle_ms=10))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        board.gate.clear()
        await recorder.until(lambda: bool(board.writes))
        runner.update(any_device(prop("level", cycle_ms=10)), MODEL)
        board.gate.set()
        reads = board.reads
        await recorder.until(lambda: board.reads > reads + 3)
        assert [t.property_name for t in runner.twins()] == ["level"]
        assert runner.stats.restarts == 0
        runner.update(device, MODEL)
        await recorder.until(lambda: recorder.write("target") == "applied")
    assert board.writes == [("target", 5)]  # it has it already


async def test_declarations_that_keep_coming_neither_hurry_a_retry_nor_a_read() -> None:
    board, recorder = Board(target=1, level=2, speed=0.0), Recorder()
    board.keeps = 4
    board.silent = {"level"}
    device = any_device(
        prop("target", cycle_ms=60_000, desired="5"),
        prop("level", cycle_ms=60_000),
        prop("speed", cycle_ms=60_000, desired="0"),
    )
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.write("target") == "failed" and recorder.write("speed") == "applied")
        reads, reports = board.reads, len(recorder.reports)
        for round_ in range(20):
            runner.update(msgspec.structs.replace(device, report_state=bool(round_ % 2)), MODEL)
            runner.update(runner.device, MODEL)
            await asyncio.sleep(0.002)
        assert board.writes == [("target", 5)]
        assert (board.reads, len(recorder.reports)) == (reads, reports)


async def test_the_first_of_many_slow_writes_is_told_before_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    board, recorder = Board(target=1, speed=1.0, valve=False), Recorder()
    device = any_device(*(prop(name, cycle_ms=60_000) for name in board.cells))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: len(recorder.twins) == 3)
        monkeypatch.setattr("mappers.sdk.writer.TELL_S", 0.0)
        names = [p.name for p in device.properties]
        write = board.write
        told: list[list[str]] = []

        async def slow(property_: Property[AnyVisitor], value: Value) -> None:
            told.append([name for name in names if recorder.write(name) == "applied"])
            await asyncio.sleep(0.001)
            await write(property_, value)

        monkeypatch.setattr(board, "write", slow)
        runner.update(wanting(device, target="5", speed="2", valve="true"), MODEL)
        await recorder.until(lambda: recorder.write("valve") == "applied")
    assert told == [[], ["target"], ["target", "speed"]]


async def test_what_is_refused_is_told_at_once_also_while_another_write_waits_for_its_retry() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    board.keeps = 4
    device = any_device(prop("target", cycle_ms=60_000, desired="5"), prop("level", cycle_ms=60_000))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.write("target") == "failed")
        runner.update(wanting(device, level="3"), MODEL)
        assert recorder.write("level") == "failed"
        assert board.writes == [("target", 5)]


async def test_nothing_is_not_written_to_what_is_read_only() -> None:
    model = DeviceModel("plant", "meter", properties=(ModelProperty("label", "STRING", "ReadOnly"),))
    board, recorder = Board(label="as it left the works"), Recorder()
    async with running_device(LinkDriver(lambda: board), any_device(prop("label")), recorder, model) as runner:
        await recorder.until(lambda: recorder.value("label") != "")
        with pytest.raises(ConversionError, match="ReadOnly"):
            await runner.write_property("label", "")
        writable = DeviceModel("plant", "meter", properties=(ModelProperty("label", "STRING"),))
        runner.update(runner.device, writable)
        await runner.write_property("label", "")
    assert board.cells == {"label": ""}
    assert board.writes == [("label", "")]


async def test_a_property_whose_type_changes_starts_afresh_and_is_written_as_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking_module, "WRITE_RETRY_S", (0.01, 0.02))
    board, recorder = Board(target=1), Recorder()
    device = any_device(prop("target", cycle_ms=10, desired="5"))
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.write("target") == "applied")
        text = DeviceModel("plant", "meter", properties=(ModelProperty("target", "STRING"),))
        runner.update(device, text)
        await recorder.until(lambda: recorder.twins["target"].desired.type == "string")
        await recorder.until(lambda: recorder.write("target") == "applied")
        twin = recorder.twins["target"]
        assert (twin.reported.type, twin.reported.value, twin.reported.quality) == ("string", "5", "good")
        flag = DeviceModel("plant", "meter", properties=(ModelProperty("target", "BOOLEAN"),))
        runner.update(device, flag)
        await recorder.until(lambda: recorder.write("target") == "failed")
        assert "not a BOOLEAN" in recorder.twins["target"].desired.reason
        await recorder.until(lambda: recorder.quality("target") == "bad")
        twin = recorder.twins["target"]
        assert (twin.reported.type, twin.reported.value) == ("boolean", "")  # what it was is no value of this type
    assert {r["target"].reported.type for r in recorder.reports} >= {"int", "string", "boolean"}
