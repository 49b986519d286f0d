"""What `discover` finds on simulated devices, through the driver and its real transports."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.errors import ConfigError
from dmi.types import ModelProperty
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.discover import MAX_PROPERTIES, discover, parse_ranges, probe_timeout_s
from mappers.drivers.modbus.settings import READ_CODES, Register
from mappers.drivers.modbus.simulator import Faults, Image, Simulator
from mappers.sdk import DeviceId, DeviceTimeout, DeviceUnreachable, Found
from mappers.sdk.settings import decode_settings

WRITES = {5, 6, 15, 16, 22, 23}
METER = Image(
    coils={2: True},
    holding_registers={0: 7, 1: 8, 100: 0x426F, 101: 0x696C, 102: 0x6572, 130: 9},
    input_registers={a: a for a in range(10)},
    identity={0: "Acme", 1: "M 1", 2: "1.0"},
)


def settings(simulator: Simulator, **more: object) -> ModbusConfig:
    place = {"serialName": simulator.address} if simulator.port == 0 else {"ip": "127.0.0.1", "port": simulator.port}
    given = {"communicateMode": simulator.mode, "timeout": 2000, "discoverUnits": "1-2", **place, **more}
    config, unknown = decode_settings(given, ModbusConfig)  # type: ignore[arg-type]
    assert not unknown
    return ModbusDriver().check_config(config)


async def found(simulator: Simulator, **more: object) -> list[Found]:
    return [f async for f in ModbusDriver().discover(settings(simulator, **more))]


async def test_units_their_names_and_their_registers_are_found() -> None:
    other = Image(holding_registers={5: 1})
    async with Simulator(units={1: METER, 9: other}) as simulator:
        first, second = await found(simulator, discoverUnits="1-3,9", discoverRegisters="0-199")
        assert not [f for _, f in simulator.requests if f in WRITES]
        assert (first.name, second.name) == ("m-1-127-0-0-1-1", "modbus-127-0-0-1-9")
        assert first.config == {"communicateMode": "TCP", "ip": "127.0.0.1", "port": simulator.port, "slaveID": 1}
        assert first.description.startswith("Acme, M 1, 1.0; can be read: CoilRegister 2-2, HoldingRegister 0-1,")
        assert [(p.name, p.type) for p in first.properties] == [
            ("coil-2", "BOOLEAN"),
            ("holding-0", "INT"),
            ("holding-1", "INT"),
            ("holding-100", "STRING"),
            ("holding-130", "INT"),
            *((f"input-{a}", "INT") for a in range(10)),
        ]
        text = first.properties[3]
        assert text.visitor == {"register": "HoldingRegister", "offset": 100, "limit": 3, "dataType": "string"}
        assert text.description == "was 'Boiler'"
        assert {p.access_mode for p in first.properties} == {"ReadOnly"}
        assert second.description == "says nothing of itself; can be read: HoldingRegister 5-5"


async def test_what_is_proposed_can_be_declared_and_read() -> None:
    async with Simulator(units={1: METER}) as simulator:
        (device,) = await found(simulator, discoverUnits="1")
        config, _ = decode_settings(device.config, ModbusConfig)
        assert ModbusDriver().check_config(config) == msgspec.structs.replace(
            settings(simulator), slave_id=1, discover_units=""
        )
        for proposed in device.properties:
            visitor, unknown = decode_settings(proposed.visitor, ModbusVisitor)
            assert not unknown
            ModbusDriver().resolve(visitor, ModelProperty(proposed.name, proposed.type))


async def test_a_silent_unit_costs_its_timeout_and_no_more() -> None:
    async with Simulator(units={1: METER, 2: METER}, mode="RTU", faults=Faults(silent_units={1})) as simulator:
        (device,) = await found(simulator, timeout=50, discoverRegisters="0-9")
        assert device.config["slaveID"] == 2
        assert device.config["serialName"] == simulator.address
        assert simulator.requests[1, 3] == 1


async def test_a_device_that_answers_every_unit_is_one_device() -> None:
    async with Simulator(units={0: METER}) as simulator:
        (device,) = await found(simulator, discoverUnits="", discoverRegisters="0")
        assert device.config["slaveID"] == 1
        assert "it answers every unit" in device.description


async def test_a_slave_id_is_the_one_unit_looked_for() -> None:
    async with Simulator(units={7: METER, 8: METER}) as simulator:
        (device,) = await found(simulator, discoverUnits="", slaveID=7)
        assert device.config["slaveID"] == 7
        assert {unit for unit, _ in simulator.requests} == {7}


async def test_nobody_there_is_said() -> None:
    async with Simulator(units={5: METER}) as simulator:
        with pytest.raises(DeviceUnreachable, match=f"no unit answers at 127.0.0.1:{simulator.port}, of units 1 to 2"):
            await found(simulator)


async def test_a_large_map_is_proposed_in_part_and_of_every_kind() -> None:
    image = Image(coils=dict.fromkeys(range(256), False), holding_registers=dict.fromkeys(range(256), 0),
                  input_registers={3: 4})  # fmt: skip
    async with Simulator(units={1: image}) as simulator:
        (device,) = await found(simulator, discoverUnits="1")
        names = [p.name for p in device.properties]
        assert len(names) == MAX_PROPERTIES
        assert "input-3" in names
        assert names.count("coil-0") == names.count("holding-0") == 1
        assert f"513 could be properties, the first {MAX_PROPERTIES} are proposed" in device.description


async def test_a_device_that_takes_few_registers_is_still_seen_whole() -> None:
    async with Simulator(units={1: METER}, faults=Faults(max_registers=3)) as simulator:
        (device,) = await found(simulator, discoverUnits="1", discoverRegisters="0-15")
        assert "InputRegister 0-9" in device.description


async def test_a_device_that_falls_silent_ends_its_own_search_with_what_was_found() -> None:
    asked: list[bytes] = []

    async def ask(unit: int, request: bytes) -> bytes:
        asked.append(request)
        if request[0] == 1:
            return b"\x01\x01\x01"
        if request[0] == 3 and len(asked) < 2:
            return b"\x83\x02"
        raise DeviceTimeout(DeviceId("a/b"), "no reply")

    config = ModbusConfig("h", communicate_mode="TCP", port=502, slave_id=1, discover_registers="0-7")
    (device,) = [f async for f in discover(config, ask)]
    assert [p.name for p in device.properties] == [f"coil-{a}" for a in range(8)]
    assert "not all addresses were looked at: DiscreteInputRegister 0: no reply" in device.description
    assert [r[0] for r in asked] == [3, 43, 1, 2, 2]


async def test_a_map_full_of_holes_ends_somewhere() -> None:
    requests = 0

    async def ask(unit: int, request: bytes) -> bytes:
        nonlocal requests
        requests += 1
        return bytes([request[0] | 0x80, 2])

    config = ModbusConfig("h", communicate_mode="TCP", port=502, slave_id=1, discover_registers="0-65535")
    (device,) = [f async for f in discover(config, ask)]
    assert requests == 2002
    assert "not all addresses were looked at: 2000 requests were made" in device.description


@given(
    held=st.sets(st.integers(0, 300), max_size=60),
    register=st.sampled_from(list(READ_CODES)),
    most=st.integers(1, 125),
)
async def test_exactly_what_can_be_read_is_found(held: set[int], register: Register, most: int) -> None:
    asked: set[int] = set()

    async def ask(unit: int, request: bytes) -> bytes:
        function, start, count = request[0], int.from_bytes(request[1:3]), int.from_bytes(request[3:5])
        if function == 43:
            return b"\xab\x01"
        asked.add(function)
        if function != READ_CODES[register] or not set(range(start, start + count)) <= held or count > most:
            return bytes([function | 0x80, 2])
        data = bytes(-(-count // 8)) if function < 3 else bytes(2 * count)
        return bytes([function, len(data)]) + data

    config = ModbusConfig("h", communicate_mode="TCP", port=502, slave_id=1, discover_registers="0-300")
    (device,) = [f async for f in discover(config, ask)]
    seen = {p.visitor["offset"] for p in device.properties}
    assert seen == set(sorted(held)[:MAX_PROPERTIES])
    assert all(p.visitor["register"] == register for p in device.properties)
    assert asked == {1, 2, 3, 4}


@given(st.binary(max_size=20))
async def test_whatever_a_device_answers_the_search_ends(reply: bytes) -> None:
    async def ask(unit: int, request: bytes) -> bytes:
        return reply or b"\0"

    config = ModbusConfig("h", communicate_mode="TCP", port=502, slave_id=1, discover_registers="0-20")
    (device,) = [f async for f in discover(config, ask)]
    assert len(device.description) < 2000


@pytest.mark.parametrize("text", ("", "x", "5-1", "1-", "256", "1;2", "-1", "1-999999"))
def test_a_wrong_range_names_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"discoverUnits: .*not of the form 1-10,20"):
        parse_ranges("discoverUnits", text, 255)


def test_ranges_are_put_in_order() -> None:
    assert parse_ranges("k", " 20, 1-3 ,4,3", 255) == (range(1, 5), range(20, 21))


def test_a_whole_range_is_not_waited_for_at_full_length() -> None:
    config = ModbusConfig("h", timeout=2000)
    assert probe_timeout_s(config) == 0.3
    assert probe_timeout_s(msgspec.structs.replace(config, timeout=100)) == 0.1
    assert probe_timeout_s(msgspec.structs.replace(config, discover_units="1")) == 2.0
