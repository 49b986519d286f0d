from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from dmi.types import ModelProperty, PropertyType
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.link import ModbusLink
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk import (
    ConversionError,
    DeviceId,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    Property,
)

ID = DeviceId("plant/m1")
DRIVER = ModbusDriver()
PropertyOf = Property[ModbusVisitor]


def property_(name: str, register: Any, offset: int, type_: PropertyType = "INT", **rest: Any) -> PropertyOf:
    model = ModelProperty(name, type_)
    return Property(name, DRIVER.resolve(ModbusVisitor(register, offset, **rest), model), model)


def linked(port: int, timeout_ms: int = 1000, unit: int = 1) -> contextlib.AbstractAsyncContextManager[ModbusLink]:
    return DRIVER.connect(ID, ModbusConfig("127.0.0.1", port=port, timeout=timeout_ms, slave_id=unit))


class Wire:
    """A TCP proxy in front of a Modbus server that counts requests and can hold replies back."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.let_through = asyncio.Event()
        self.let_through.set()
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: list[asyncio.Task[None]] = []
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.let_through.set()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        device_reader, device_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self.writers += [writer, device_writer]
        back = asyncio.create_task(self._back(device_reader, writer))
        self._tasks.append(back)
        while data := await reader.read(1024):
            self.requests.append(data)
            self.asked.set()
            device_writer.write(data)
        device_writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            await self.let_through.wait()
            writer.write(data)
        writer.close()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    image = Image(
        coils={3: True, 4: False, 5: True},
        discrete_inputs={0: True, 1: False},
        holding_registers={0: 215, 1: 0x42F6, 2: 0xE979, 10: 0x4142, 11: 0x4300, 20: 7, 21: 8, 23: 9},
        input_registers={0: 1, 1: 2, 2: 3},
    )
    async with Simulator(units={1: image}) as running:
        yield running


async def read(link: ModbusLink, properties: Sequence[PropertyOf]) -> dict[str, Any]:
    return dict(await link.read_many(tuple(properties)))


async def test_every_register_kind_is_read_in_one_request_each(simulator: Simulator) -> None:
    properties = [
        property_("coil", "CoilRegister", 3, "BOOLEAN"),
        property_("coils", "CoilRegister", 3, "INT", limit=3),
        property_("contact", "DiscreteInputRegister", 0, "BOOLEAN"),
        property_("temperature", "HoldingRegister", 0, "FLOAT", limit=1, scale=Decimal("0.1")),
        property_("flow", "HoldingRegister", 1, "FLOAT"),
        property_("label", "HoldingRegister", 10, "STRING", limit=2),
        property_("input", "InputRegister", 2),
    ]
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        await read(link, properties)  # learns that there is nothing between holding registers 3 and 10
        wire.requests.clear()
        results = await read(link, properties)
        assert len(wire.requests) == 5
        assert results.pop("flow") == pytest.approx(123.456)
        assert results == {"coil": True, "coils": 5, "contact": True, "temperature": 21.5, "label": "ABC", "input": 3}


@pytest.mark.parametrize(
    ("where", "value", "code"),
    (
        (property_("p", "CoilRegister", 4, "BOOLEAN"), True, 5),
        (property_("p", "CoilRegister", 3, "INT", limit=3), 2, 15),
        (property_("p", "HoldingRegister", 20), 500, 6),
        (property_("p", "HoldingRegister", 1, "FLOAT"), 2.5, 16),
        (property_("p", "HoldingRegister", 10, "STRING", limit=2), "xy", 16),
    ),
)
async def test_writes_of_any_width_are_read_back(
    simulator: Simulator, where: PropertyOf, value: bool | int | float | str, code: int
) -> None:
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        await link.write(where, value)
        assert wire.requests[0][7] == code
        assert await read(link, [where]) == {"p": value}


async def test_one_bad_register_harms_only_its_property_and_is_remembered(simulator: Simulator) -> None:
    properties = [property_(f"r{a}", "HoldingRegister", a) for a in (20, 21, 22, 23)]
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        first = await read(link, properties)
        assert isinstance(first.pop("r22"), DeviceRejected)
        assert first == {"r20": 7, "r21": 8, "r23": 9}
        wire.requests.clear()
        again = await read(link, properties)
        assert isinstance(again["r22"], DeviceRejected)
        assert again["r22"].code == 2
        assert len(wire.requests) == 3  # 20 and 21 together, 22 alone, 23


async def test_a_gap_the_device_lacks_is_not_read_along_again(simulator: Simulator) -> None:
    properties = [property_(f"r{a}", "HoldingRegister", a) for a in (20, 21, 23)]
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        assert await read(link, properties) == {"r20": 7, "r21": 8, "r23": 9}
        wire.requests.clear()
        assert await read(link, properties) == {"r20": 7, "r21": 8, "r23": 9}
        assert len(wire.requests) == 2


async def test_a_cancelled_request_leaves_the_link_usable(simulator: Simulator) -> None:
    where = property_("p", "HoldingRegister", 0)
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        wire.let_through.clear()
        half = asyncio.create_task(read(link, [where]))
        await wire.asked.wait()
        half.cancel()
        with pytest.raises(asyncio.CancelledError):
            await half
        wire.let_through.set()  # the reply nobody waits for arrives now
        for value in (1, 2, 3):
            await link.write(where, value)
            assert await read(link, [where]) == {"p": value}


async def test_a_write_gets_in_between_two_requests_of_a_long_read(simulator: Simulator) -> None:
    properties = [
        property_("a", "CoilRegister", 3, "BOOLEAN"),
        property_("b", "DiscreteInputRegister", 0, "BOOLEAN"),
        property_("c", "HoldingRegister", 20),
        property_("d", "InputRegister", 0),
    ]
    async with Wire(simulator.port) as wire, linked(wire.port) as link:
        wire.let_through.clear()
        long_read = asyncio.create_task(read(link, properties))
        await wire.asked.wait()
        write = asyncio.create_task(link.write(properties[2], 77))
        await asyncio.sleep(0)
        wire.let_through.set()
        await asyncio.gather(long_read, write)
        assert [r[7] for r in wire.requests][:2] == [1, 6]


async def test_no_reply_is_a_timeout_and_three_are_a_lost_link(simulator: Simulator) -> None:
    where = property_("p", "HoldingRegister", 0)
    async with Wire(simulator.port) as wire, linked(wire.port, timeout_ms=50) as link:
        wire.let_through.clear()
        for _ in range(2):
            result = (await read(link, [where]))["p"]
            assert isinstance(result, DeviceTimeout)
            assert isinstance(result, TimeoutError)
        with pytest.raises(DeviceUnreachable, match="3 requests"):
            await read(link, [where])


async def test_a_broken_connection_ends_the_request_at_once(simulator: Simulator) -> None:
    where = property_("p", "HoldingRegister", 0)
    async with Wire(simulator.port) as wire, linked(wire.port, timeout_ms=60_000) as link:
        wire.let_through.clear()
        waiting = asyncio.create_task(read(link, [where]))
        await wire.asked.wait()
        for writer in wire.writers:
            writer.transport.abort()
        with pytest.raises(DeviceUnreachable):
            async with asyncio.timeout(5):
                await waiting
        with pytest.raises(DeviceUnreachable):
            await link.write(where, 1)


async def test_no_connection_names_the_address(unused_port: int) -> None:
    with pytest.raises(DeviceUnreachable, match=f"127.0.0.1:{unused_port}"):
        async with linked(unused_port):
            pass


@pytest.fixture
async def unused_port() -> int:
    async with Simulator() as simulator:
        return simulator.port


GARBAGE = (
    b"\x00\x05\x01\x03\xff\x00\x00",  # says 255 bytes, has two
    b"\x00\x03\x01\x03\x00",  # no register at all
    b"\x00\x07\x01\x03\x04\x00\x07\x00\x08",  # two registers, asked for one
    b"\x00\x05\x01\x04\x02\x00\x07",  # input registers, asked for holding registers
    b"\x00\x05\x01\x63\x02\x00\x07",  # a function there is not
)


@pytest.mark.parametrize("reply", GARBAGE)
async def test_garbage_is_no_value_and_the_link_goes_on(reply: bytes, caplog: pytest.LogCaptureFixture) -> None:
    replies = [reply, b"\x00\x05\x01\x03\x02\x00\x07"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for frame in replies:
            request = await reader.read(256)
            writer.write(request[:4] + frame)
        await reader.read()
        writer.close()

    where = property_("p", "HoldingRegister", 0)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, linked(server.sockets[0].getsockname()[1]) as link:
        assert isinstance((await read(link, [where]))["p"], DeviceProtocolError)
        assert await read(link, [where]) == {"p": 7}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_float_that_is_no_number_is_no_value(simulator: Simulator) -> None:
    await simulator.write("HoldingRegister", 10, [0xFF, 0xFFFE], unit=1)
    async with linked(simulator.port) as link:
        results = await read(link, [property_("p", "HoldingRegister", 11, "STRING", limit=1)])
        assert isinstance(results["p"], ConversionError)


def test_only_what_can_be_written_has_a_held_value() -> None:
    with pytest.raises(ConversionError, match="InputRegister cannot be written"):
        DRIVER.held_value(property_("p", "InputRegister", 0), 1)
    scaled = property_("p", "HoldingRegister", 0, "FLOAT", limit=1, scale=Decimal("0.1"))
    assert DRIVER.held_value(scaled, 21.57) == 21.6
