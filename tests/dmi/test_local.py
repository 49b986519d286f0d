"""The two ports, over sockets and inside a process: what holds for one holds for the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dmi import (
    ConfigError,
    ConversionError,
    Device,
    DeviceId,
    DeviceModel,
    DeviceProperty,
    DmiError,
    ModelId,
    ModelProperty,
    NodeName,
    PeerRefused,
    PeerUnavailable,
    Reported,
    Twin,
    UnknownDevice,
    UnknownModel,
    UnknownProperty,
)
from dmi.client import EdgeCoreClient, MapperClient
from dmi.local import LocalDmi
from dmi.ports import EdgeCoreHandlers, EdgeCorePort, MapperHandlers, MapperInfo, MapperPort, Registration
from dmi.server import serve_edgecore, serve_mapper

DEVICE = Device("plant", "pump-1", "pump", NodeName("edge-1"), "modbus", properties=(DeviceProperty("p"),))
SEEN = Device("plant", "pump-1", "pump", NodeName(""), "modbus", properties=(DeviceProperty("p"),))
MODEL = DeviceModel("plant", "pump", (ModelProperty("p", "INT"),))
TWIN = Twin("p", Reported("5", "int", 1, "stale", "no reply"))
TIMEOUT_S = 0.3


class EdgeCore:
    def __init__(self) -> None:
        self.said: list[object] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.given_up = asyncio.Event()

    async def _take(self, what: object) -> None:
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if self.error is not None:
            raise self.error
        self.said.append(what)

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        await self._take((mapper.name, with_data))
        return Registration((DEVICE,), (MODEL,))

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        await self._take((device, list(twins)))

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        await self._take((device, state, reason))


class Mapper:
    def __init__(self) -> None:
        self.calls: list[object] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.given_up = asyncio.Event()

    async def _take(self, what: object) -> None:
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        self.calls.append(what)

    async def apply_device(self, device: Device) -> None:
        await self._take(device)

    async def remove_device(self, device: DeviceId) -> None:
        await self._take(device)

    async def apply_model(self, model: DeviceModel) -> None:
        await self._take(model)

    async def remove_model(self, model: ModelId) -> None:
        await self._take(model)

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        raise UnknownDevice(device)


class World:
    """One way for the two to meet."""

    def __init__(self, directory: Path, inside: bool) -> None:
        self._directory = directory
        self._dmi = LocalDmi(timeout_s=TIMEOUT_S) if inside else None
        self.address = "local:m" if inside else str(directory / "m.sock")

    @contextlib.asynccontextmanager
    async def serve_edgecore(self, handlers: EdgeCoreHandlers) -> AsyncIterator[None]:
        serving = self._dmi.serve_edgecore(handlers) if self._dmi else serve_edgecore(handlers, self._socket)
        async with serving:
            yield

    @contextlib.asynccontextmanager
    async def serve_mapper(self, handlers: MapperHandlers) -> AsyncIterator[None]:
        async with (
            self._dmi.serve_mapper(handlers, self.address) if self._dmi else serve_mapper(handlers, self.address)
        ):
            yield

    @contextlib.asynccontextmanager
    async def edgecore(self) -> AsyncIterator[EdgeCorePort]:
        if self._dmi is not None:
            async with self._dmi.edgecore() as port:
                yield port
        else:
            async with EdgeCoreClient(self._socket, timeout_s=TIMEOUT_S) as client:
                yield client

    @contextlib.asynccontextmanager
    async def mapper(self) -> AsyncIterator[MapperPort]:
        port = self._dmi.mapper(self.address) if self._dmi else MapperClient(self.address, timeout_s=TIMEOUT_S)
        try:
            yield port
        finally:
            await port.close()

    @property
    def _socket(self) -> Path:
        return self._directory / "dmi.sock"


@pytest.fixture(params=(False, True), ids=("sockets", "inside"))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


async def test_a_mapper_registers_and_reports(world: World) -> None:
    core = EdgeCore()
    async with world.serve_edgecore(core), world.edgecore() as port:
        answer = await port.register(MapperInfo("m", "modbus", "/run/m.sock"))
        assert answer == Registration((SEEN,), (MODEL,))
        await port.report_twins(DEVICE.id, [TWIN])
        await port.report_state(DEVICE.id, "offline", "größer")
    assert core.said == [("m", True), (DEVICE.id, [TWIN]), (DEVICE.id, "offline", "größer")]


async def test_an_edge_core_calls_a_mapper(world: World) -> None:
    mapper = Mapper()
    async with world.serve_mapper(mapper), world.mapper() as port:
        await port.create_model(MODEL)
        await port.update_model(MODEL)
        await port.register_device(DEVICE)
        await port.update_device(DEVICE)
        await port.remove_device(DEVICE.id)
        await port.remove_model(MODEL.id)
    assert mapper.calls == [MODEL, MODEL, SEEN, SEEN, DEVICE.id, MODEL.id]


@pytest.mark.parametrize(
    ("error", "code"),
    (
        (ConfigError("a.b", "wrong"), "INVALID_ARGUMENT"),
        (ConversionError("wrong"), "INVALID_ARGUMENT"),
        (UnknownDevice("wrong"), "NOT_FOUND"),
        (UnknownModel("wrong"), "NOT_FOUND"),
        (UnknownProperty("wrong"), "NOT_FOUND"),
        (PeerRefused("X", "wrong"), "FAILED_PRECONDITION"),
        (DmiError("wrong"), "INTERNAL"),
        (RuntimeError("a bug, all wrong"), "INTERNAL"),
        (TimeoutError("wrong"), "INTERNAL"),
    ),
)
async def test_what_a_handler_raises_is_a_refusal_with_its_words(world: World, error: Exception, code: str) -> None:
    core = EdgeCore()
    core.error = error
    async with world.serve_edgecore(core), world.edgecore() as port:
        with pytest.raises(PeerRefused, match="wrong") as caught:
            await port.report_twins(DEVICE.id, [TWIN])
        assert caught.value.code == code
        core.error = PeerUnavailable("the store is away")
        with pytest.raises(PeerUnavailable, match="the store is away"):
            await port.report_twins(DEVICE.id, [TWIN])
        core.error = None
        await port.report_twins(DEVICE.id, [TWIN])  # it goes on


async def test_an_answer_means_done_and_one_that_does_not_come_is_given_up(world: World) -> None:
    core = EdgeCore()
    async with world.serve_edgecore(core), world.edgecore() as port:
        core.gate.clear()
        call = asyncio.create_task(port.report_twins(DEVICE.id, [TWIN]))
        await core.entered.wait()
        assert not call.done()
        core.gate.set()
        await call
        assert core.said == [(DEVICE.id, [TWIN])]
        core.gate.clear()
        with pytest.raises(PeerUnavailable):
            await port.report_twins(DEVICE.id, [TWIN])
        async with asyncio.timeout(10):
            await core.given_up.wait()
        core.gate.set()
        await port.report_state(DEVICE.id, "online")
        assert len(core.said) == 2  # what was given up is not done later


async def test_nobody_there_is_unavailable_and_coming_and_going_is_told(world: World) -> None:
    async with world.mapper() as port:
        with pytest.raises(PeerUnavailable):
            await port.remove_device(DEVICE.id)
        async with asyncio.timeout(5):
            await port.wait_lost()
        ready = asyncio.create_task(port.wait_ready())
        async with world.serve_mapper(Mapper()):
            async with asyncio.timeout(5):
                await ready
            lost = asyncio.create_task(port.wait_lost())
            await asyncio.sleep(0.02)
            assert not lost.done()
        async with asyncio.timeout(5):
            await lost
        mapper = Mapper()
        async with world.serve_mapper(mapper), asyncio.timeout(5):
            await port.wait_ready()
            await port.remove_device(DEVICE.id)
        assert mapper.calls == [DEVICE.id]


async def test_a_mapper_that_leaves_takes_no_call_with_it(world: World) -> None:
    mapper = Mapper()
    mapper.gate.clear()
    async with world.mapper() as port:
        async with world.serve_mapper(mapper):
            call = asyncio.create_task(port.update_device(DEVICE))
            await mapper.entered.wait()
        with pytest.raises(PeerUnavailable):
            await call
        async with asyncio.timeout(10):  # gRPC lets go of a handler that hangs, but not at once
            await mapper.given_up.wait()
        assert not mapper.calls


async def test_a_cancelled_call_is_cancelled(world: World) -> None:
    core = EdgeCore()
    core.gate.clear()
    async with world.serve_edgecore(core), world.edgecore() as port:
        call = asyncio.create_task(port.report_twins(DEVICE.id, [TWIN]))
        await core.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await core.given_up.wait()
        core.gate.set()
        await port.report_state(DEVICE.id, "online")
        assert core.said == [(DEVICE.id, "online", "")]


@pytest.mark.parametrize("address", ("/run/m.sock", "local:", "m"))
async def test_an_address_inside_is_a_name(address: str) -> None:
    with pytest.raises(ConfigError, match="local:NAME"):
        async with LocalDmi().serve_mapper(Mapper(), address):
            pass


async def test_an_address_is_served_once() -> None:
    dmi = LocalDmi()
    async with dmi.serve_mapper(Mapper(), "local:m"):
        with pytest.raises(ConfigError, match="served by another mapper"):
            async with dmi.serve_mapper(Mapper(), "local:m"):
                pass
    async with dmi.serve_mapper(Mapper(), "local:m"):
        pass
