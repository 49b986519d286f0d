"""Reads, writes and method calls that somebody asks for, and hot reload as a link sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from dmi.types import Device, DeviceMethod, DeviceModel, ModelProperty
from mappers.sdk import (
    ConversionError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    Property,
    ReadResult,
    Value,
)
from mappers.sdk import manual as manual_module
from mappers.sdk.errors import UnknownProperty
from tests.mappers.mapper_world import MODEL, prop, wanting
from tests.mappers.runner_world import ID, AnyVisitor, LinkDriver, Recorder, any_device, running_device


class Board:
    """A link to cells in memory."""

    def __init__(self, **cells: Value) -> None:
        self.cells = cells
        self.reads: list[tuple[str, ...]] = []
        self.writes: list[tuple[str, Value]] = []
        self.reading = 0
        self.most = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.keeps: Value | None = None
        self.fault: Exception | None = None

    async def read_many(self, properties: Sequence[Property[AnyVisitor]]) -> Mapping[str, ReadResult]:
        self.reads.append(tuple(p.visitor.cell or p.name for p in properties))
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await self.hold.wait()
            if self.fault:
                raise self.fault
            return {p.name: self.cells[p.visitor.cell or p.name] for p in properties}
        finally:
            self.reading -= 1

    async def write(self, property_: Property[AnyVisitor], value: Value) -> None:
        self.writes.append((property_.name, value))
        self.cells[property_.visitor.cell or property_.name] = value if self.keeps is None else self.keeps


class Machine(Board):
    """One with methods of its own."""

    def __init__(self, **cells: Value) -> None:
        super().__init__(**cells)
        self.calls: list[tuple[str, str, Value]] = []

    async def call(self, method: str, property_: Property[AnyVisitor], value: Value) -> None:
        self.calls.append((method, property_.name, value))
        self.cells[property_.name] = 42


METHODS = (DeviceMethod("adjust", property_names=("target", "level")),)


def board_device(cycle_ms: int = 60_000) -> Device:
    device = any_device(prop("target", cycle_ms=cycle_ms), prop("level", cycle_ms=cycle_ms))
    return msgspec.structs.replace(device, methods=METHODS)


async def test_a_read_on_demand_is_live_noted_and_reported() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    async with running_device(LinkDriver(lambda: board), board_device(), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        board.cells["level"] = 3
        twin = await runner.read_property("level")
        assert (twin.reported.value, recorder.value("level"), board.reads[-1]) == ("3", "3", ("level",))
        board.cells["level"] = "no number"
        with pytest.raises(ConversionError, match="not a value of type INT"):
            await runner.read_property("level")
        assert (recorder.value("level"), recorder.quality("level")) == ("3", "bad")
        board.fault = DeviceTimeout(ID, "no reply")
        with pytest.raises(DeviceTimeout):
            await runner.read_property("level")
        board.fault = DeviceUnreachable(ID, "gone")
        with pytest.raises(DeviceUnreachable):
            await runner.read_property("level")
        assert recorder.states[-1] == ("offline", "gone")
        with pytest.raises(UnknownProperty, match="no property 'nothing'"):
            await runner.read_property("nothing")


async def test_reads_on_demand_wait_for_the_cycle_and_each_other() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    async with running_device(LinkDriver(lambda: board), board_device(10), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        asked = [asyncio.create_task(runner.read_property(name)) for name in ("level", "target") * 5]
        await asyncio.wait(asked, timeout=5)
        assert [t.result().reported.quality for t in asked] == ["good"] * 10
        reads = len(board.reads)
        await recorder.until(lambda: len(board.reads) > reads + 3)
    assert board.most == 1


async def test_who_gives_up_waiting_for_a_read_disturbs_nothing() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    async with running_device(LinkDriver(lambda: board), board_device(), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        board.hold.clear()
        asked = asyncio.create_task(runner.read_property("level"))
        await recorder.until(lambda: board.reading == 1)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        board.hold.set()
        assert (await runner.read_property("level")).reported.value == "2"
        assert recorder.states == [("online", "")]


async def test_who_asks_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual_module, "DEADLINE_S", 0.05)
    board, recorder = Board(target=1, level=2), Recorder()
    async with running_device(LinkDriver(lambda: board), board_device(10), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        board.hold.clear()
        await recorder.until(lambda: board.reading == 1)
        with pytest.raises(DeviceTimeout, match=r"not done within 0\.05 s"):
            await runner.read_property("level")
        with pytest.raises(DeviceTimeout):
            await runner.write_property("target", "5")
        assert board.reading == 1  # the cycle's own goes on
        board.hold.set()
        await runner.write_property("target", "6")


async def test_a_write_on_demand_is_checked_read_back_and_leaves_the_desired_value() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    device = wanting(board_device(), target="5")
    async with running_device(LinkDriver(lambda: board), device, recorder) as runner:
        await recorder.until(lambda: recorder.write("target") == "applied")
        twin = await runner.write_property("target", "7")
        assert (twin.reported.value, twin.desired.value, twin.desired.write) == ("7", "5", "applied")
        assert recorder.value("target") == "7"
        writes = len(board.writes)
        for name, text, says in (
            ("target", "101", "above the maximum 100"),
            ("target", "x", "not an INT"),
            ("level", "5", "ReadOnly"),
        ):
            with pytest.raises(ConversionError, match=says):
                await runner.write_property(name, text)
        with pytest.raises(UnknownProperty):
            await runner.write_property("nothing", "1")
        assert len(board.writes) == writes
        board.keeps = 9
        with pytest.raises(DeviceRejected, match="written 8, but the device has 9"):
            await runner.write_property("target", "8")
        assert recorder.value("target") == "9"
        assert recorder.twins["target"].desired == twin.desired


async def test_a_method_calls_the_link_or_else_writes() -> None:
    for board in (Board(target=1, level=2), Machine(target=1, level=2)):
        recorder = Recorder()
        async with running_device(LinkDriver(lambda board=board: board), board_device(), recorder) as runner:  # type: ignore[misc]
            await recorder.until(lambda recorder=recorder: recorder.value("level") == "2")  # type: ignore[misc]
            twin = await runner.call_method("adjust", "target", "7")
            if isinstance(board, Machine):
                assert (board.calls, board.writes) == ([("adjust", "target", 7)], [])
                assert (twin.reported.value, recorder.value("target")) == ("42", "42")  # another value is no failure
                assert (await runner.call_method("adjust", "level", "1")).reported.value == "42"
            else:
                assert (board.writes, twin.reported.value) == ([("target", 7)], "7")
                with pytest.raises(ConversionError, match="ReadOnly"):
                    await runner.call_method("adjust", "level", "1")
            with pytest.raises(ConversionError, match="above the maximum"):
                await runner.call_method("adjust", "target", "101")
            with pytest.raises(UnknownProperty, match="no method 'explode'"):
                await runner.call_method("explode", "target", "7")
            with pytest.raises(UnknownProperty, match="takes no property 'speed'"):
                await runner.call_method("adjust", "speed", "7")


async def test_a_property_that_cannot_run_says_why_when_it_is_asked_for() -> None:
    model = DeviceModel("plant", "meter", properties=(ModelProperty("target", "STREAM"), *MODEL.properties[:1]))
    recorder = Recorder()
    async with running_device(LinkDriver(lambda: Board(level=1)), board_device(), recorder, model) as runner:
        with pytest.raises(DeviceUnsupported, match="STREAM"):
            await runner.read_property("target")
        await recorder.until(lambda: bool(recorder.states))
        assert runner.state == recorder.states[-1]


# hot reload


async def test_a_changed_cycle_moves_only_that_property_and_reads_nothing() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    driver = LinkDriver(lambda: board)
    async with running_device(driver, board_device(), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        slower = any_device(prop("target", cycle_ms=120_000), prop("level", cycle_ms=60_000))
        before = {g.cycle: g.due for g in runner._collector._schedule._groups}
        runner.update(slower, runner.model)
        await asyncio.sleep(0.05)
        after = {g.cycle: (g.due, g.names) for g in runner._collector._schedule._groups}
        assert after[60.0] == (before[60.0], ("level",))
        assert after[120.0][1] == ("target",)
        assert board.reads == [("target", "level")]
        runner.update(any_device(prop("target", cycle_ms=10), prop("level", cycle_ms=60_000)), runner.model)
        await recorder.until(lambda: len(board.reads) > 3)
    assert set(board.reads[1:]) == {("target",)}
    assert (driver.opened, driver.closed) == (1, 1)


async def test_a_changed_visitor_reads_that_property_anew_and_only_a_changed_config_connects() -> None:
    board, recorder = Board(target=1, level=2, spare=3), Recorder()
    driver = LinkDriver(lambda: board)
    async with running_device(driver, board_device(), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        moved = any_device(prop("target", cycle_ms=60_000), prop("level", cycle_ms=60_000, cell="spare"))
        runner.update(moved, runner.model)
        await recorder.until(lambda: recorder.value("level") == "3")
        assert board.reads == [("target", "level"), ("spare",)]
        same = msgspec.structs.replace(moved, protocol_config={"Host": "here", "unused": 1})
        runner.update(same, runner.model)
        await asyncio.sleep(0.02)
        assert (driver.opened, len(board.reads)) == (1, 2)
        runner.update(msgspec.structs.replace(moved, protocol_config={"host": "there"}), runner.model)
        await recorder.until(lambda: len(board.reads) == 3)
        assert (driver.opened, driver.closed, board.reads[2]) == (2, 1, ("target", "spare"))


async def test_an_overrun_is_counted_and_reads_do_not_pile_up() -> None:
    board, recorder = Board(target=1, level=2), Recorder()
    async with running_device(LinkDriver(lambda: board), board_device(10), recorder) as runner:
        await recorder.until(lambda: recorder.value("level") == "2")
        board.hold.clear()
        await recorder.until(lambda: board.reading == 1)
        await asyncio.sleep(0.05)
        board.hold.set()
        await recorder.until(lambda: runner.stats.overruns >= 3)
        stats = runner.stats
        assert (stats.read_failures, stats.values_bad, sum(stats.read_latency.counts)) == (0, 0, stats.reads)
        assert stats.read_latency.total_s >= 0.05
    assert board.most == 1
