"""The calling sides of DMI, values in and values out: `EdgeCoreClient` for mappers, `MapperClient` for the edge core.

Each holds one channel for the life of its peer and reconnects by itself. Every call has a deadline.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from grpc import ChannelConnectivity
from msgspec import Struct

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub, DeviceMapperServiceStub
from dmi.errors import ConfigError
from dmi.rpc import REASON_KEY, open_channel, rpc_errors
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState, ModelId, split_id
from dmi.wire import device_from_pb, device_to_pb, model_from_pb, model_to_pb, twin_to_pb

__all__ = ["EdgeCoreClient", "MapperClient", "MapperInfo", "Registration"]

CALL_TIMEOUT_S: Final = 10.0
"""Upstream's edge core gives a mapper 10 s from dialling (DMI contract 1.3)."""


class MapperInfo(Struct, frozen=True):
    """How a mapper introduces itself."""

    name: str
    protocol: str
    address: str
    """Absolute path of the mapper's own socket, no scheme."""
    version: str = ""
    api_version: str = "v1.0.0"
    state: str = "ok"


class Registration(Struct, frozen=True):
    """What a mapper is to run: the full set, models once each, their defaults merged into the devices."""

    devices: tuple[Device, ...]
    models: tuple[DeviceModel, ...]
    refused: tuple[str, ...] = ()
    """Why an entry of the answer could not be read; the rest stands."""


class _Client:
    def __init__(self, socket_path: str | Path, *, peer: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._channel = open_channel(socket_path)
        self._peer = f"{peer} at {socket_path}"
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def wait_ready(self) -> None:
        """Return once there is a connection, making one as often as it takes."""
        while (state := self._channel.get_state(try_to_connect=True)) is not ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)

    async def wait_lost(self) -> None:
        """Return once there is no connection, at once if there is none; the next call makes a new one.

        A killed peer is noticed this way without a call.
        """
        while (state := self._channel.get_state()) in (ChannelConnectivity.READY, ChannelConnectivity.CONNECTING):
            await self._channel.wait_for_state_change(state)


class EdgeCoreClient(_Client):
    """A mapper's way to its edge core. All methods raise `PeerUnavailable` and `PeerRefused`."""

    def __init__(self, socket_path: str | Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        super().__init__(socket_path, peer="edge core", timeout_s=timeout_s)
        self._stub = DeviceManagerServiceStub(self._channel)

    async def register(self, mapper: MapperInfo) -> Registration:
        """Announce the mapper, which must be serving already, and fetch the full set of what it is to run."""
        request = pb.MapperRegisterRequest(
            withData=True,
            mapper=pb.MapperInfo(
                name=mapper.name,
                version=mapper.version,
                api_version=mapper.api_version,
                protocol=mapper.protocol,
                address=mapper.address.encode(),
                state=mapper.state,
            ),
        )
        with rpc_errors(self._peer):
            answer = await self._stub.MapperRegister(request, timeout=self._timeout_s)
        return _read_registration(answer)

    async def report_twins(self, device: DeviceId, twins: Iterable[Twin]) -> None:
        """Hand over what was read, any number of properties in one call. Returning means stored (upstream: queued)."""
        namespace, name = split_id(device)
        request = pb.ReportDeviceStatusRequest(
            deviceName=name,
            deviceNamespace=namespace,
            reportedDevice=pb.DeviceStatus(twins=[twin_to_pb(t) for t in twins]),
        )
        with rpc_errors(self._peer):
            await self._stub.ReportDeviceStatus(request, timeout=self._timeout_s)

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "") -> None:
        """Say whether the device is online, and in words why not."""
        namespace, name = split_id(device)
        request = pb.ReportDeviceStatesRequest(deviceName=name, deviceNamespace=namespace, state=state)
        metadata = ((REASON_KEY, reason.encode()),) if reason else ()
        with rpc_errors(self._peer):
            await self._stub.ReportDeviceStates(request, timeout=self._timeout_s, metadata=metadata)


class MapperClient(_Client):
    """The edge core's way to one mapper. All methods raise `PeerUnavailable` and `PeerRefused`, and may be repeated."""

    def __init__(self, socket_path: str | Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        super().__init__(socket_path, peer="mapper", timeout_s=timeout_s)
        self._stub = DeviceMapperServiceStub(self._channel)

    async def register_device(self, device: Device) -> None:
        with rpc_errors(self._peer):
            await self._stub.RegisterDevice(
                pb.RegisterDeviceRequest(device=device_to_pb(device)), timeout=self._timeout_s
            )

    async def update_device(self, device: Device) -> None:
        with rpc_errors(self._peer):
            await self._stub.UpdateDevice(pb.UpdateDeviceRequest(device=device_to_pb(device)), timeout=self._timeout_s)

    async def remove_device(self, device: DeviceId) -> None:
        namespace, name = split_id(device)
        with rpc_errors(self._peer):
            await self._stub.RemoveDevice(
                pb.RemoveDeviceRequest(deviceName=name, deviceNamespace=namespace), timeout=self._timeout_s
            )

    async def create_model(self, model: DeviceModel) -> None:
        with rpc_errors(self._peer):
            await self._stub.CreateDeviceModel(
                pb.CreateDeviceModelRequest(model=model_to_pb(model)), timeout=self._timeout_s
            )

    async def update_model(self, model: DeviceModel) -> None:
        with rpc_errors(self._peer):
            await self._stub.UpdateDeviceModel(
                pb.UpdateDeviceModelRequest(model=model_to_pb(model)), timeout=self._timeout_s
            )

    async def remove_model(self, model: ModelId) -> None:
        namespace, name = split_id(model)
        with rpc_errors(self._peer):
            await self._stub.RemoveDeviceModel(
                pb.RemoveDeviceModelRequest(modelName=name, modelNamespace=namespace), timeout=self._timeout_s
            )


def _read_registration(answer: pb.MapperRegisterResponse) -> Registration:
    """Upstream repeats a model once per device that uses it; one unreadable entry must not take the others down."""
    refused: list[str] = []
    models: dict[ModelId, DeviceModel] = {}
    devices: dict[DeviceId, Device] = {}
    for message in answer.modelList:
        try:
            model = model_from_pb(message)
        except ConfigError as error:
            refused.append(f"model {message.namespace}/{message.name}: {error}")
        else:
            models[model.id] = model
    for entry in answer.deviceList:
        try:
            device = device_from_pb(entry)
        except ConfigError as error:
            refused.append(f"device {entry.namespace}/{entry.name}: {error}")
        else:
            devices[device.id] = device
    return Registration(devices=tuple(devices.values()), models=tuple(models.values()), refused=tuple(refused))
