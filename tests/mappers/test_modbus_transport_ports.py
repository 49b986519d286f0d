"""Serial ports and sockets: what they are called, who has them, what they can do, and how their loss is noticed."""

from __future__ import annotations

import asyncio
import os
import socket
import tty
from pathlib import Path

import pytest

from mappers.drivers.modbus import ModbusDriver
from mappers.drivers.modbus.settings import Mode
from mappers.drivers.modbus.simulator import Image
from mappers.drivers.modbus.transport import open_transport
from mappers.sdk import ConfigError, DeviceId, DeviceUnreachable
from tests.mappers.modbus_world import DEVICE, Certificates, config_for, linked, property_, read_one, simulator

IMAGE = Image(holding_registers={0: 1000})
R0 = property_("r0", "HoldingRegister", 0)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_two_names_of_a_port_are_one_line(certificates: Certificates, tmp_path: Path) -> None:
    async with simulator("RTU", certificates, {1: IMAGE, 2: IMAGE}) as bus:
        by_id = tmp_path / "usb-adapter"
        by_id.symlink_to(bus.address)
        driver = ModbusDriver()
        async with (
            linked(driver, config_for(bus, certificates)) as one,
            linked(driver, config_for(bus, certificates, slave_id=2, serial_name=str(by_id)), DeviceId("p/2")) as two,
        ):
            assert [await read_one(one, R0), await read_one(two, R0)] == [1000, 1000]


async def test_a_port_that_cannot_be_opened_is_named(certificates: Certificates, tmp_path: Path) -> None:
    async with simulator("RTU", certificates, {1: IMAGE}) as bus:
        missing = config_for(bus, certificates, serial_name=str(tmp_path / "ttyUSB9"))
        with pytest.raises(DeviceUnreachable, match="ttyUSB9"):
            async with linked(ModbusDriver(), missing):
                pass
        url = config_for(bus, certificates, serial_name="spy:///dev/null?file=/tmp/x")
        with pytest.raises(ConfigError, match="is not a path") as caught:
            async with linked(ModbusDriver(), url):
                pass
        assert caught.value.path == "serialName"


async def test_a_port_that_another_process_holds_is_refused_and_it_says_so(certificates: Certificates) -> None:
    """As `discover` finds it while a mapper runs: two who read one port would each get half of the replies."""
    async with simulator("RTU", certificates, {1: IMAGE}) as bus:
        config = config_for(bus, certificates)
        async with linked(ModbusDriver(), config) as link:
            with pytest.raises(DeviceUnreachable, match="is in use by another process, such as a mapper"):
                await anext(aiter(ModbusDriver().discover(config)))
            assert await read_one(link, R0) == 1000


async def test_a_port_without_rs485_mode_says_so(certificates: Certificates) -> None:
    async with simulator("RTU", certificates, {1: IMAGE}) as bus:
        with pytest.raises(ConfigError, match="no RS-485 mode") as caught:
            async with linked(ModbusDriver(), config_for(bus, certificates, rs485_enabled=True)):
                pass
        assert caught.value.path == "rs485Enabled"
        async with linked(ModbusDriver(), config_for(bus, certificates)) as link:  # the port was let go
            assert await read_one(link, R0) == 1000


async def test_a_reply_in_pieces_behind_noise_is_found(certificates: Certificates) -> None:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    try:
        async with simulator("RTU", certificates, {1: IMAGE}) as model:
            config = config_for(model, certificates, serial_name=os.ttyname(theirs))
            async with linked(ModbusDriver(), config) as link:
                reading = asyncio.create_task(read_one(link, R0))
                request = await asyncio.to_thread(os.read, ours, 64)
                assert request == bytes.fromhex("010300000001840a")
                # noise that looks like a begin, a foreign unit's reply, and ours in three pieces
                for piece in ("0103", "ff00", "020302", "000784", "0103", "02002a", "399b"):
                    os.write(ours, bytes.fromhex(piece if len(piece) % 2 == 0 else piece + "0"))
                    await asyncio.sleep(0.01)
                assert await reading == 42
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
@pytest.mark.parametrize("mode", ("TCP", "TLS", "RTUOVERTCP"))
async def test_the_kernel_ends_a_connection_whose_other_end_is_gone(mode: Mode, certificates: Certificates) -> None:
    async with (
        simulator(mode, certificates, {1: IMAGE}) as device,
        open_transport(DEVICE, config_for(device, certificates, timeout=4000), lambda _: None) as transport,
    ):
        sender = transport._sender
        assert sender is not None
        opened = sender.get_extra_info("socket")
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
