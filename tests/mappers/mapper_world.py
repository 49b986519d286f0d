"""What the mapper tests share: a model, devices of it, a running mapper, and a driver whose device lives in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from dmi.client import MapperInfo
from dmi.types import DesiredSpec, Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from mappers.drivers.modbus import ModbusDriver
from mappers.sdk import DeviceId, Driver, Property, ReadResult, Value
from mappers.sdk.driver import AnyDriver
from mappers.sdk.mapper import run_mapper
from mappers.sdk.testing import FakeEdgeCore

MODEL = DeviceModel(
    "plant",
    "meter",
    properties=(
        ModelProperty("level", "INT", "ReadOnly", unit="mm"),
        ModelProperty("flow", "FLOAT", "ReadOnly", unit="l/min"),
        ModelProperty("target", "INT", minimum="0", maximum="100"),
        ModelProperty("speed", "FLOAT"),
        ModelProperty("valve", "BOOLEAN"),
        ModelProperty("label", "STRING"),
    ),
)


def prop(name: str, *, desired: str = "", cycle_ms: int = 50, report_ms: int = 0, **visitor: Scalar) -> DeviceProperty:
    return DeviceProperty(
        name,
        desired=DesiredSpec(desired),
        visitor=Visitor(config=visitor),
        collect_cycle_ms=cycle_ms,
        report_cycle_ms=report_ms,
        report_to_cloud=True,
    )


def holding(name: str, offset: int, **rest: Scalar) -> DeviceProperty:
    """A property on a holding register. Keyword arguments of `prop` and visitor keys alike."""
    return prop(name, register="HoldingRegister", offset=offset, **rest)  # type: ignore[arg-type]  # as its docstring says


def modbus_device(port: int, *properties: DeviceProperty, name: str = "m1", **config: Scalar) -> Device:
    return Device(
        "plant",
        name,
        model="meter",
        protocol="modbus",
        protocol_config={"ip": "127.0.0.1", "port": port, "timeout": 500, **config},
        properties=properties,
    )


def wanting(device: Device, **desired: str) -> Device:
    """The same device with other desired values."""
    properties = [
        msgspec.structs.replace(p, desired=DesiredSpec(desired[p.name])) if p.name in desired else p
        for p in device.properties
    ]
    return msgspec.structs.replace(device, properties=tuple(properties))


@asynccontextmanager
async def running(edge: FakeEdgeCore, directory: Path, driver: AnyDriver | None = None) -> AsyncIterator[None]:
    """A mapper that runs while the block does, and has registered."""
    chosen: AnyDriver = driver or ModbusDriver()
    info = MapperInfo("test-mapper", chosen.protocol, str(directory / "mapper.sock"))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_mapper(chosen, info, edge.socket_path, stop), name="mapper")
        try:
            await edge.until(lambda: bool(edge.mappers))
            yield
        finally:
            stop.set()


async def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # as its docstring says
            await asyncio.sleep(0.005)


class MemoryConfig(Struct, frozen=True):
    name: str = "m1"


class MemoryVisitor(Struct, frozen=True):
    cell: str


class MemoryDevice:
    """A device in memory, with faults on demand."""

    def __init__(self, **cells: Value) -> None:
        self.cells: dict[str, Value] = dict(cells)
        self.writes: list[tuple[str, Value]] = []
        self.connects = 0
        self.reads = 0
        self.reading = 0
        self.read_fault: Exception | None = None
        self.write_fault: Exception | None = None
        self.connect_fault: Exception | None = None
        self.keeps: Value | None = None
        """What a write leaves, whatever was written."""
        self.hold = asyncio.Event()
        """Cleared: reads hang."""
        self.hold.set()


class MemoryLink:
    def __init__(self, device: MemoryDevice) -> None:
        self._device = device

    async def read_many(self, properties: Sequence[Property[MemoryVisitor]]) -> Mapping[str, ReadResult]:
        device = self._device
        device.reads += 1
        device.reading += 1
        assert device.reading <= 2  # a cycle, and the read-back of a write
        try:
            await device.hold.wait()
            if device.read_fault is not None:
                raise device.read_fault
            return {p.name: device.cells[p.visitor.cell] for p in properties}
        finally:
            device.reading -= 1

    async def write(self, property_: Property[MemoryVisitor], value: Value) -> None:
        device = self._device
        device.writes.append((property_.name, value))
        if device.write_fault is not None:
            raise device.write_fault
        device.cells[property_.visitor.cell] = value if device.keeps is None else device.keeps


class MemoryDriver(Driver[MemoryConfig, MemoryVisitor]):
    protocol = "memory"
    protocol_config = MemoryConfig
    visitor_config = MemoryVisitor

    def __init__(self, **devices: MemoryDevice) -> None:
        self._devices = devices

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: MemoryConfig) -> AsyncIterator[MemoryLink]:
        device = self._devices[config.name]
        device.connects += 1
        if device.connect_fault is not None:
            raise device.connect_fault
        yield MemoryLink(device)


def memory_device(*properties: DeviceProperty, name: str = "m1") -> Device:
    return Device(
        "plant", name, model="meter", protocol="memory", protocol_config={"name": name}, properties=properties
    )
