"""Replies to requests that were given up: never taken for another's, and waited for while others have the line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mappers.drivers.modbus import ModbusDriver, pdu
from mappers.drivers.modbus import transport as transport_
from mappers.drivers.modbus.framing import ASCII, RTU, Framing
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.settings import Mode
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.drivers.modbus.transport import Transport
from mappers.sdk import DeviceId, DeviceTimeout
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

IMAGE = Image(holding_registers={0: 1000, 1: 1001})
R0, R1 = (property_(f"r{a}", "HoldingRegister", a) for a in (0, 1))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture(params=MODES)
async def device(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Simulator]:
    async with simulator(request.param, certificates, {1: IMAGE, 2: IMAGE}) as running:
        yield running


async def test_the_late_reply_to_a_cancelled_request_is_not_taken_for_the_next(
    device: Simulator, certificates: Certificates
) -> None:
    async with linked(ModbusDriver(), config_for(device, certificates)) as link:
        device.faults.delay_s = 0.15
        for _ in range(3):
            await give_up(device, link)
            assert await read_one(link, R1) == 1001


async def test_the_late_reply_to_a_request_that_timed_out_neither(
    device: Simulator, certificates: Certificates
) -> None:
    async with linked(ModbusDriver(), config_for(device, certificates, timeout=300)) as link:
        device.faults.delay_s = 0.45
        assert isinstance(await read_one(link, R0), DeviceTimeout)
        device.faults.delay_s = 0.2  # so that the late one comes first
        result = await read_one(link, R1)
        for _ in range(5):  # a busy machine may be late with this one too; what comes is never the other register
            result = await read_one(link, R1) if isinstance(result, DeviceTimeout) else result
        assert result == 1001


async def give_up(device: Simulator, link: ModbusLink) -> None:
    """Have a request on the wire, and cancel it."""
    asked = sum(device.requests.values())
    half = asyncio.create_task(read_one(link, R0))
    async with asyncio.timeout(20):
        await until(lambda: sum(device.requests.values()) > asked)
    half.cancel()
    with pytest.raises(asyncio.CancelledError):
        await half


@pytest.mark.parametrize("mode", ("RTU", "RTUOVERTCP", "ASCII"))
async def test_others_have_the_line_while_a_late_reply_is_waited_for(mode: Mode, certificates: Certificates) -> None:
    """Only where replies carry no number: elsewhere nothing has to be waited for."""
    driver, other = ModbusDriver(), DeviceId("plant/m2")
    async with (
        simulator(mode, certificates, {1: IMAGE, 2: IMAGE}) as device,
        linked(driver, config_for(device, certificates, timeout=20_000)) as one,
        linked(driver, config_for(device, certificates, slave_id=2), other) as two,
    ):
        assert await read_one(one, R0) == 1000
        device.faults.silent_units = {1}
        await give_up(device, one)
        waiting = asyncio.create_task(read_one(one, R1))
        async with asyncio.timeout(15):
            for _ in range(3):
                await asyncio.sleep(0)
                assert await read_one(two, R1) == 1001
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_the_late_reply_ends_the_wait(device: Simulator, certificates: Certificates) -> None:
    async with linked(ModbusDriver(), config_for(device, certificates, timeout=20_000)) as link:
        assert await read_one(link, R0) == 1000
        device.faults.delay_s = 0.2
        await give_up(device, link)
        async with asyncio.timeout(15):  # not the 40 s it may take at most
            assert await read_one(link, R1) == 1001


async def test_a_device_that_is_held_back_is_told_so_at_once(device: Simulator, certificates: Certificates) -> None:
    """And not only when no late reply can come any more."""
    driver, other = ModbusDriver(), DeviceId("plant/m2")
    async with (
        linked(driver, config_for(device, certificates)) as one,
        linked(driver, config_for(device, certificates, slave_id=2, timeout=500), other) as two,
    ):
        device.faults.silent_units = {2}
        assert isinstance(await read_one(two, R0), DeviceTimeout)
        held_back = asyncio.create_task(read_one(two, R0))
        assert await read_one(one, R0) == 1000
        assert held_back.done()
        assert isinstance(await held_back, DeviceTimeout)


class Wire(asyncio.Transport):
    """Takes what is sent; the test is the device."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("framing", (RTU, ASCII))
async def test_a_reply_that_is_later_still_must_have_the_length_asked_for(
    framing: Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the wait for it is over it may come all the same, such as through a serial server that queues requests."""
    monkeypatch.setattr(transport_, "LATE_S", 0.0)
    transport, wire = Transport("line", framing, lambda _: None), Wire()
    transport.connection_made(wire)
    with pytest.raises(DeviceTimeout):
        await transport.ask(DEVICE, 1, pdu.read(3, 0, 2), 0.01)
    asking = asyncio.create_task(transport.ask(DEVICE, 1, pdu.read(3, 9, 1), 10))
    async with asyncio.timeout(20):
        await until(lambda: len(wire.sent) == 2)
        transport.data_received(framing.encode(1, 0, bytes.fromhex("030400010002")))
        await asyncio.sleep(0)
        assert not asking.done()
        transport.data_received(framing.encode(1, 0, bytes.fromhex("03020009")))
        assert await asking == bytes.fromhex("03020009")
        refused = asyncio.create_task(transport.ask(DEVICE, 1, pdu.read(3, 9, 1), 10))
        await until(lambda: len(wire.sent) == 3)
        transport.data_received(framing.encode(1, 0, bytes.fromhex("8302")))
        assert await refused == bytes.fromhex("8302")  # an exception has a length of its own
    await transport.close()
