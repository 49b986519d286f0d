"""Shared Modbus lines under the mapper's runtime: what the edge core is told."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from dmi.types import DesiredSpec, Device, DeviceId, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk import DeviceError, Property, ReadResult, connection, silence
from mappers.sdk.testing import FakeEdgeCore, running
from tests.mappers.modbus_world import Certificates, simulator

MODEL = DeviceModel("lab", "meter", properties=(ModelProperty("level", "INT"),))
IMAGE = Image(holding_registers={0: 5})


def device(name: str, unit: int, where: Mapping[str, Scalar], desired: str = "") -> Device:
    visitor = Visitor("modbus", {"register": "HoldingRegister", "offset": 0})
    level = DeviceProperty(
        "level", visitor=visitor, collect_cycle_ms=50, report_to_cloud=True, desired=DesiredSpec(desired)
    )
    return Device(
        "lab",
        name,
        model="meter",
        protocol="modbus",
        protocol_config={"slaveID": unit, "timeout": 300, **where},
        report_state=True,
        properties=(level,),
    )


def at(bus: Simulator, **rest: Scalar) -> dict[str, Scalar]:
    if bus.mode in ("RTU", "ASCII"):
        return {"communicateMode": bus.mode, "serialName": bus.address, **rest}
    return {"communicateMode": bus.mode, "ip": bus.host, "port": bus.port, **rest}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_a_line_changes_its_speed_one_device_after_the_other(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONFIG_RETRY_S", 0.2)
    async with simulator("RTU", certificates, {1: IMAGE, 2: IMAGE}) as bus:
        before, after = at(bus, baudRate=9600), at(bus, baudRate=19200)
        one, two = device("one", 1, before), device("two", 2, before)
        async with FakeEdgeCore(devices=[one, two], models=[MODEL]) as core, running(ModbusDriver(), core):
            await core.until(lambda: {core.state(one.id), core.state(two.id)} == {"online"}, 20)
            await core.apply(msgspec.structs.replace(one, protocol_config=device("one", 1, after).protocol_config))
            await core.until(lambda: core.state(one.id) == "unhealthy", 20)
            await core.until(lambda: core.quality(one.id, "level") == "bad", 20)
            reason = core.twins[one.id, "level"].reported.reason
            assert reason.startswith("spec.protocol.configData.baudRate: ")
            assert "lab/two" in reason
            assert core.state(two.id) == "online"
            await core.apply(msgspec.structs.replace(two, protocol_config=device("two", 2, after).protocol_config))
            await core.until(lambda: {core.state(one.id), core.state(two.id)} == {"online"}, 20)
            await core.until(lambda: core.quality(one.id, "level") == "good", 20)


@pytest.mark.parametrize("mode", ("TCP", "RTU"))
async def test_a_dead_unit_is_offline_and_comes_back_while_the_other_goes_on(
    certificates: Certificates, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "RETRY_S", (0.1, 1.0))
    async with simulator(mode, certificates, {1: IMAGE, 2: IMAGE}) as bus:  # type: ignore[arg-type]  # both are modes
        one, two = device("one", 1, at(bus)), device("two", 2, at(bus))
        async with FakeEdgeCore(devices=[one, two], models=[MODEL]) as core, running(ModbusDriver(), core):
            await core.until(lambda: {core.state(one.id), core.state(two.id)} == {"online"}, 20)
            bus.faults.silent_units = {2}
            await core.until(lambda: core.state(two.id) == "offline", 30)
            await core.until(lambda: core.quality(two.id, "level") == "bad", 20)
            assert core.twins[two.id, "level"].reported.reason.startswith("no reply since 20")
            await bus.write("HoldingRegister", 0, [6], unit=1)
            await core.until(lambda: core.value(one.id, "level") == "6", 20)
            assert core.state(one.id) == "online"
            bus.faults.clear()
            await core.until(lambda: core.state(two.id) == "online", 40)
            await core.until(lambda: core.quality(two.id, "level") == "good", 20)


class Watched(ModbusDriver):
    """Notes when each read that had an answer ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, list[float]] = defaultdict(list)

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: ModbusConfig) -> AsyncIterator[ModbusLink]:
        async with super().connect(device_id, config) as link:
            read_many = link.read_many

            async def watched(properties: Sequence[Property[ModbusVisitor]]) -> Mapping[str, ReadResult]:
                results = await read_many(properties)
                if not isinstance(results["level"], DeviceError):
                    self.ends[device_id].append(asyncio.get_running_loop().time())
                return results

            link.read_many = watched  # type: ignore[method-assign]  # to look, not to change
            yield link


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("TCP", "RTU"))
async def test_the_cycles_of_the_others_are_late_at_most_once_when_a_unit_dies(
    certificates: Certificates, mode: str
) -> None:
    """The runtime's own cycles, reconnects and desired values, on a line that the dead unit keeps wanting."""
    timeout_ms, units = 1500, range(1, 9)
    async with simulator(mode, certificates, dict.fromkeys(units, IMAGE)) as bus:  # type: ignore[arg-type]  # as above
        devices = [device(f"unit-{u}", u, at(bus, baudRate=115200, timeout=timeout_ms), desired="5") for u in units]
        dead, driver, loop = devices[3], Watched(), asyncio.get_running_loop()
        async with FakeEdgeCore(devices=devices, models=[MODEL]) as core, running(driver, core):
            await core.until(lambda: {core.state(d.id) for d in devices} == {"online"}, 30)
            bus.faults.silent_units = {4}
            died = loop.time()
            await core.apply(msgspec.structs.replace(dead, properties=device("x", 4, {}, desired="7").properties))
            asked = bus.requests.total()
            await core.until(lambda: core.state(dead.id) == "offline", 60)
            probes = bus.faults.seen["silent_units"]
            await core.until(lambda: bus.faults.seen["silent_units"] >= probes + 3, 60)  # they may harm nobody
            assert bus.requests.total() - asked > 10 * bus.faults.seen["silent_units"]
        for living in devices:
            if living is not dead:
                times = [t for t in driver.ends[living.id] if t > died - 0.5]
                pauses = [b - a for a, b in pairwise(times)]
                assert sum(pause > 0.6 * timeout_ms / 1000 for pause in pauses) <= 1, (living.name, pauses)


async def test_a_broadcast_device_writes_and_says_that_nobody_confirmed(certificates: Certificates) -> None:
    async with simulator("RTU", certificates, {1: IMAGE, 2: IMAGE}) as bus:
        everyone = device("everyone", 0, at(bus), desired="9")
        async with FakeEdgeCore(devices=[everyone], models=[MODEL]) as core, running(ModbusDriver(), core):
            await core.until(lambda: core.write_state(everyone.id, "level") == "applied", 20)
            assert [await bus.read("HoldingRegister", 0, unit=u) for u in (1, 2)] == [[9], [9]]
            assert core.twins[everyone.id, "level"].desired.reason.startswith(
                "not verified: slaveID 0 is the broadcast"
            )
            await core.until(lambda: core.quality(everyone.id, "level") == "bad", 20)
            assert "broadcast" in core.twins[everyone.id, "level"].reported.reason
