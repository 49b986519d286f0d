"""Every way a Modbus frame can travel, against the simulator: values, garbage, late replies, loss, shared lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mappers.drivers.modbus import ModbusConfig, ModbusDriver
from mappers.drivers.modbus.settings import Mode
from mappers.drivers.modbus.simulator import Faults, Image, Simulator
from mappers.drivers.modbus.transport import open_transport
from mappers.sdk import (
    ConfigError,
    DeviceError,
    DeviceId,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
)
from mappers.sdk.testing import no_leaks
from tests.mappers.modbus_world import (
    DEVICE,
    MODES,
    Certificates,
    config_for,
    linked,
    property_,
    read_one,
    simulator,
    until,
)

SERIAL_FRAMES: tuple[Mode, ...] = ("RTU", "RTUOVERTCP", "ASCII")

IMAGE = Image(
    coils={3: True, 4: False, 5: True},
    discrete_inputs={0: True},
    holding_registers={**{a: 1000 + a for a in range(60)}, 70: 0b1010},
    input_registers={a: 2000 + a for a in range(125)},
)
R0, R1 = (property_(f"r{a}", "HoldingRegister", a) for a in (0, 1))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=MODES)
async def device(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Simulator]:
    async with simulator(request.param, certificates, {1: IMAGE, 2: Image(holding_registers={0: 2})}) as running:
        yield running


async def test_every_kind_is_read_and_written(device: Simulator, certificates: Certificates) -> None:
    reads = [
        (property_("coil", "CoilRegister", 3, "BOOLEAN"), True),
        (property_("coils", "CoilRegister", 3, limit=3), 5),
        (property_("contact", "DiscreteInputRegister", 0, "BOOLEAN"), True),
        (
            property_("inputs", "InputRegister", 0, "BYTES", limit=125),
            b"".join((2000 + a).to_bytes(2) for a in range(125)),
        ),
        (property_("holding", "HoldingRegister", 7), 1007),
    ]
    writes = [
        (property_("p", "CoilRegister", 4, "BOOLEAN"), True, 5),
        (property_("p", "CoilRegister", 3, limit=3), 2, 15),
        (property_("p", "CoilRegister", 4, "BOOLEAN", write_function="multiple"), False, 15),
        (property_("p", "HoldingRegister", 20), 500, 6),
        (property_("p", "HoldingRegister", 20, write_function="multiple"), 501, 16),
        (property_("p", "HoldingRegister", 21, "FLOAT"), 2.5, 16),
        (property_("p", "HoldingRegister", 30, "INT", limit=2, write_function="readWrite"), 70_000, 23),
        (property_("p", "HoldingRegister", 70, "BOOLEAN", bit=2), True, 22),
    ]  # fmt: skip
    async with linked(ModbusDriver(), config_for(device, certificates)) as link:
        results = await link.read_many(tuple(p for p, _ in reads))
        assert dict(results) == {p.name: value for p, value in reads}
        for wanted, value, function in writes:
            before = device.requests[1, function]
            await link.write(wanted, value)
            assert device.requests[1, function] == before + 1
            assert await read_one(link, wanted) == value
        assert await device.read("HoldingRegister", 70, unit=1) == [0b1110]


async def test_a_refusal_says_what_to_do(device: Simulator, certificates: Certificates) -> None:
    async with linked(ModbusDriver(), config_for(device, certificates)) as link:
        missing = await read_one(link, property_("p", "HoldingRegister", 500))
        assert isinstance(missing, DeviceRejected)
        assert missing.code == 2
        assert "check register, offset and limit" in missing.problem
        device.faults.refused_functions = {22}
        with pytest.raises(DeviceRejected, match="writeFunction: single reads, changes and writes"):
            await link.write(property_("p", "HoldingRegister", 70, "BOOLEAN", bit=0), True)
        await link.write(property_("p", "HoldingRegister", 70, "BOOLEAN", bit=0, write_function="single"), True)
        assert await device.read("HoldingRegister", 70, unit=1) == [0b1011]


@pytest.mark.parametrize("fault", ("garbage", "short", "wrong_unit", "wrong_transaction", "drop"))
async def test_garbage_is_never_a_value_and_the_line_stays_in_step(
    device: Simulator, certificates: Certificates, fault: str
) -> None:
    properties = [property_(f"p{a}", "HoldingRegister", a) for a in (0, 20, 40)]
    good = bad = 0
    driver, config = ModbusDriver(), config_for(device, certificates, timeout=60, max_gap=0)
    for _ in range(2):
        setattr(device.faults, fault, 0.5)
        try:
            async with linked(driver, config) as link:
                for wanted in properties * 2:
                    result = await read_one(link, wanted)
                    if isinstance(result, DeviceError):
                        bad += 1
                        assert result.problem
                    else:
                        good += 1
                        assert result == 1000 + wanted.visitor.offset
        except DeviceUnreachable:  # three in a row
            bad += 1
        device.faults.clear()
        async with linked(driver, config_for(device, certificates)) as link:
            assert await read_one(link, R1) == 1001
    assert good
    assert bad or (fault == "wrong_transaction" and device.mode in SERIAL_FRAMES)  # they carry no number


@pytest.mark.parametrize("fault", ("garbage", "wrong_unit", "short"))
async def test_noise_in_place_of_a_reply_is_named(
    device: Simulator, certificates: Certificates, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "mappers.drivers.modbus")
    async with linked(ModbusDriver(), config_for(device, certificates, timeout=200)) as link:
        setattr(device.faults, fault, 1.0)
        result = await read_one(link, R0)
        assert isinstance(result, DeviceTimeout | DeviceProtocolError)
        assert "sense" in result.problem
        assert any("received" in r.getMessage() for r in caplog.records)
        device.faults.clear()
        assert await read_one(link, R1) == 1001
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


async def test_units_of_one_line_are_told_apart(device: Simulator, certificates: Certificates) -> None:
    driver, other = ModbusDriver(), DeviceId("plant/m2")
    async with (
        linked(driver, config_for(device, certificates)) as one,
        linked(driver, config_for(device, certificates, slave_id=2), other) as two,
    ):
        results = await asyncio.gather(*(read_one(link, R0) for _ in range(10) for link in (one, two)))
        assert results == [1000, 2] * 10
        assert len(driver._lines._entries) == 1


async def test_a_dead_unit_costs_the_others_one_timeout_once(device: Simulator, certificates: Certificates) -> None:
    device.faults.silent_units = {2}
    driver, dead = ModbusDriver(), DeviceId("plant/m2")
    async with (
        linked(driver, config_for(device, certificates, timeout=300)) as good,
        linked(driver, config_for(device, certificates, timeout=300, slave_id=2), dead) as silent,
    ):
        assert isinstance(await read_one(silent, R0), DeviceTimeout)
        asked = device.requests[2, 3]
        for _ in range(20):
            held_back, value = await asyncio.gather(read_one(silent, R0), read_one(good, R0))
            assert isinstance(held_back, DeviceTimeout)
            assert value == 1000
        assert device.requests[2, 3] <= asked + 1  # a second may have passed meanwhile


async def test_a_request_ends_when_the_device_goes(device: Simulator, certificates: Certificates) -> None:
    config = config_for(device, certificates, timeout=60_000 if device.mode != "UDP" else 100)
    async with linked(ModbusDriver(), config) as link:
        device.faults.silent_units = {1}
        waiting = asyncio.create_task(link.read_many((R0,)))
        async with asyncio.timeout(20):
            await until(lambda: bool(device.requests))
            await device.__aexit__(None, None, None)
            if device.mode == "UDP":  # nothing tells
                assert isinstance((await waiting)["r0"], DeviceTimeout)
            else:
                with pytest.raises(DeviceUnreachable):
                    await waiting
        if device.mode != "UDP":
            with pytest.raises(DeviceUnreachable):
                await link.read_many((R0,))
    await device.__aenter__()


async def test_it_connects_again_after_the_device_was_away(device: Simulator, certificates: Certificates) -> None:
    driver, config = ModbusDriver(), config_for(device, certificates, timeout=500)
    async with linked(driver, config) as link:
        assert await read_one(link, R0) == 1000
    await device.__aexit__(None, None, None)
    with pytest.raises(DeviceUnreachable):
        await read_until_lost(config)
    await device.__aenter__()
    async with linked(driver, config_for(device, certificates, timeout=500)) as link:
        assert await read_one(link, R0) == 1000


# serial lines


@pytest.fixture(params=SERIAL_FRAMES)
async def bus(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Simulator]:
    async with simulator(request.param, certificates, {1: IMAGE, 2: IMAGE}) as running:
        yield running


async def test_a_broadcast_is_written_by_all_and_read_by_none(bus: Simulator, certificates: Certificates) -> None:
    async with linked(ModbusDriver(), config_for(bus, certificates, slave_id=0)) as link:
        await link.write(R0, 77)
        assert [await bus.read("HoldingRegister", 0, unit=u) for u in (1, 2)] == [[77], [77]]
        assert isinstance(await read_one(link, R0), DeviceUnsupported)
        with pytest.raises(DeviceUnsupported, match="mask"):
            await link.write(property_("p", "HoldingRegister", 70, "BOOLEAN", bit=0, write_function="single"), True)


async def test_devices_of_a_line_with_other_settings_are_refused(certificates: Certificates) -> None:
    async with simulator("RTU", certificates, {1: IMAGE, 2: IMAGE}) as bus:
        driver = ModbusDriver()
        slow = config_for(bus, certificates, slave_id=2, baud_rate=9600)
        async with linked(driver, config_for(bus, certificates, baud_rate=19200)):
            with pytest.raises(ConfigError, match=r"plant/m2 has 9600, but device plant/m1 .* 19200") as caught:
                async with linked(driver, slow, DeviceId("plant/m2")):
                    pass
            assert caught.value.path == "baudRate"
        async with linked(driver, slow, DeviceId("plant/m2")) as link:
            assert await read_one(link, R0) == 1000


# TLS


async def read_until_lost(config: ModbusConfig) -> None:
    async with linked(ModbusDriver(), config) as link:
        for _ in range(4):
            await read_one(link, R0)


async def test_tls_trusts_only_its_ca_and_the_right_name(certificates: Certificates) -> None:
    async with simulator("TLS", certificates, {1: IMAGE}) as plc:
        driver = ModbusDriver()
        async with linked(driver, config_for(plc, certificates, server_name="plc.local")) as link:
            assert await read_one(link, R0) == 1000
        for wrong, problem in (
            ({"server_name": "other.local"}, "is not trusted"),
            ({"ca_file": certificates.other_ca_file}, "is not trusted"),
            ({"ca_file": ""}, "is not trusted"),
        ):
            with pytest.raises(DeviceUnreachable, match=problem):
                async with linked(driver, config_for(plc, certificates, **wrong)):
                    pass


async def test_a_tls_connection_that_asyncio_has_closed_already_is_closed(certificates: Certificates) -> None:
    """It does so when a connect is given up at the moment it succeeds."""
    async with simulator("TLS", certificates, {1: IMAGE}) as device:
        config = ModbusDriver().check_config(config_for(device, certificates))
        async with no_leaks(), open_transport(DEVICE, config, lambda _: None) as transport:
            assert transport._sender is not None
            transport._sender.close()


async def test_tls_shows_its_certificate_where_one_is_asked_for(certificates: Certificates) -> None:
    async with simulator("TLS", certificates, {1: IMAGE}) as plc:
        config = config_for(plc, certificates, cert_file="", key_file="", timeout=1000)
        with pytest.raises(DeviceUnreachable):
            await read_until_lost(config)


@pytest.mark.parametrize("key", ("ca_file", "cert_file", "key_file"))
async def test_files_that_are_missing_or_no_pem_are_named(certificates: Certificates, key: str, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    async with simulator("TLS", certificates, {1: IMAGE}) as plc:
        for text in ("", "no certificate"):
            if text:
                junk.write_text(text)
            with pytest.raises(ConfigError, match=r"junk\.pem") as caught:
                async with linked(ModbusDriver(), config_for(plc, certificates, **{key: str(junk)})):
                    pass
            assert caught.value.path == ("caFile" if key == "ca_file" else "certFile")


# networks


async def test_devices_of_one_address_share_a_connection_unless_told_otherwise(certificates: Certificates) -> None:
    async with simulator("TCP", certificates, {1: IMAGE, 2: IMAGE}) as gateway:
        driver = ModbusDriver()
        configs = [config_for(gateway, certificates, slave_id=u) for u in (1, 2)]
        own = config_for(gateway, certificates, slave_id=2, share_connection=False)
        async with (
            linked(driver, configs[0], DeviceId("p/1")),
            linked(driver, configs[1], DeviceId("p/2")),
            linked(driver, own, DeviceId("p/3")) as third,
        ):
            assert len(driver._lines._entries) == 2
            assert await read_one(third, R0) == 1000


async def test_the_device_is_asked_as_its_settings_say(certificates: Certificates) -> None:
    async with simulator("TCP", certificates, {1: IMAGE}) as plc:
        properties = tuple(property_(f"r{a}", "HoldingRegister", a) for a in (0, 1, 2, 3, 10))
        for settings, requests in (({}, 1), ({"max_gap": 0}, 2), ({"max_registers": 2}, 3)):
            async with linked(ModbusDriver(), config_for(plc, certificates, **settings)) as link:
                plc.requests.clear()
                results = await link.read_many(properties)
                assert dict(results) == {p.name: 1000 + p.visitor.offset for p in properties}
                assert plc.requests.total() == requests
        loop = asyncio.get_running_loop()
        async with linked(ModbusDriver(), config_for(plc, certificates, inter_frame_delay=100, max_gap=0)) as link:
            started = loop.time()
            await link.read_many(properties)
            assert loop.time() - started >= 0.09


async def test_a_gateway_without_the_unit_is_told_from_one_that_is_gone(certificates: Certificates) -> None:
    faults = Faults()
    async with simulator("TCP", certificates, {1: IMAGE}, faults) as gateway:
        driver = ModbusDriver()
        async with (
            linked(driver, config_for(gateway, certificates), DeviceId("p/1")) as good,
            linked(driver, config_for(gateway, certificates, slave_id=9), DeviceId("p/9")) as absent,
        ):
            result = await read_one(absent, R0)
            assert isinstance(result, DeviceTimeout)
            assert "check slaveID" in result.problem
            assert await read_one(good, R0) == 1000
            faults.exceptions[None, None] = 10
            with pytest.raises(DeviceUnreachable, match="no path to the unit"):
                await read_one(good, R0)
            faults.clear()
            assert await read_one(good, R0) == 1000  # the line was never broken


async def test_a_bit_written_without_mask_write_loses_nothing_of_ours(certificates: Certificates) -> None:
    async with simulator("TCP", certificates, {1: Image(holding_registers={0: 0})}) as plc:
        plc.faults.refused_functions = {22}
        async with linked(ModbusDriver(), config_for(plc, certificates)) as link:
            single = {"write_function": "single"}
            bits = [property_(f"b{i}", "HoldingRegister", 0, "BOOLEAN", bit=i, **single) for i in range(16)]
            await asyncio.gather(*(link.write(bit, True) for bit in bits))
            assert await plc.read("HoldingRegister", 0, unit=1) == [0xFFFF]
