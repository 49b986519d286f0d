"""The serving sides of DMI: adapters from gRPC to two protocols of plain methods, and sockets that appear atomically.

`serve_edgecore` is what mappers call, `serve_mapper` what an edge core calls. An exception of `dmi.errors` raised by
a handler is answered with its status code and text; any other is logged and answered INTERNAL. The server goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Never, TypeVar

import grpc
import grpc.aio

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import (
    DeviceManagerServiceServicer,
    DeviceMapperServiceServicer,
    add_DeviceManagerServiceServicer_to_server,
    add_DeviceMapperServiceServicer_to_server,
)
from dmi.errors import ConfigError, DmiError, Overloaded, UnknownDevice
from dmi.ports import LOCAL, EdgeCoreHandlers, MapperHandlers, MapperInfo, Registration
from dmi.rpc import CALL_TIMEOUT_S, EDGECORE_KEY, MAX_MESSAGE_BYTES, PARTIAL_KEY, REASON_KEY, code_for, unix_target
from dmi.types import DeviceId, ModelId, device_id
from dmi.wire import device_from_pb, device_to_pb, model_from_pb, model_to_pb, twin_to_pb, twins_from_pb

__all__ = ["EdgeCoreHandlers", "MapperHandlers", "serve_edgecore", "serve_mapper"]

logger = logging.getLogger(__name__)

_Response = TypeVar("_Response")
Outcome = Literal["malformed", "limited"]

SOCKET_MODE: Final = 0o660
_STOP_GRACE_S: Final = 1.0
STREAMS: Final = 512
"""Calls under way on one connection; most of what is more waits at the caller. Ours make 32, Go mappers one."""
MAX_NAME_BYTES: Final = 253
"""Of a name in Kubernetes."""
MAX_ERROR_CHARS: Final = 512
"""Of an answer's text, which travels in an HTTP/2 header: an over-long one takes the whole connection with it."""
LARGE_BYTES: Final = 64 * 1024
"""Reports of more are bounded by their bytes, those of fewer by their number, which is the handlers' business."""
LARGE_AT_ONCE_BYTES: Final = 32 * 1024 * 1024
MAX_PATH_BYTES: Final = 107
"""What the address of a unix socket holds."""
_SLICE: Final = 64
"""Devices of an answer that are put into it at once: a few milliseconds."""
_LOG_EVERY_S: Final = 1.0


@contextlib.asynccontextmanager
async def serve_edgecore(
    handlers: EdgeCoreHandlers,
    socket_path: str | Path,
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    turned_away: Callable[[str, Outcome], None] = lambda _rpc, _outcome: None,
) -> AsyncIterator[Path]:
    """Serve mappers on a unix socket while the block runs. `interceptors` see every call as it is on the wire,
    `turned_away` is told the names of those that no handler sees: they cannot be read, or there is no room for them.
    """
    server = _new_server(interceptors)
    add_DeviceManagerServiceServicer_to_server(_ManagerServicer(handlers, turned_away), server)
    async with _listen(server, Path(socket_path)) as path:
        yield path


@contextlib.asynccontextmanager
async def serve_mapper(handlers: MapperHandlers, socket_path: str | Path) -> AsyncIterator[Path]:
    """Serve an edge core on a unix socket while the block runs. Serve first, then register.

    Raises:
        ConfigError: The path is too long, or another process serves it, which runs the same devices then.
    """
    if _is_served(socket_path):
        raise ConfigError(
            str(socket_path),
            "another process serves this socket: end that one, or give this mapper a socket and a name of its own",
        )
    server = _new_server()
    add_DeviceMapperServiceServicer_to_server(_MapperServicer(handlers), server)
    async with _listen(server, Path(socket_path)) as path:
        yield path


def _is_served(path: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:  # more callers than it takes
            return True
        except OSError:  # also too long a path, which binding to it says better
            return False
    return True


def _new_server(interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=interceptors,
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.so_reuseport", 0),
        ),
    )


@contextlib.asynccontextmanager
async def _listen(server: grpc.aio.Server, path: Path) -> AsyncIterator[Path]:
    """Bind under a temporary name, set the mode, rename into place: a client never sees a socket that does not answer,
    and a socket left by a killed process is simply replaced.
    """
    path = path.absolute()
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(hidden)) > MAX_PATH_BYTES:
        raise ConfigError(
            str(path), "the path is too long for a unix socket (about 100 bytes): choose a shorter directory"
        )
    server.add_insecure_port(unix_target(hidden))
    await server.start()
    try:
        hidden.chmod(SOCKET_MODE)
        hidden.replace(path)
        inode = path.stat().st_ino
        yield path
    finally:
        await server.stop(_STOP_GRACE_S)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:  # not that of a successor that is serving already
                path.unlink()


async def _answer(call: Awaitable[_Response], context: Any, what: str) -> _Response:
    """The result of a handler, or the gRPC error for its exception."""
    what = what[:MAX_ERROR_CHARS]
    try:
        return await call
    except DmiError as error:
        await _refuse(error, context, what)
    except Exception as error:
        logger.exception("%s failed", what)
        await context.abort(grpc.StatusCode.INTERNAL, f"{what}: {error!r}"[:MAX_ERROR_CHARS])
        raise AssertionError("abort raises") from error


class _Complaints:
    """One line a second about refused calls: a caller that does not stop must not fill the disk."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._unsaid = 0

    def note(self, what: str, error: DmiError) -> None:
        if isinstance(error, Overloaded):
            return  # whoever limits it says so
        if (now := time.monotonic()) < self._next_at:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} other calls)" if self._unsaid else ""
        self._next_at, self._unsaid = now + _LOG_EVERY_S, 0
        logger.warning("%s refused: %s%s", what, _text_of(error), more)


_complaints: Final = _Complaints()


async def _refuse(error: DmiError, context: Any, what: str) -> Never:
    _complaints.note(what, error)
    await context.abort(code_for(error), _text_of(error))
    raise AssertionError("abort raises")


def _text_of(error: DmiError) -> str:
    return str(error)[:MAX_ERROR_CHARS]


def _id_of(namespace: str, name: str) -> DeviceId:
    long = max(len(namespace), len(name)) > MAX_NAME_BYTES
    if long or not namespace or not name or "/" in namespace or "/" in name:
        shown = f"deviceNamespace {namespace[:MAX_NAME_BYTES]!r} and deviceName {name[:MAX_NAME_BYTES]!r}"
        raise UnknownDevice(f"{shown} do not name a device{': too long' if long else ''}")
    return device_id(namespace, name)


class _ManagerServicer(DeviceManagerServiceServicer):
    def __init__(self, handlers: EdgeCoreHandlers, turned_away: Callable[[str, Outcome], None]) -> None:
        self._handlers = handlers
        self._turned_away = turned_away
        self._large_bytes = 0

    async def MapperRegister(self, request: pb.MapperRegisterRequest, context: Any) -> pb.MapperRegisterResponse:  # noqa: N802
        async def call() -> pb.MapperRegisterResponse:
            with self._reading("MapperRegister"):
                info = _mapper_from_pb(request.mapper, context.time_remaining())
            answer = await self._handlers.register_mapper(info, with_data=request.withData)
            if not answer.stock:
                partial = ((PARTIAL_KEY, "1"),) if answer.partial else ()
                await context.send_initial_metadata(((EDGECORE_KEY, "1"), *partial))
            return await _registration_to_pb(answer)

        return await _answer(call(), context, f"MapperRegister of {request.mapper.name!r}")

    async def ReportDeviceStatus(  # noqa: N802
        self, request: pb.ReportDeviceStatusRequest, context: Any
    ) -> pb.ReportDeviceStatusResponse:
        async def call() -> pb.ReportDeviceStatusResponse:
            with self._reading("ReportDeviceStatus"):
                device = _id_of(request.deviceNamespace, request.deviceName)
                twins = twins_from_pb(request.reportedDevice.twins)
            await self._handlers.accept_twins(device, twins)
            return pb.ReportDeviceStatusResponse()

        size = request.ByteSize()
        taken = call() if size <= LARGE_BYTES else self._in_room("ReportDeviceStatus", size, call)
        return await _answer(taken, context, f"ReportDeviceStatus of {request.deviceNamespace}/{request.deviceName}")

    async def ReportDeviceStates(  # noqa: N802
        self, request: pb.ReportDeviceStatesRequest, context: Any
    ) -> pb.ReportDeviceStatesResponse:
        async def call() -> pb.ReportDeviceStatesResponse:
            with self._reading("ReportDeviceStates"):
                device = _id_of(request.deviceNamespace, request.deviceName)
            reason = next((v for k, v in context.invocation_metadata() or () if k == REASON_KEY), b"")
            await self._handlers.accept_state(device, request.state, bytes(reason).decode(errors="replace"))
            return pb.ReportDeviceStatesResponse()

        return await _answer(call(), context, f"ReportDeviceStates of {request.deviceNamespace}/{request.deviceName}")

    @contextlib.contextmanager
    def _reading(self, rpc: str) -> Iterator[None]:
        try:
            yield
        except DmiError:
            self._turned_away(rpc, "malformed")
            raise

    async def _in_room(self, rpc: str, size: int, call: Callable[[], Awaitable[_Response]]) -> _Response:
        if self._large_bytes + size > LARGE_AT_ONCE_BYTES:
            self._turned_away(rpc, "limited")
            raise Overloaded(
                f"no room for {size} bytes: calls of over {LARGE_BYTES} bytes may hold {LARGE_AT_ONCE_BYTES} together, "
                f"and those that wait to be stored hold {self._large_bytes}; report fewer properties in one call"
            )
        self._large_bytes += size
        try:
            return await call()
        finally:
            self._large_bytes -= size


def _mapper_from_pb(mapper: pb.MapperInfo, patience_s: float | None) -> MapperInfo:
    if not mapper.name or not mapper.protocol:
        raise ConfigError("mapper", f"name {mapper.name!r} and protocol {mapper.protocol!r} must both be given")
    for key in ("name", "protocol", "version", "api_version", "state"):
        if len(getattr(mapper, key).encode()) > MAX_NAME_BYTES:
            raise ConfigError(f"mapper.{key}", f"is longer than {MAX_NAME_BYTES} bytes")
    try:
        address = mapper.address.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("mapper.address", f"not UTF-8: {error}") from error
    if address.startswith(LOCAL):
        raise ConfigError("mapper.address", f"{address!r} is not the path of a socket")
    if len(mapper.address) > MAX_PATH_BYTES or "\0" in address:
        raise ConfigError("mapper.address", f"a path of {len(mapper.address)} bytes is not that of a unix socket")
    return MapperInfo(
        name=mapper.name,
        protocol=mapper.protocol,
        address=address,
        version=mapper.version,
        api_version=mapper.api_version,
        state=mapper.state,
        patience_s=CALL_TIMEOUT_S if patience_s is None else min(patience_s, CALL_TIMEOUT_S),
    )


async def _registration_to_pb(answer: Registration) -> pb.MapperRegisterResponse:
    response = pb.MapperRegisterResponse(modelList=[model_to_pb(m) for m in answer.models])
    if answer.encoded:
        for number, encoded in enumerate(answer.encoded, start=1):
            response.deviceList.add().MergeFromString(encoded)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
    else:
        response.deviceList.extend(device_to_pb(d) for d in answer.devices)
    return response


class _MapperServicer(DeviceMapperServiceServicer):
    def __init__(self, handlers: MapperHandlers) -> None:
        self._handlers = handlers

    async def RegisterDevice(self, request: pb.RegisterDeviceRequest, context: Any) -> pb.RegisterDeviceResponse:  # noqa: N802
        async def call() -> pb.RegisterDeviceResponse:
            device = device_from_pb(request.device)
            await self._handlers.apply_device(device)
            return pb.RegisterDeviceResponse(deviceName=device.name, deviceNamespace=device.namespace)

        return await _answer(call(), context, f"RegisterDevice of {request.device.namespace}/{request.device.name}")

    async def UpdateDevice(self, request: pb.UpdateDeviceRequest, context: Any) -> pb.UpdateDeviceResponse:  # noqa: N802
        async def call() -> pb.UpdateDeviceResponse:
            await self._handlers.apply_device(device_from_pb(request.device))
            return pb.UpdateDeviceResponse()

        return await _answer(call(), context, f"UpdateDevice of {request.device.namespace}/{request.device.name}")

    async def RemoveDevice(self, request: pb.RemoveDeviceRequest, context: Any) -> pb.RemoveDeviceResponse:  # noqa: N802
        async def call() -> pb.RemoveDeviceResponse:
            await self._handlers.remove_device(_id_of(request.deviceNamespace, request.deviceName))
            return pb.RemoveDeviceResponse()

        return await _answer(call(), context, f"RemoveDevice of {request.deviceNamespace}/{request.deviceName}")

    async def CreateDeviceModel(  # noqa: N802
        self, request: pb.CreateDeviceModelRequest, context: Any
    ) -> pb.CreateDeviceModelResponse:
        async def call() -> pb.CreateDeviceModelResponse:
            model = model_from_pb(request.model)
            await self._handlers.apply_model(model)
            return pb.CreateDeviceModelResponse(deviceModelName=model.name, deviceModelNamespace=model.namespace)

        return await _answer(call(), context, f"CreateDeviceModel of {request.model.namespace}/{request.model.name}")

    async def UpdateDeviceModel(  # noqa: N802
        self, request: pb.UpdateDeviceModelRequest, context: Any
    ) -> pb.UpdateDeviceModelResponse:
        async def call() -> pb.UpdateDeviceModelResponse:
            await self._handlers.apply_model(model_from_pb(request.model))
            return pb.UpdateDeviceModelResponse()

        return await _answer(call(), context, f"UpdateDeviceModel of {request.model.namespace}/{request.model.name}")

    async def RemoveDeviceModel(  # noqa: N802
        self, request: pb.RemoveDeviceModelRequest, context: Any
    ) -> pb.RemoveDeviceModelResponse:
        async def call() -> pb.RemoveDeviceModelResponse:
            await self._handlers.remove_model(ModelId(_id_of(request.modelNamespace, request.modelName)))
            return pb.RemoveDeviceModelResponse()

        return await _answer(call(), context, f"RemoveDeviceModel of {request.modelNamespace}/{request.modelName}")

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Any) -> pb.GetDeviceResponse:  # noqa: N802
        async def call() -> pb.GetDeviceResponse:
            device, twins = await self._handlers.get_device(_id_of(request.deviceNamespace, request.deviceName))
            message = device_to_pb(device)
            message.status.twins.extend(twin_to_pb(t) for t in twins)
            return pb.GetDeviceResponse(device=message)

        return await _answer(call(), context, f"GetDevice of {request.deviceNamespace}/{request.deviceName}")
