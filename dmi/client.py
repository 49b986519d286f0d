"""The calling sides of DMI, values in and values out: `EdgeCoreClient` for mappers, `MapperClient` for the edge core.

Each holds one channel for the life of its peer and reconnects by itself. Every call has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from grpc import ChannelConnectivity

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub, DeviceMapperServiceStub
from dmi.errors import ConfigError, PeerRefused
from dmi.ports import EdgeCorePort, MapperHandlers, MapperInfo, Registration
from dmi.report import encode_report
from dmi.rpc import (
    CALL_TIMEOUT_S,
    EDGECORE_KEY,
    MAX_REASON_BYTES,
    PARTIAL_KEY,
    REASON_KEY,
    open_channel,
    rpc_errors,
)
from dmi.server import serve_mapper
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState, ModelId, split_id
from dmi.wire import device_from_pb, device_to_pb, model_from_pb, model_to_pb

__all__ = ["EdgeCoreClient", "MapperClient", "MapperInfo", "Registration", "Sockets"]


_SLICE: Final = 32
"""Devices of a registration that are read at once: some milliseconds on a small gateway."""


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
        self._report_status = self._channel.unary_unary(
            "/v1beta1.DeviceManagerService/ReportDeviceStatus",
            response_deserializer=pb.ReportDeviceStatusResponse.FromString,
        )

    async def register(self, mapper: MapperInfo, /) -> Registration:
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
            call = self._stub.MapperRegister(request, timeout=self._timeout_s)
            answer = await call
            said = {key for key, _ in await call.initial_metadata() or ()}
        return await _read_registration(answer, stock=EDGECORE_KEY not in said, partial=PARTIAL_KEY in said)

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None:
        """Hand over what was read, any number of properties in one call. Returning means stored (upstream: queued)."""
        request = encode_report(*split_id(device), twins)
        with rpc_errors(self._peer):
            await self._report_status(request, timeout=self._timeout_s)

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None:
        """Say whether the device is online, and in words why not."""
        namespace, name = split_id(device)
        request = pb.ReportDeviceStatesRequest(deviceName=name, deviceNamespace=namespace, state=state)
        # Cut, at a character, to what peers take as metadata: 8 KiB in all, and a third more on the wire.
        text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
        metadata = ((REASON_KEY, text),) if text else ()
        with rpc_errors(self._peer):
            await self._stub.ReportDeviceStates(request, timeout=self._timeout_s, metadata=metadata)


class Sockets:
    """`MapperSide`: DMI between processes. `socket` is the edge core's."""

    def __init__(self, socket: str | Path) -> None:
        self._socket = socket

    def edgecore(self) -> AbstractAsyncContextManager[EdgeCorePort]:
        return EdgeCoreClient(self._socket)

    def serve_mapper(self, handlers: MapperHandlers, address: str, /) -> AbstractAsyncContextManager[Path]:
        return serve_mapper(handlers, address)


class MapperClient(_Client):
    """The edge core's way to one mapper. All methods raise `PeerUnavailable` and `PeerRefused`, and may be repeated."""

    def __init__(self, socket_path: str | Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        super().__init__(socket_path, peer="mapper", timeout_s=timeout_s)
        self._stub = DeviceMapperServiceStub(self._channel)
        # gRPC's own health check: a server that does not have it says so, which is an answer.
        self._check = self._channel.unary_unary("/grpc.health.v1.Health/Check")

    async def ping(self, timeout_s: float, /) -> None:
        with suppress(PeerRefused), rpc_errors(self._peer):
            await self._check(b"", timeout=timeout_s)

    async def register_device(self, device: Device, /) -> None:
        with rpc_errors(self._peer):
            await self._stub.RegisterDevice(
                pb.RegisterDeviceRequest(device=device_to_pb(device)), timeout=self._timeout_s
            )

    async def update_device(self, device: Device, /) -> None:
        with rpc_errors(self._peer):
            await self._stub.UpdateDevice(pb.UpdateDeviceRequest(device=device_to_pb(device)), timeout=self._timeout_s)

    async def remove_device(self, device: DeviceId, /) -> None:
        namespace, name = split_id(device)
        with rpc_errors(self._peer):
            await self._stub.RemoveDevice(
                pb.RemoveDeviceRequest(deviceName=name, deviceNamespace=namespace), timeout=self._timeout_s
            )

    async def create_model(self, model: DeviceModel, /) -> None:
        with rpc_errors(self._peer):
            await self._stub.CreateDeviceModel(
                pb.CreateDeviceModelRequest(model=model_to_pb(model)), timeout=self._timeout_s
            )

    async def update_model(self, model: DeviceModel, /) -> None:
        with rpc_errors(self._peer):
            await self._stub.UpdateDeviceModel(
                pb.UpdateDeviceModelRequest(model=model_to_pb(model)), timeout=self._timeout_s
            )

    async def remove_model(self, model: ModelId, /) -> None:
        namespace, name = split_id(model)
        with rpc_errors(self._peer):
            await self._stub.RemoveDeviceModel(
                pb.RemoveDeviceModelRequest(modelName=name, modelNamespace=namespace), timeout=self._timeout_s
            )


async def _read_registration(answer: pb.MapperRegisterResponse, *, stock: bool, partial: bool) -> Registration:
    """Upstream repeats a model once per device that uses it; one unreadable entry must not take the others down. The
    loop has its turn between slices of devices.
    """
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
    for number, entry in enumerate(answer.deviceList, start=1):
        if number % _SLICE == 0:
            await asyncio.sleep(0)
        try:
            device = device_from_pb(entry)
        except ConfigError as error:
            refused.append(f"device {entry.namespace}/{entry.name}: {error}")
        else:
            devices[device.id] = device
    return Registration(
        devices=tuple(devices.values()),
        models=tuple(models.values()),
        refused=tuple(refused),
        stock=stock,
        partial=partial,
    )
