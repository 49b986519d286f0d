"""Both services over a real unix socket, values in and values out."""

import asyncio
import stat
from collections.abc import Sequence
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
    Overloaded,
    PeerRefused,
    PeerUnavailable,
    Reported,
    Twin,
    UnknownDevice,
    UnknownModel,
    UnknownProperty,
)
from dmi.client import EdgeCoreClient, MapperClient, MapperInfo, Registration
from dmi.rpc import code_for
from dmi.server import serve_edgecore, serve_mapper

DEVICE = Device(
    namespace="plant", name="pump-1", model="pump", protocol="modbus", properties=(DeviceProperty(name="p"),)
)
MODEL = DeviceModel(namespace="plant", name="pump", properties=(ModelProperty(name="p", type="INT"),))


class EdgeCore:
    """Remembers what mappers said."""

    def __init__(self) -> None:
        self.mappers: list[MapperInfo] = []
        self.twins: list[tuple[DeviceId, Sequence[Twin]]] = []
        self.states: list[tuple[DeviceId, str, str]] = []

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        self.mappers.append(mapper)
        return Registration(devices=(DEVICE,) if with_data else (), models=(MODEL,))

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        if device != DEVICE.id:
            raise UnknownDevice(f"{device} is not on this node")
        self.twins.append((device, twins))

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        if state == "explode":
            raise RuntimeError("a bug")
        self.states.append((device, state, reason))


class Mapper:
    def __init__(self) -> None:
        self.calls: list[object] = []

    async def apply_device(self, device: Device) -> None:
        self.calls.append(device)

    async def remove_device(self, device: DeviceId) -> None:
        self.calls.append(("remove", device))

    async def apply_model(self, model: DeviceModel) -> None:
        self.calls.append(model)

    async def remove_model(self, model: ModelId) -> None:
        self.calls.append(("remove", model))

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        raise UnknownDevice(device)


async def test_a_mapper_registers_and_reports(tmp_path: Path) -> None:
    edgecore, socket = EdgeCore(), tmp_path / "dmi.sock"
    async with serve_edgecore(edgecore, socket), EdgeCoreClient(socket) as client:
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        answer = await client.register(MapperInfo(name="m", protocol="modbus", address="/run/m.sock"))
        assert (answer.devices, answer.models, answer.refused) == ((DEVICE,), (MODEL,), ())
        assert edgecore.mappers[0].address == "/run/m.sock"
        twin = Twin(
            "p", reported=Reported(value="5 °C, warm", type="int", collected_ms=1, quality="stale", reason="no reply")
        )
        await client.report_twins(DEVICE.id, [twin])
        assert edgecore.twins == [(DEVICE.id, [twin])]
        await client.report_state(DEVICE.id, "offline", "no reply from 192.0.2.1: größer")
        assert edgecore.states == [(DEVICE.id, "offline", "no reply from 192.0.2.1: größer")]
    assert not socket.exists()


async def test_a_long_reason_is_cut_at_a_character_and_arrives(tmp_path: Path) -> None:
    core = EdgeCore()
    async with serve_edgecore(core, tmp_path / "dmi.sock"), EdgeCoreClient(tmp_path / "dmi.sock") as client:
        await client.report_state(DEVICE.id, "unhealthy", "a" + "größer" * 10_000)
    ((_, _, reason),) = core.states
    assert reason.startswith("agrößer")
    assert 4090 < len(reason.encode()) <= 4096


async def test_an_edge_core_calls_a_mapper(tmp_path: Path) -> None:
    mapper, socket = Mapper(), tmp_path / "m.sock"
    async with serve_mapper(mapper, socket), MapperClient(socket) as client:
        await client.create_model(MODEL)
        await client.register_device(DEVICE)
        await client.update_device(DEVICE)
        await client.update_model(MODEL)
        await client.remove_device(DEVICE.id)
        await client.remove_model(MODEL.id)
    assert mapper.calls == [MODEL, DEVICE, DEVICE, MODEL, ("remove", DEVICE.id), ("remove", MODEL.id)]


async def test_errors_cross_the_socket_in_words_and_the_server_goes_on(tmp_path: Path) -> None:
    edgecore, socket = EdgeCore(), tmp_path / "dmi.sock"
    async with serve_edgecore(edgecore, socket), EdgeCoreClient(socket) as client:
        with pytest.raises(PeerRefused, match="plant/other is not on this node") as refused:
            await client.report_twins(DeviceId("plant/other"), [Twin("p")])
        assert refused.value.code == "NOT_FOUND"
        with pytest.raises(PeerRefused, match=r"reportedDevice\.twins: is empty"):
            await client.report_twins(DEVICE.id, [])
        with pytest.raises(PeerRefused, match=r"reportedDevice\.twins\[0\]\.propertyName: is missing"):
            await client.report_twins(DEVICE.id, [Twin("")])
        with pytest.raises(PeerRefused, match="a bug"):
            await client.report_state(DEVICE.id, "explode")  # type: ignore[arg-type]
        with pytest.raises(PeerRefused, match="must both be given"):
            await client.register(MapperInfo(name="", protocol="", address=""))
        await client.report_state(DEVICE.id, "online")
    assert edgecore.states == [(DEVICE.id, "online", "")]


async def test_a_client_finds_a_server_that_came_back(tmp_path: Path) -> None:
    edgecore, socket = EdgeCore(), tmp_path / "dmi.sock"
    async with EdgeCoreClient(socket, timeout_s=2) as client:
        with pytest.raises(PeerUnavailable):
            await client.report_state(DEVICE.id, "online")
        for _ in range(2):
            async with serve_edgecore(edgecore, socket), asyncio.timeout(5):
                while True:
                    try:
                        await client.report_state(DEVICE.id, "online")
                    except PeerUnavailable:
                        continue  # grpc waits 0.1 to 1 s between its own attempts
                    break
    assert len(edgecore.states) == 2


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    socket = tmp_path / "dmi.sock"
    socket.write_text("left over")
    async with serve_edgecore(EdgeCore(), socket), EdgeCoreClient(socket) as client:
        await client.report_state(DEVICE.id, "online")


async def test_a_path_too_long_for_a_socket_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a unix socket"):
        async with serve_edgecore(EdgeCore(), tmp_path / ("x" * 120)):
            pass


def test_every_error_has_a_status_code() -> None:
    errors = [
        ConfigError("a.b", "x"), ConversionError("x"), UnknownDevice("x"), UnknownModel("x"), UnknownProperty("x"),
        PeerUnavailable("x"), PeerRefused("NOT_FOUND", "x"), Overloaded("x"), DmiError("x"),
    ]  # fmt: skip
    assert {type(e) for e in errors} == {DmiError, *DmiError.__subclasses__()}
    assert [code_for(e).name for e in errors] == [
        "INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND",
        "UNAVAILABLE", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "INTERNAL",
    ]  # fmt: skip


async def test_a_mapper_does_not_take_the_socket_of_one_that_serves(tmp_path: Path) -> None:
    socket = tmp_path / "m.sock"
    async with serve_mapper(Mapper(), socket):
        with pytest.raises(ConfigError, match="another process serves this socket"):
            async with serve_mapper(Mapper(), socket):
                pass
        async with MapperClient(socket) as client:
            await client.create_model(MODEL)  # unharmed
    async with serve_mapper(Mapper(), socket):
        pass
