"""A mapper as those made from KubeEdge's Go framework are: what makes one of them crash is an error here.

Read from the framework (DMI contract 8.2); the wire is raw protobuf.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import (
    DeviceManagerServiceStub,
    DeviceMapperServiceServicer,
    add_DeviceMapperServiceServicer_to_server,
)
from tests.edgecore.peers import Watched

WRAPPERS: Final = {
    f"type.googleapis.com/google.protobuf.{name}Value" for name in ("String", "Bool", "Float", "Int32", "Int64")
}
REGISTER_S: Final = 1.0


class GoMapper(Watched, DeviceMapperServiceServicer):
    """`crashes`: why a Go mapper would have ended."""

    def __init__(self, directory: Path, name: str = "go", protocol: str = "modbus", file: str = "") -> None:
        super().__init__()
        self.edgecore = directory / "dmi.sock"
        self.address = directory / (file or f"{name}.sock")
        self.name = name
        self.protocol = protocol
        self.models: dict[str, set[str]] = {}
        self.devices: dict[str, pb.Device] = {}
        self.calls: list[tuple[str, str]] = []
        self.crashes: list[str] = []
        self._stopped: set[str] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["GoMapper"]:
        server = grpc.aio.server()
        add_DeviceMapperServiceServicer_to_server(self, server)
        hidden = self.address.with_name("go-hidden.sock")
        server.add_insecure_port(f"unix:{hidden}")
        await server.start()
        hidden.rename(self.address)
        try:
            yield self
        finally:
            await server.stop(0)
            self.address.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def _dial(self) -> AsyncIterator[DeviceManagerServiceStub]:
        """A connection of its own for each call; the deadline begins when it is up."""
        async with grpc.aio.insecure_channel(
            f"unix:{self.edgecore}", options=(("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            async with asyncio.timeout(15):
                await channel.channel_ready()
            yield DeviceManagerServiceStub(channel)

    async def register(self, deadline_s: float = REGISTER_S) -> pb.MapperRegisterResponse:
        """A failure ends a Go mapper."""
        info = pb.MapperInfo(
            name=self.name,
            version="v1.0.0",
            api_version="v1.0.0",
            protocol=self.protocol,
            address=str(self.address).encode(),
            state="ok",
        )
        async with self._dial() as stub:
            answer: pb.MapperRegisterResponse = await stub.MapperRegister(
                pb.MapperRegisterRequest(withData=True, mapper=info), timeout=deadline_s
            )
        for model in answer.modelList:
            self._take_model(model)
        for device in answer.deviceList:
            self._take_device(device)
        return answer

    async def report(self, device: str, name: str, value: str) -> None:
        namespace, _, device_name = device.partition("/")
        twin = pb.TwinProperty(value=value, metadata={"type": "float", "timestamp": ""})
        status = pb.DeviceStatus(twins=[pb.Twin(propertyName=name, observedDesired=twin, reported=twin)])
        async with self._dial() as stub:
            await stub.ReportDeviceStatus(
                pb.ReportDeviceStatusRequest(deviceName=device_name, deviceNamespace=namespace, reportedDevice=status),
                timeout=5,
            )

    # What edge core calls

    async def CreateDeviceModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("CreateDeviceModel", request.model)
        self._take_model(request.model)
        return pb.CreateDeviceModelResponse()

    async def UpdateDeviceModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("UpdateDeviceModel", request.model)
        if self._id(request.model) not in self.models:
            await context.abort(grpc.StatusCode.UNKNOWN, "update deviceModel failed, not existed")
        self._take_model(request.model)
        return pb.UpdateDeviceModelResponse()

    async def RegisterDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("RegisterDevice", request.device)
        if self._id(request.device) not in self.devices:  # a known one: success, and the payload is ignored
            self._take_device(request.device)
        await self.notify()
        return pb.RegisterDeviceResponse(deviceName=request.device.name)

    async def UpdateDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("UpdateDevice", request.device)
        self._take_device(request.device)
        await self.notify()
        return pb.UpdateDeviceResponse()

    async def RemoveDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        id_ = f"{request.deviceNamespace}/{request.deviceName}"
        self.calls.append(("RemoveDevice", id_))
        if id_ in self._stopped:
            self.crashes.append(f"second removal of {id_}")
        if id_ not in self.devices:
            await context.abort(grpc.StatusCode.UNKNOWN, "device not existed")
        del self.devices[id_]
        self._stopped.add(id_)
        await self.notify()
        return pb.RemoveDeviceResponse()

    async def GetDevice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.crashes.append("GetDevice")

    async def _called(self, what: str, message: Any) -> None:
        self.calls.append((what, self._id(message)))
        await self.notify()

    def _id(self, message: Any) -> str:
        return f"{message.namespace}/{message.name}"

    def _take_model(self, model: pb.DeviceModel) -> None:
        self.models[self._id(model)] = {p.name for p in model.spec.properties}

    def _take_device(self, device: pb.Device) -> None:
        id_, spec = self._id(device), device.spec
        model = self.models.get(f"{device.namespace}/{spec.deviceModelReference}")
        if model is None:
            self.crashes.append(f"{id_}: no model {spec.deviceModelReference}")
            return
        if not device.HasField("spec") or not spec.HasField("protocol"):
            self.crashes.append(f"{id_}: no spec.protocol")
        self._check_config(id_, spec.protocol.configData)
        if device.status.reportCycle < 0:
            self.crashes.append(f"{id_}: negative ticker")
        for p in spec.properties:
            where = f"{id_} {p.name}"
            if not p.HasField("desired") or not p.HasField("visitors") or not p.visitors.HasField("configData"):
                self.crashes.append(f"{where}: desired, visitors or visitors.configData is nil")
            if p.name not in model:
                self.crashes.append(f"{where}: not in the model")
            if min(p.collectCycle, p.reportCycle) < 0:
                self.crashes.append(f"{where}: negative ticker")
            self._check_config(where, p.visitors.configData)
            for key, value in p.pushMethod.anomalyDetection.data.items():
                if value.type_url.endswith("Int64Value"):
                    self.crashes.append(f"{where}: anomalyDetection.{key} arrives as text")
        self.devices[id_] = device
        self._stopped.discard(id_)

    def _check_config(self, where: str, config: pb.CustomizedValue) -> None:
        for key, value in config.data.items():
            if value.type_url not in WRAPPERS:
                self.crashes.append(f"{where}: configData.{key} of type {value.type_url} disappears")
