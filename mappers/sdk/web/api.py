"""The device API: upstream's routes (DMI contract 4), their POST and PUT forms, and a list of devices for people.

Errors are plain text as upstream's, with the status that says whose they are where upstream has 500 for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from dmi.twins import Twin
from dmi.types import device_id
from dmi.web.http import HttpError, Request, Response, encode
from dmi.web.routes import Route
from mappers.sdk.errors import (
    ConversionError,
    DeviceError,
    DeviceTimeout,
    DeviceUnsupported,
    UnknownProperty,
)
from mappers.sdk.web.replies import device_data, device_json, method_list, model_reply, reply, reply_fields
from mappers.sdk.web.views import DeviceView, MapperView

__all__ = ["DeviceApi"]

_SLICE: Final = 25
"""Devices written into the list before others on the loop have a turn."""


class _ValueBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`{"value": …}` of a write."""

    value: str | bool | int | float


_decode_value: Final = msgspec.json.Decoder(_ValueBody).decode


class DeviceApi:
    """The endpoints under `/api/v1`."""

    def __init__(self, mappers: Sequence[MapperView]) -> None:
        self._mappers = mappers

    def routes(self) -> tuple[Route, ...]:
        device, method = "/api/v1/device", "/api/v1/devicemethod/{namespace}/{name}"
        return (
            Route("GET", "/api/v1/ping", self.ping),
            Route("GET", device, self.list_devices),
            Route("GET", f"{device}/{{namespace}}/{{name}}", self.get_device),
            Route("GET", f"{device}/{{namespace}}/{{name}}/{{property}}", self.read_property),
            Route("PUT", f"{device}/{{namespace}}/{{name}}/{{property}}", self.write_property, writes=True),
            Route("GET", "/api/v1/meta/model/{namespace}/{name}", self.get_model),
            Route("GET", method, self.list_methods),
            Route("POST", f"{method}/{{method}}/{{property}}", self.call_method, writes=True),
            Route("GET", f"{method}/{{method}}/{{property}}/{{data}}", self.call_by_get, writes=True),
            Route("GET", "/api/v1/database/{namespace}/{name}", self.database),
        )

    async def ping(self, _request: Request) -> Response:
        return reply(Message=f"{' and '.join(m.name for m in self._mappers) or 'the mapper'}: running")

    async def list_devices(self, _request: Request) -> Response:
        return Response(200, self._device_list())

    async def _device_list(self) -> AsyncGenerator[bytes, None]:
        yield encode(reply_fields())[:-1] + b',"Devices":['
        separator = b""
        for part in _sliced([(m.protocol, device) for m in self._mappers for device in m.fleet.runners()]):
            yield separator + b",".join(_device_entry(protocol, device) for protocol, device in part)
            separator = b","
            await asyncio.sleep(0)
        yield b"]}"

    async def get_device(self, request: Request) -> Response:
        protocol, device = self._find(request)
        return reply(Data=msgspec.Raw(_device_entry(protocol, device)))

    async def read_property(self, request: Request) -> Response:
        _, device = self._find(request)
        try:
            twin = await _carried_out(device.read_property(request.params["property"]))
        except ConversionError as error:
            raise HttpError(502, f"the device answered with what the property cannot hold: {error}") from error
        return reply(Data=device_data(device.device, twin))

    async def write_property(self, request: Request) -> Response:
        _, device = self._find(request)
        text = _value_of(request)
        try:
            twin = await _carried_out(device.write_property(request.params["property"], text))
        except ConversionError as error:
            raise HttpError(400, str(error)) from error
        return _written(device, twin)

    async def call_method(self, request: Request) -> Response:
        return await self._call(request, _value_of(request))

    async def call_by_get(self, request: Request) -> Response:
        return await self._call(request, request.params["data"])

    async def _call(self, request: Request, text: str) -> Response:
        _, device = self._find(request)
        try:
            twin = await _carried_out(device.call_method(request.params["method"], request.params["property"], text))
        except ConversionError as error:
            raise HttpError(400, str(error)) from error
        return _written(device, twin)

    async def get_model(self, request: Request) -> Response:
        _, device = self._find(request)
        if device.model is None:
            raise HttpError(404, f"device {device.device.id}: its model {device.device.model_id} is not known here")
        return model_reply(device.model)

    async def list_methods(self, request: Request) -> Response:
        _, device = self._find(request)
        return reply(Data=method_list(device.device, device.model))

    async def database(self, _request: Request) -> Response:
        """Upstream's stub; generated mappers always answer this."""
        raise HttpError(503, "this mapper keeps no history; see the database its sink writes to")

    def _find(self, request: Request) -> tuple[str, DeviceView]:
        id_ = device_id(request.params["namespace"], request.params["name"])
        for mapper in self._mappers:
            if (device := mapper.fleet.find(id_)) is not None:
                return mapper.protocol, device
        raise HttpError(404, f"device {id_!r} does not run here")


async def _carried_out(call: Awaitable[Twin]) -> Twin:
    """Await a call on a device, its failures as HTTP has them."""
    try:
        return await call
    except UnknownProperty as error:
        raise HttpError(404, str(error)) from error
    except DeviceTimeout as error:
        raise HttpError(504, str(error)) from error
    except DeviceUnsupported as error:
        raise HttpError(501, str(error)) from error
    except DeviceError as error:
        raise HttpError(502, str(error)) from error


def _value_of(request: Request) -> str:
    """The value in the body of a write, as text.

    Raises:
        HttpError: 415 not declared as JSON, which a web page elsewhere cannot without being asked first; 400 not
            `{"value": …}`.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HttpError(415, 'send {"value": …} with Content-Type: application/json')
    try:
        value = _decode_value(request.body).value
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f'the body is not {{"value": …}}: {error}') from None
    if isinstance(value, str):
        return value
    return encode(value).decode()


def _written(device: DeviceView, twin: Twin) -> Response:
    return reply(Message=f"{twin.property_name} of device {device.device.id} is now {twin.reported.value}")


def _device_entry(protocol: str, device: DeviceView) -> bytes:
    declared = device.device
    return device_json(declared, protocol, device.state, device.twins(), model=declared.model)


def _sliced(devices: Sequence[tuple[str, DeviceView]]) -> Iterator[Sequence[tuple[str, DeviceView]]]:
    for start in range(0, len(devices), _SLICE):
        yield devices[start : start + _SLICE]
