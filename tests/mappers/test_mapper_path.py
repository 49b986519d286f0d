"""From a register to an edge core and back: a real Modbus server, real gRPC over unix sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dmi._pb import api_pb2
from dmi.client import MapperClient
from dmi.errors import PeerRefused
from dmi.rpc import rpc_errors
from dmi.types import DeviceId
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk.testing import FakeEdgeCore
from tests.mappers.mapper_world import MODEL, holding, modbus_device, prop, running, wanting

ID = DeviceId("plant/m1")


def image() -> Image:
    return Image(
        coils={0: False},
        discrete_inputs={0: True},
        holding_registers=dict.fromkeys(range(40), 0) | {0: 11, 1: 22, 2: 33},
        input_registers={0: 5},
    )


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(units={0: image()}) as running_simulator:
        yield running_simulator


def edge_core(directory: Path) -> FakeEdgeCore:
    return FakeEdgeCore(directory / "dmi.sock", models=[MODEL])


async def test_a_changed_register_is_reported_within_a_cycle(simulator: Simulator, tmp_path: Path) -> None:
    device = modbus_device(simulator.port, holding("level", 0, cycle_ms=500), holding("target", 1, cycle_ms=500))
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: len(edge.twins) == 2)
            assert edge.reports[0][1][0].reported.type == "int"
            assert len(edge.reports) == 1  # both properties in one call
            loop = asyncio.get_running_loop()
            changed = loop.time()
            await simulator.write("HoldingRegister", 0, [4711])
            await edge.until(lambda: edge.value(ID, "level") == "4711")
            assert loop.time() - changed < 1.5  # half a second, on a busy machine
            assert [t.property_name for t in edge.reports[-1][1]] == ["level"]  # and only what changed


async def test_unchanged_values_are_confirmed_with_the_report_cycle(simulator: Simulator, tmp_path: Path) -> None:
    device = modbus_device(simulator.port, holding("level", 0, cycle_ms=50, report_ms=200))
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: len(edge.reports) >= 3)
            first, second, third = (r[1][0].reported for r in edge.reports[:3])
            assert first.value == second.value == third.value == "11"
            assert 120 <= third.collected_ms - second.collected_ms <= 5000


async def test_what_is_not_for_the_cloud_stays_here(simulator: Simulator, tmp_path: Path) -> None:
    private = msgspec.structs.replace(holding("target", 1), report_to_cloud=False)
    device = modbus_device(simulator.port, holding("level", 0), private)
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: bool(edge.twins))
            async with MapperClient(edge.mappers[-1].address) as client:
                answer = await client._stub.GetDevice(_get_request(), timeout=5)
            assert {t.propertyName: t.reported.value for t in answer.device.status.twins} == {
                "level": "11",
                "target": "22",
            }
            assert set(edge.twins) == {(ID, "level")}


def _get_request() -> object:
    return api_pb2.GetDeviceRequest(deviceNamespace="plant", deviceName="m1")


async def test_desired_is_written_read_back_and_applied(simulator: Simulator, tmp_path: Path) -> None:
    device = modbus_device(
        simulator.port,
        holding("target", 1, cycle_ms=10_000),
        holding("speed", 10, cycle_ms=10_000, limit=1, scale=0.1),
        prop("valve", register="CoilRegister", offset=0, cycle_ms=10_000),
        holding("label", 20, cycle_ms=10_000, limit=4),
    )
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: len(edge.twins) == 4)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await edge.apply(wanting(device, target="77"))
            await edge.until(lambda: edge.twins[ID, "target"].desired.write == "applied")
            assert loop.time() - started < 3.0  # no waiting for the 10 s cycle
            assert await simulator.read("HoldingRegister", 1) == [77]
            assert edge.value(ID, "target") == "77"
            await edge.apply(wanting(device, target="77", speed="21.57", valve="true", label="héllo"))
            await edge.until(
                lambda: all(edge.twins[ID, n].desired.write == "applied" for n in ("speed", "valve", "label"))
            )
            assert edge.value(ID, "speed") == "21.6"  # what tenths can hold of it
            assert await simulator.read("CoilRegister", 0) == [1]
            assert edge.value(ID, "label") == "héllo"


async def test_a_refused_write_is_failed_with_the_reason(simulator: Simulator, tmp_path: Path) -> None:
    device = modbus_device(
        simulator.port,
        prop("target", register="InputRegister", offset=0, desired="3"),
        holding("speed", 100, limit=1, desired="5"),
        holding("valve", 1, dataType="boolean"),
    )
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: (ID, "target") in edge.twins and edge.twins[ID, "target"].reported.value == "5")
            assert edge.twins[ID, "target"].desired.write == "failed"
            assert "InputRegister cannot be written" in edge.twins[ID, "target"].desired.reason
            await edge.until(lambda: (ID, "speed") in edge.twins and edge.twins[ID, "speed"].reported.quality == "bad")
            speed = edge.twins[ID, "speed"]
            assert speed.desired.write == "failed"
            assert "illegal data address" in speed.desired.reason
            assert edge.twins[ID, "valve"].reported.quality == "good"
            await edge.until(lambda: edge.states[-1][1] == "unhealthy")
            assert "property speed: illegal data address" in edge.states[-1][2]


async def test_a_dead_device_goes_stale_bad_and_offline_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = Simulator(units={0: image()})
    await first.__aenter__()
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = modbus_device(first.port, holding("level", 0), holding("target", 1, desired="44"))
        async with running(edge, tmp_path):
            await edge.until(lambda: edge.states == [(ID, "online", "")])
            await edge.until(lambda: edge.twins[ID, "target"].desired.write == "applied")
            before = edge.twins[ID, "level"].reported
            await first.__aexit__(None, None, None)
            await edge.until(lambda: edge.twins[ID, "level"].reported.quality == "bad")
            qualities = [t.reported.quality for _, twins in edge.reports for t in twins if t.property_name == "level"]
            changes = [q for i, q in enumerate(qualities) if i == 0 or q != qualities[i - 1]]
            assert changes == ["good", "stale", "bad"]
            last = edge.twins[ID, "level"].reported
            assert (last.value, last.collected_ms >= before.collected_ms) == ("11", True)
            assert last.reason
            await edge.until(lambda: edge.states[-1][1] == "offline")
            forgetful = Image(holding_registers=dict.fromkeys(range(40), 0) | {0: 12, 1: 1})
            async with Simulator(port=first.port, units={0: forgetful}) as second:
                await edge.until(lambda: edge.value(ID, "level") == "12", timeout_s=10)
                await edge.until(lambda: edge.states[-1][1] == "online")
                await edge.until(lambda: edge.value(ID, "target") == "44")
                assert await second.read("HoldingRegister", 1) == [44]
                assert edge.twins[ID, "level"].reported.quality == "good"
    offline = [r for r in caplog.records if "is offline" in r.getMessage()]
    assert 1 <= len(offline) <= 3  # on the change of reason, not every cycle


async def test_a_bad_device_next_to_a_good_one(simulator: Simulator, tmp_path: Path) -> None:
    good = modbus_device(simulator.port, holding("level", 0))
    wrong = modbus_device(simulator.port, prop("level", register="Foo", offset=0), holding("target", 1), name="wrong")
    serial = modbus_device(simulator.port, holding("level", 0), name="serial", communicateMode="RTU")
    orphan = msgspec.structs.replace(modbus_device(simulator.port, holding("level", 0), name="orphan"), model="none")
    async with edge_core(tmp_path) as edge:
        edge.devices = {d.id: d for d in (wrong, serial, orphan, good)}
        async with running(edge, tmp_path):
            await edge.until(lambda: {s[0] for s in edge.states} == {d.id for d in (wrong, serial, orphan, good)})
            states = {device: (state, reason) for device, state, reason in edge.states}
            assert states[good.id] == ("online", "")
            assert states[serial.id][0] == states[orphan.id][0] == states[wrong.id][0] == "unhealthy"
            assert states[serial.id][1].startswith("spec.protocol.configData.serialName: is missing")
            assert states[orphan.id][1].startswith("spec.deviceModelRef.name: model 'plant/none'")
            assert states[wrong.id][1].startswith("property level: visitors.configData.register: 'Foo' is not one of")
            await edge.until(lambda: edge.value(wrong.id, "target") == "22" and edge.value(good.id, "level") == "11")
            assert edge.twins[wrong.id, "level"].reported.quality == "bad"
            assert edge.twins[serial.id, "level"].reported.quality == "bad"
            # Put right, it runs.
            await edge.apply(modbus_device(simulator.port, holding("level", 0), name="serial"))
            await edge.until(lambda: edge.value(serial.id, "level") == "11")
            await edge.until(lambda: edge.states[-1][:2] == (serial.id, "online"))


async def test_the_edge_core_restarts_and_gets_everything_current(simulator: Simulator, tmp_path: Path) -> None:
    level, other = modbus_device(simulator.port, holding("level", 0)), modbus_device(simulator.port, name="other")
    first = edge_core(tmp_path)
    first.devices = {level.id: level, other.id: other}
    await first.__aenter__()
    async with running(first, tmp_path):
        await first.until(lambda: first.value(ID, "level") == "11" and len(first.states) == 2)
        await first.__aexit__(None, None, None)
        await simulator.write("HoldingRegister", 0, [12])
        second = edge_core(tmp_path)
        second.devices = {level.id: level}  # the other one was deleted meanwhile
        async with second:
            await second.until(lambda: second.value(ID, "level") == "12")
            await second.until(lambda: (ID, "online", "") in second.states)
            async with MapperClient(second.mappers[-1].address) as client:
                with pytest.raises(PeerRefused, match="NOT_FOUND"):
                    await _get(client, other.id)
                await client.remove_device(other.id)  # gone already: that succeeds


async def _get(client: MapperClient, device: DeviceId) -> None:
    namespace, _, name = device.partition("/")
    with rpc_errors("mapper"):
        await client._stub.GetDevice(api_pb2.GetDeviceRequest(deviceNamespace=namespace, deviceName=name), timeout=5)


async def test_a_slow_edge_core_gets_the_newest_not_a_backlog(simulator: Simulator, tmp_path: Path) -> None:
    device = modbus_device(simulator.port, holding("level", 0, cycle_ms=20))
    async with edge_core(tmp_path) as edge:
        edge.devices[ID] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: edge.value(ID, "level") == "11")
            edge.gate.clear()
            done = len(edge.reports)
            async with MapperClient(edge.mappers[-1].address) as client:
                for value in range(100, 120):
                    await simulator.write("HoldingRegister", 0, [value])
                    await eventually_reads(client, str(value))
            edge.gate.set()
            await edge.until(lambda: edge.value(ID, "level") == "119")
            values = [twins[0].reported.value for _, twins in edge.reports[done:]]
            assert len(values) <= 2  # the one that was under way, and the newest
            assert values[-1] == "119"


async def eventually_reads(client: MapperClient, value: str) -> None:
    async with asyncio.timeout(5):
        while True:
            answer = await client._stub.GetDevice(_get_request(), timeout=5)
            if answer.device.status.twins[0].reported.value == value:
                return
            await asyncio.sleep(0.005)


async def test_removed_and_added_while_running(simulator: Simulator, tmp_path: Path) -> None:
    async with edge_core(tmp_path) as edge, running(edge, tmp_path):
        await edge.apply(modbus_device(simulator.port, holding("level", 0)))
        await edge.until(lambda: edge.value(ID, "level") == "11")
        await edge.remove(ID)
        await simulator.write("HoldingRegister", 0, [1])
        done = len(edge.reports)
        await edge.apply(modbus_device(simulator.port, holding("level", 0), name="m2"))
        await edge.until(lambda: edge.value(DeviceId("plant/m2"), "level") == "1")
        assert all(device != ID for device, _ in edge.reports[done:])


async def test_a_hundred_devices_of_ten_registers(tmp_path: Path) -> None:
    units = {unit: Image(holding_registers={a: unit * 10 + a for a in range(10)}) for unit in range(1, 101)}
    names = [f"r{i}" for i in range(10)]
    model = msgspec.structs.replace(
        MODEL, properties=tuple(msgspec.structs.replace(MODEL.properties[0], name=n) for n in names)
    )
    async with Simulator(units=units) as simulator, FakeEdgeCore(tmp_path / "dmi.sock", models=[model]) as edge:
        for unit in units:
            device = modbus_device(
                simulator.port,
                *(holding(n, i, cycle_ms=1000) for i, n in enumerate(names)),
                name=f"d{unit}",
                slaveID=unit,
            )
            edge.devices[device.id] = device
        async with running(edge, tmp_path):
            await edge.until(lambda: len(edge.twins) == 1000, timeout_s=20)
            assert len(edge.reports) == 100
            await simulator.write("HoldingRegister", 3, [9], unit=100)
            await edge.until(lambda: edge.value(DeviceId("plant/d100"), "r3") == "9")
