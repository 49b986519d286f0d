"""What a mapper must do under upstream's edge core (DMI contract 0.1), seen from the wire."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import pytest

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import (
    DeviceManagerServiceServicer,
    DeviceMapperServiceStub,
    add_DeviceManagerServiceServicer_to_server,
)
from dmi.ports import MapperInfo
from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from dmi.wire import device_to_pb, model_to_pb
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk.mapper import run_mapper
from mappers.sdk.testing import eventually

MODEL = DeviceModel("plant", "gauge", (ModelProperty("level", "INT"), ModelProperty("mode", "INT")))
VISITORS: dict[str, dict[str, Scalar]] = {"level": {"waveform": "ramp", "period": 1000}, "mode": {}}
DEVICE = Device(
    "plant",
    "gauge-1",
    "gauge",
    protocol="virtual",
    properties=tuple(
        DeviceProperty(n, visitor=Visitor("virtual", config), collect_cycle_ms=50, report_to_cloud=True)
        for n, config in VISITORS.items()
    ),
    report_state=True,
    state_report_cycle_ms=100,
)
STATES = ("online", "offline", "ok", "unknown", "unhealthy")


class Upstream(DeviceManagerServiceServicer):
    """Calls back while it is being registered with, by a new connection for every call, and remembers what came."""

    def __init__(self, authority: str = "") -> None:
        self.authority = authority
        self.registrations: list[pb.MapperRegisterRequest] = []
        self.reports: list[pb.ReportDeviceStatusRequest] = []
        self.states: list[pb.ReportDeviceStatesRequest] = []
        self.errors: list[BaseException] = []

    async def MapperRegister(self, request: pb.MapperRegisterRequest, context: Any) -> pb.MapperRegisterResponse:  # noqa: N802
        self.registrations.append(request)
        path = request.mapper.address.decode()
        try:
            for _ in range(2):  # inserts come again after restarts
                await self.call(path, "CreateDeviceModel", pb.CreateDeviceModelRequest(model=model_to_pb(MODEL)))
                await self.call(path, "RegisterDevice", pb.RegisterDeviceRequest(device=device_to_pb(DEVICE)))
        except grpc.aio.AioRpcError as error:
            self.errors.append(error)
        return pb.MapperRegisterResponse(modelList=[model_to_pb(MODEL)], deviceList=[device_to_pb(DEVICE)])

    async def ReportDeviceStatus(self, request: pb.ReportDeviceStatusRequest, context: Any) -> Any:  # noqa: N802
        self.reports.append(request)
        return pb.ReportDeviceStatusResponse()

    async def ReportDeviceStates(self, request: pb.ReportDeviceStatesRequest, context: Any) -> Any:  # noqa: N802
        self.states.append(request)
        return pb.ReportDeviceStatesResponse()

    async def call(self, path: str, method: str, request: Any) -> None:
        """As upstream dials: at once or not at all, 10 s for everything."""
        options = [("grpc.default_authority", self.authority.format(path=path, quoted=quote(path, safe="")))]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options if self.authority else None) as channel:
            await getattr(DeviceMapperServiceStub(channel), method)(request, timeout=10, wait_for_ready=False)


@contextlib.asynccontextmanager
async def serving(upstream: Upstream, socket: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    add_DeviceManagerServiceServicer_to_server(upstream, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def mapper(directory: Path) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        info = MapperInfo("gauges", "virtual", str(directory / "gauges.sock"))
        tasks.create_task(run_mapper(VirtualDriver(), info, directory / "dmi.sock", stop))
        try:
            yield
        finally:
            stop.set()


@pytest.mark.parametrize("authority", ("", "{quoted}", "localhost"))  # rule 16
async def test_it_can_be_called_while_it_registers(tmp_path: Path, authority: str) -> None:
    upstream = Upstream(authority)
    async with serving(upstream, tmp_path / "dmi.sock"), mapper(tmp_path):
        await eventually(lambda: bool(upstream.reports) and bool(upstream.states))
    assert not upstream.errors  # rules 1 and 12; 15: the same insert twice
    (request,) = upstream.registrations
    assert request.withData  # rule 2
    assert request.mapper.address.decode() == str(tmp_path / "gauges.sock")  # rule 3
    assert request.mapper.protocol == DEVICE.protocol  # rule 5


async def test_reports_are_whole(tmp_path: Path) -> None:
    upstream = Upstream()
    async with serving(upstream, tmp_path / "dmi.sock"), mapper(tmp_path):
        await eventually(lambda: len(upstream.reports) >= 3 and len(upstream.states) >= 2)
    assert {t.propertyName for t in upstream.reports[0].reportedDevice.twins} == {"level", "mode"}  # rule 8
    for report in upstream.reports:
        assert (report.deviceNamespace, report.deviceName) == ("plant", "gauge-1")  # rule 9
        for twin in report.reportedDevice.twins:
            assert twin.HasField("observedDesired")  # rule 6
            assert twin.HasField("reported")
            assert re.fullmatch(r"[a-zA-Z0-9-_.,:/@#]{1,512}", twin.reported.value)  # rule 10, for numbers
            assert re.fullmatch(r"[a-zA-Z0-9-_.,:/@#]{1,128}", twin.propertyName)
    for state in upstream.states:
        assert (state.deviceNamespace, state.deviceName) == ("plant", "gauge-1")
        assert state.state in STATES  # rule 11


async def test_it_registers_again_when_the_edge_core_comes_back(tmp_path: Path) -> None:
    first, second = Upstream(), Upstream()
    async with mapper(tmp_path):
        async with serving(first, tmp_path / "dmi.sock"):
            await eventually(lambda: bool(first.reports))
        async with serving(second, tmp_path / "dmi.sock"):
            await eventually(lambda: bool(second.registrations) and bool(second.reports))  # rules 13 and 14
    assert not second.errors


async def test_removals_may_come_again(tmp_path: Path) -> None:
    upstream = Upstream()
    async with serving(upstream, tmp_path / "dmi.sock"), mapper(tmp_path):
        await eventually(lambda: bool(upstream.reports))
        path = str(tmp_path / "gauges.sock")
        for _ in range(2):  # rule 15, in upstream's order: the model goes before its last device
            await upstream.call(
                path,
                "RemoveDeviceModel",
                pb.RemoveDeviceModelRequest(modelNamespace="plant", modelName="gauge"),
            )
            await upstream.call(
                path, "RemoveDevice", pb.RemoveDeviceRequest(deviceNamespace="plant", deviceName="gauge-1")
            )
        for _ in range(2):
            await upstream.call(path, "UpdateDeviceModel", pb.UpdateDeviceModelRequest(model=model_to_pb(MODEL)))
            await upstream.call(path, "UpdateDevice", pb.UpdateDeviceRequest(device=device_to_pb(DEVICE)))
        done = len(upstream.reports)
        await eventually(lambda: len(upstream.reports) > done)
