"""What the tests of the web share: a mapper in memory as the web sees it, and a server of it on a free port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from dmi.twins import Desired, Reported, Twin
from dmi.types import Device, DeviceId, DeviceMethod, DeviceModel, DeviceProperty, DeviceState, ModelProperty
from dmi.values import format_value, parse_value
from dmi.web.http import Limits
from mappers.sdk.config import CommonConfig, GrpcServerConfig, HttpConfig, MapperConfig
from mappers.sdk.errors import ConversionError, UnknownProperty
from mappers.sdk.samples import NoSamples, Samples
from mappers.sdk.sinks import SinkStats
from mappers.sdk.stats import DeviceStats, Histogram
from mappers.sdk.watchdog import Watchdog
from mappers.sdk.web import WebServer, serve_web

PLAIN = HttpConfig()
UNHURRIED = Limits()
COLLECTED_MS = 1_767_323_045_000
_T = TypeVar("_T")

MODEL = DeviceModel(
    "plant",
    "pump",
    properties=(
        ModelProperty("speed", "INT", minimum="0", maximum="3000", unit="rpm", description="Shaft speed"),
        ModelProperty("flow", "FLOAT", "ReadOnly"),
        ModelProperty("label", "STRING"),
    ),
)
DEVICE = Device(
    "plant",
    "pump-1",
    model="pump",
    protocol="memory",
    properties=(DeviceProperty("speed"), DeviceProperty("flow"), DeviceProperty("label")),
    methods=(DeviceMethod("SetSpeed", property_names=("speed", "label")), DeviceMethod("Stop")),
)


class MemoryDevice:
    """A device whose properties are a dict. `failure`, when set, is what every call on it raises; `gate` holds it."""

    def __init__(self, device: Device = DEVICE, model: DeviceModel | None = MODEL) -> None:
        self.device = device
        self.model = model
        self.stats = DeviceStats()
        self.state: tuple[DeviceState, str] = ("online", "")
        self.values = {"speed": "42", "flow": "1.5", "label": "north"}
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[tuple[str, ...]] = []

    def twins(self) -> list[Twin]:
        return [self._twin(name) for name in self.values]

    def _twin(self, name: str) -> Twin:
        property_ = self.model.find(name) if self.model else None
        type_ = property_.type.lower() if property_ else ""
        return Twin(name, Reported(self.values[name], type_, COLLECTED_MS), Desired())

    async def _checked(self, *call: str) -> None:
        self.calls.append(call)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if call[1] not in self.values:
            raise UnknownProperty(f"device {self.device.id} has no property {call[1]!r}")

    async def read_property(self, name: str) -> Twin:
        await self._checked("read", name)
        return self._twin(name)

    async def write_property(self, name: str, text: str) -> Twin:
        await self._checked("write", name, text)
        property_ = self.model.find(name) if self.model else None
        assert property_ is not None
        if not property_.writable:
            raise ConversionError(f"{name} is ReadOnly")
        self.values[name] = format_value(parse_value(text, property_.type), property_.type)
        return self._twin(name)

    async def call_method(self, method: str, name: str, text: str) -> Twin:
        if method not in {m.name for m in self.device.methods}:
            raise UnknownProperty(f"device {self.device.id} has no method {method!r}")
        await self._checked("call", name, text)
        return await self.write_property(name, text)


class MemoryFleet:
    def __init__(self, devices: Iterable[MemoryDevice]) -> None:
        self.devices = {d.device.id: d for d in devices}
        self.retired_latency = Histogram()

    def find(self, device_id: DeviceId) -> MemoryDevice | None:
        return self.devices.get(device_id)

    def runners(self) -> list[MemoryDevice]:
        return list(self.devices.values())


class CountedSinks(NoSamples):
    """A data plane with one sink that is away."""

    files_set_aside = 3

    def stats(self) -> Sequence[SinkStats]:
        return [
            SinkStats(
                sink="mqtt",
                target='tcp://broker:1883 "a\\b"',
                up=False,
                problem="refused",
                sent=50,
                failed=4,
                dropped={"size": 2, "age": 1},
                waiting=12,
                lag_s=33.5,
                file="/var/lib/mapper/mqtt.db",
            )
        ]


class MemoryUplink:
    queue_depth = 3
    reports = 17
    report_failures = 2
    unfit = 1


class MemoryRegistration:
    def __init__(self) -> None:
        self.registered = True
        self.since = time.time()
        self.problem = ""


class MemoryMapper:
    def __init__(self, *devices: MemoryDevice, name: str = "memory-mapper", samples: Samples | None = None) -> None:
        self.name = name
        self.protocol = "memory"
        self.fleet = MemoryFleet(devices or [MemoryDevice()])
        self.uplink = MemoryUplink()
        self.registration = MemoryRegistration()
        self.failures = 0
        self.samples = samples or NoSamples()

    @property
    def pump(self) -> MemoryDevice:
        return self.fleet.devices[DEVICE.id]


def mapper_config(*, address: str = "127.0.0.1", port: int = 0, http: HttpConfig = PLAIN) -> MapperConfig:
    return MapperConfig(
        GrpcServerConfig(str(Path("/nowhere/mapper.sock"))),
        CommonConfig("memory-mapper", address=address, http_port=port),
        http,
    )


@asynccontextmanager
async def served(
    *mappers: MemoryMapper,
    address: str = "127.0.0.1",
    http: HttpConfig = PLAIN,
    watchdog: Watchdog | None = None,
    limits: Limits = UNHURRIED,
) -> AsyncIterator[WebServer]:
    config = mapper_config(address=address, http=http)
    async with serve_web(config, mappers, watchdog=watchdog, limits=limits) as server:
        assert server is not None
        yield server


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # as its docstring says
            await asyncio.sleep(0.01)


async def in_thread(call: Callable[[], _T]) -> _T:
    """Run a blocking client beside the server."""
    async with asyncio.timeout(30):
        return await asyncio.to_thread(call)


async def raw(port: int, request: bytes) -> bytes:
    """Send bytes, half-close, and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(30):
            writer.write(request)
            await writer.drain()
            writer.write_eof()
            return await reader.read()
    finally:
        writer.close()
