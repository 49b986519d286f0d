"""The device runtime with a driver whose device lives in memory and fails on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from dmi.types import Device, DeviceId
from mappers.sdk import ConfigError, DeviceRejected, DeviceTimeout, DeviceUnreachable, Property, ReadResult
from mappers.sdk import connection as connection_module
from mappers.sdk import tracking as tracking_module
from mappers.sdk.testing import FakeEdgeCore
from tests.mappers.mapper_world import (
    MODEL,
    MemoryConfig,
    MemoryDevice,
    MemoryDriver,
    MemoryLink,
    MemoryVisitor,
    eventually,
    memory_device,
    prop,
    running,
    wanting,
)

ID = DeviceId("plant/m1")


def edge_core(directory: Path, *devices: Device) -> FakeEdgeCore:
    return FakeEdgeCore(directory / "dmi.sock", devices=devices, models=[MODEL])


async def test_what_must_not_be_written_does_not_touch_the_device(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1, b=2, c=3.5)
    device = memory_device(
        prop("target", cell="a", desired="101"),
        prop("level", cell="b", desired="5"),
        prop("speed", cell="c", desired=""),
    )
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: len(edge.twins) == 3 and edge.value(ID, "target") == "1")
        assert edge.twins[ID, "target"].desired.write == "failed"
        assert "above the maximum 100" in edge.twins[ID, "target"].desired.reason
        assert edge.twins[ID, "level"].desired.write == "failed"
        assert "ReadOnly" in edge.twins[ID, "level"].desired.reason
        assert edge.twins[ID, "speed"].desired.write == ""
        reads = memory.reads
        await eventually(lambda: memory.reads > reads + 2)
    assert memory.writes == []


async def test_redelivery_of_what_is_applied_does_nothing(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("target", cell="a", desired="5"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: (ID, "target") in edge.twins and edge.twins[ID, "target"].desired.write == "applied")
        memory.cells["a"] = 9  # somebody turns a knob on the device: shown, not fought over
        await edge.until(lambda: edge.value(ID, "target") == "9")
        await edge.apply(device)
        reads = memory.reads
        await eventually(lambda: memory.reads > reads + 2)
        assert memory.writes == [("target", 5)]
        assert edge.twins[ID, "target"].desired.write == "applied"
        await edge.apply(wanting(device, target="6"))
        await edge.until(lambda: edge.value(ID, "target") == "6")
    assert memory.connects == 1


async def test_what_the_device_has_already_is_not_written_after_a_connect(tmp_path: Path) -> None:
    memory = MemoryDevice(a=5)
    device = memory_device(prop("target", cell="a", desired="5"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: (ID, "target") in edge.twins and edge.twins[ID, "target"].desired.write == "applied")
    assert memory.writes == []


async def test_a_read_back_that_differs_is_failed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_module, "WRITE_RETRY_S", (0.05, 0.1))
    memory = MemoryDevice(a=1)
    memory.keeps = 4
    device = memory_device(prop("target", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        await edge.apply(wanting(device, target="5"))
        await edge.until(lambda: edge.twins[ID, "target"].desired.write == "failed")
        assert edge.twins[ID, "target"].desired.reason.endswith("written 5, but the device has 4")
        memory.keeps = None
        await edge.until(lambda: edge.twins[ID, "target"].desired.write == "applied")
        memory.write_fault = DeviceRejected(ID, "device busy", 6)
        await edge.apply(wanting(device, target="7"))
        await edge.until(lambda: edge.twins[ID, "target"].desired.reason == "device busy")
        await edge.apply(wanting(device, target=""))  # given up
        await edge.until(lambda: edge.twins[ID, "target"].desired.write == "")
        writes = len(memory.writes)
        reads = memory.reads
        await eventually(lambda: memory.reads > reads + 5)
        assert len(memory.writes) == writes


async def test_a_write_does_not_wait_for_a_read_under_way(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("target", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        memory.hold.clear()
        await eventually(lambda: memory.reading == 1)
        await edge.apply(wanting(device, target="5"))
        await eventually(lambda: memory.writes == [("target", 5)])
        memory.hold.set()
        await edge.until(lambda: edge.twins[ID, "target"].desired.write == "applied")
        assert edge.value(ID, "target") == "5"


async def test_a_changed_declaration_touches_only_what_changed(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1, b=2)
    device = memory_device(prop("target", cell="a"), prop("level", cell="b", cycle_ms=60_000))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: len(edge.twins) == 2)
        retimed = [msgspec.structs.replace(p, collect_cycle_ms=20) for p in device.properties]
        await edge.apply(msgspec.structs.replace(device, properties=tuple(retimed)))
        memory.cells["b"] = 3
        await edge.until(lambda: edge.value(ID, "level") == "3")
        moved = (retimed[0], prop("level", cell="a", cycle_ms=60_000))
        await edge.apply(msgspec.structs.replace(device, properties=moved))
        await edge.until(lambda: edge.value(ID, "level") == "1")  # read at once, not in a minute
        await edge.apply(
            msgspec.structs.replace(device, properties=(retimed[0], prop("flow", cell="b", cycle_ms=60_000)))
        )
        await edge.until(lambda: edge.value(ID, "flow") == "3")
        await edge.apply_model(
            msgspec.structs.replace(
                MODEL, properties=tuple(msgspec.structs.replace(p, maximum="3") for p in MODEL.properties)
            )
        )
        await edge.apply(wanting(device, target="4"))
        await edge.until(lambda: edge.twins[ID, "target"].desired.write == "failed")
        assert memory.connects == 1
        assert memory.writes == []
        elsewhere = msgspec.structs.replace(device, protocol_config={"name": "m1", "extra": 1})
        await edge.apply(elsewhere)  # a key nobody reads
        assert memory.connects == 1


async def test_only_a_changed_protocol_config_reconnects(tmp_path: Path) -> None:
    here, there = MemoryDevice(a=1), MemoryDevice(a=2)
    device = memory_device(prop("target", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=here, m2=there)):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        await edge.apply(msgspec.structs.replace(device, protocol_config={"name": "m2"}))
        await edge.until(lambda: edge.value(ID, "target") == "2")
        assert (here.connects, there.connects) == (1, 1)
        assert {state for _, state, _ in edge.states} == {"online"}  # moving house is not being away


async def test_a_driver_with_a_bug_harms_its_device_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buggy, good = MemoryDevice(a=1), MemoryDevice(a=2)
    buggy.read_fault = KeyError("oops")
    devices = [memory_device(prop("level", cell="a"), name=n) for n in ("bad", "good")]
    async with edge_core(tmp_path, *devices) as edge, running(edge, tmp_path, MemoryDriver(bad=buggy, good=good)):
        await edge.until(lambda: {s[:2] for s in edge.states} >= {("plant/bad", "unhealthy"), ("plant/good", "online")})
        assert "KeyError('oops')" in next(reason for id_, _, reason in edge.states if id_ == "plant/bad")
        await edge.until(lambda: ("plant/bad", "level") in edge.twins)
        assert edge.twins[DeviceId("plant/bad"), "level"].reported.quality == "bad"
        await eventually(lambda: buggy.connects >= 2)
        buggy.read_fault = None
        await edge.until(lambda: edge.value(DeviceId("plant/bad"), "level") == "1")
        await edge.until(lambda: edge.states[-1] == ("plant/bad", "online", ""))
    logged = [r for r in caplog.records if r.levelno == logging.ERROR and "plant/bad" in r.getMessage()]
    assert len(logged) == 1  # with its traceback, once
    assert logged[0].exc_info


async def test_a_driver_that_hangs_is_ended_by_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CALL_DEADLINE_S", 0.1)
    hanging, good = MemoryDevice(a=1), MemoryDevice(a=2)
    hanging.hold.clear()
    devices = [memory_device(prop("level", cell="a"), name=n) for n in ("bad", "good")]
    async with edge_core(tmp_path, *devices) as edge, running(edge, tmp_path, MemoryDriver(bad=hanging, good=good)):
        await edge.until(lambda: edge.value(DeviceId("plant/good"), "level") == "2")
        await edge.until(lambda: (DeviceId("plant/bad"), "level") in edge.twins)
        assert "did not end in time" in edge.twins[DeviceId("plant/bad"), "level"].reported.reason
        hanging.hold.set()
        await edge.until(lambda: edge.value(DeviceId("plant/bad"), "level") == "1")


async def test_a_config_the_driver_refuses_on_connect_is_tried_again_once_declared_anew(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    memory.connect_fault = ConfigError("name", "no such meter")
    device = memory_device(prop("level", cell="a", cycle_ms=20))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: edge.states == [(ID, "unhealthy", "spec.protocol.configData.name: no such meter")])
        await edge.until(lambda: (ID, "level") in edge.twins)
        assert edge.twins[ID, "level"].reported.quality == "bad"
        memory.connect_fault = None
        assert memory.connects == 1
        await edge.apply(msgspec.structs.replace(device, report_state=True))
        await edge.until(lambda: edge.value(ID, "level") == "1")
        assert memory.connects == 2


async def test_connecting_is_tried_for_ever_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_S", (0.01, 0.04))
    memory = MemoryDevice(a=1)
    memory.connect_fault = DeviceUnreachable(ID, "no route")
    device = memory_device(prop("level", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await eventually(lambda: memory.connects > 8)
        assert edge.states == [(ID, "offline", "no route")]
        memory.connect_fault = None
        await edge.until(lambda: edge.states[-1] == (ID, "online", ""))


async def test_the_state_is_repeated_when_the_device_asks_for_it(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("level", cell="a"))
    quiet = memory_device(prop("level", cell="a"), name="quiet")
    asking = msgspec.structs.replace(device, report_state=True, state_report_cycle_ms=50)
    async with (
        edge_core(tmp_path, asking, quiet) as edge,
        running(edge, tmp_path, MemoryDriver(m1=memory, quiet=MemoryDevice(a=1))),
    ):
        await edge.until(lambda: edge.states.count((ID, "online", "")) >= 4)
        assert edge.states.count((quiet.id, "online", "")) == 1


async def test_a_single_timeout_is_stale_and_not_offline(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("level", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: edge.value(ID, "level") == "1")
        memory.read_fault = DeviceTimeout(ID, "no reply")
        await edge.until(lambda: edge.twins[ID, "level"].reported.quality == "stale")
        memory.read_fault = None
        await edge.until(lambda: edge.twins[ID, "level"].reported.quality == "good")
        assert memory.connects == 1
        assert edge.states == [(ID, "online", "")]


async def test_a_value_of_the_wrong_type_is_bad_with_the_reason(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1.5)
    device = memory_device(prop("level", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: (ID, "level") in edge.twins)
        twin = edge.twins[ID, "level"]
        assert (twin.reported.value, twin.reported.quality) == ("", "bad")
        assert "not a whole number" in twin.reported.reason


async def test_stopping_sends_the_last_reports_and_leaves_nothing(tmp_path: Path) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("level", cell="a", cycle_ms=10))
    async with edge_core(tmp_path, device) as edge:
        async with running(edge, tmp_path, MemoryDriver(m1=memory)):
            await edge.until(lambda: edge.value(ID, "level") == "1")
            memory.hold.clear()
            await eventually(lambda: memory.reading == 1)
        assert not (tmp_path / "mapper.sock").exists()
        assert memory.reading == 0
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not any(name.startswith(("device", "connect", "collect", "write", "report")) for name in names)


async def test_a_cycle_in_nanoseconds_is_warned_about_and_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = MemoryDevice(a=1)
    device = memory_device(prop("target", cell="a", cycle_ms=10_000_000_000))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, MemoryDriver(m1=memory)):
        await edge.until(lambda: edge.value(ID, "target") == "1")
        await edge.apply(wanting(device, target="3"))
        await edge.until(lambda: edge.value(ID, "target") == "3")
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    path = "spec.properties[0].collectCycle"
    assert warned == [f"device plant/m1: {path}: 10000000000 is 116 days: cycles are in milliseconds"]


async def test_a_cancellation_that_a_library_swallows_still_ends_the_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(MemoryLink):
        async def read_many(self, properties: Sequence[Property[MemoryVisitor]]) -> Mapping[str, ReadResult]:
            try:
                return await super().read_many(properties)
            except asyncio.CancelledError:  # as `asyncio.wait_for` of Python 3.11 does when the reply is just there
                return {p.name: 1 for p in properties}

    class DeafDriver(MemoryDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: MemoryConfig) -> AsyncIterator[MemoryLink]:
            async with super().connect(device_id, config):
                yield Deaf(memory)

    memory = MemoryDevice(a=1)
    memory.hold.clear()
    device = memory_device(prop("target", cell="a"))
    async with edge_core(tmp_path, device) as edge, running(edge, tmp_path, DeafDriver(m1=memory)):
        await eventually(lambda: memory.reading == 1)
        await edge.remove(ID)
        assert memory.reading == 0
    assert "did not let go" not in caplog.text
