"""Two-wire RS-485 adapters that give back what is sent: the echo is no reply, whatever it looks like."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mappers.drivers.modbus import ModbusDriver
from mappers.drivers.modbus.settings import Mode
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk import DeviceTimeout
from tests.mappers.modbus_world import Certificates, config_for, linked, property_, read_one, simulator

IMAGE = Image(coils={0x0310: True}, holding_registers={0: 5, 1: 6, 0x0310: 7})
R0, R1, FAR = (property_(f"r{a}", "HoldingRegister", a) for a in (0, 1, 0x0310))
COIL = property_("coil", "CoilRegister", 0x0310, "BOOLEAN")
BIT = property_("bit", "HoldingRegister", 1, "BOOLEAN", bit=0)


class Adapter:
    """A serial port in front of a simulator's; what is sent comes back first, as long as it `echoes`."""

    def __init__(self, device: Simulator) -> None:
        self.echoes = True
        self.sent: list[bytes] = []
        self._bus = os.open(device.address, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._ours, self._theirs = os.openpty()
        self.path = os.ttyname(self._theirs)

    async def __aenter__(self) -> Adapter:
        for port in (self._bus, self._theirs):
            tty.setraw(port)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ours, self._send)
        loop.add_reader(self._bus, lambda: os.write(self._ours, os.read(self._bus, 1024)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for port in (self._ours, self._bus):
            asyncio.get_running_loop().remove_reader(port)
        for port in (self._ours, self._theirs, self._bus):
            os.close(port)

    def _send(self) -> None:
        data = os.read(self._ours, 1024)
        self.sent.append(data)
        if self.echoes:
            os.write(self._ours, data)
        os.write(self._bus, data)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@contextlib.asynccontextmanager
async def adapter(mode: Mode, certificates: Certificates) -> AsyncIterator[tuple[Simulator, Adapter]]:
    async with simulator(mode, certificates, {1: IMAGE, 2: IMAGE}) as device, Adapter(device) as between:
        yield device, between


@pytest.mark.parametrize("mode", ("RTU", "ASCII"))
async def test_reads_and_writes_over_a_line_that_echoes(mode: Mode, certificates: Certificates) -> None:
    async with adapter(mode, certificates) as (device, between):
        config = config_for(device, certificates, serial_name=between.path)
        async with linked(ModbusDriver(), config) as link:
            for _ in range(3):
                assert [await read_one(link, p) for p in (R0, R1, FAR, COIL)] == [5, 6, 7, True]
            await link.write(R0, 50)
            await link.write(BIT, True)
            await link.write(COIL, False)
            assert [await read_one(link, p) for p in (R0, R1, COIL)] == [50, 7, False]


@pytest.mark.parametrize("mode", ("RTU", "ASCII"))
async def test_the_echo_of_a_write_does_not_confirm_it(mode: Mode, certificates: Certificates) -> None:
    async with adapter(mode, certificates) as (device, between):
        config = config_for(device, certificates, serial_name=between.path, timeout=200)
        async with linked(ModbusDriver(), config) as link:
            assert await read_one(link, R0) == 5
            device.faults.silent_units = {1}
            for where, value in ((R0, 50), (BIT, True), (COIL, True)):
                with pytest.raises(DeviceTimeout, match="no reply within 200 ms"):
                    await link.write(where, value)
                device.faults.clear()
                assert await read_one(link, R1) in (6, 7)
                device.faults.silent_units = {1}


async def test_an_echo_that_ends_is_noticed(certificates: Certificates) -> None:
    """An adapter can be exchanged behind a serial server, and the port stays open."""
    async with adapter("RTU", certificates) as (device, between):
        config = config_for(device, certificates, serial_name=between.path, timeout=300)
        async with linked(ModbusDriver(), config) as link:
            assert await read_one(link, R0) == 5
            between.echoes = False
            assert await read_one(link, R0) == 5
            await link.write(R0, 51)
            between.echoes = True
            assert await read_one(link, R0) == 51
            await link.write(R0, 52)
            assert await read_one(link, R0) == 52


async def test_a_line_whose_only_answer_is_its_echo_is_silent(certificates: Certificates) -> None:
    async with adapter("ASCII", certificates) as (device, between):
        device.faults.silent_units = {1}
        config = config_for(device, certificates, serial_name=between.path, timeout=150)
        async with linked(ModbusDriver(), config) as link:
            result = await read_one(link, R0)
            assert isinstance(result, DeviceTimeout)
            assert result.problem == "no reply within 150 ms"
