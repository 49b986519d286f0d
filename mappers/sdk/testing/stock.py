"""What KubeEdge's own edge core does to mappers that do not keep to its unwritten rules (DMI contract 0.1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from dmi.errors import PeerRefused

__all__ = ["StockRules"]

STATES: Final = frozenset({"online", "offline", "ok", "unknown", "unhealthy"})
_VALUE: Final = re.compile(r"[a-zA-Z0-9-_.,:/@#]{0,512}")
_NAME: Final = re.compile(r"[a-zA-Z0-9-_.,:/@#]{1,128}")


class StockRules(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Looks at every call as it is on the wire: one token each, and a word for everything that breaks a rule."""

    def __init__(self, *, burst: int = 100, per_s: float = 1.0) -> None:
        self.violations: list[str] = []
        self.refused = 0
        """Calls for which there was no token."""
        self._burst = burst
        self._per_s = per_s
        self._tokens = float(burst)
        self._at: float | None = None

    def take(self) -> None:
        """One call of any kind, by any mapper.

        Raises:
            PeerRefused: No token is left: one comes each second, up to the burst.
        """
        now = asyncio.get_running_loop().time()
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            self.refused += 1
            raise PeerRefused("UNKNOWN", "fail to serve the mapper: too many requests")
        self._tokens -= 1

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        async def checked(request: Any, context: Any) -> Any:
            try:
                self.take()
            except PeerRefused as refused:
                await context.abort(grpc.StatusCode.UNKNOWN, refused.details)
            self._look_at(request)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            checked, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _look_at(self, request: Any) -> None:
        match type(request).__name__:
            case "MapperRegisterRequest":
                self._look_at_mapper(request)
            case "ReportDeviceStatusRequest":
                self._look_at_twins(request)
            case "ReportDeviceStatesRequest":
                where = f"{request.deviceNamespace}/{request.deviceName}"
                if request.state.lower() not in STATES:
                    self.violations.append(f"{where}: state {request.state!r} is dropped silently")
                self._look_at_id(request, where)

    def _look_at_mapper(self, request: Any) -> None:
        mapper = request.mapper
        if not request.withData:
            self.violations.append(f"mapper {mapper.name}: without withData it is never called back")
        if not mapper.address.startswith(b"/"):
            self.violations.append(f"mapper {mapper.name}: address {mapper.address!r} is not an absolute path")

    def _look_at_twins(self, request: Any) -> None:
        where = f"{request.deviceNamespace}/{request.deviceName}"
        self._look_at_id(request, where)
        if not request.reportedDevice.twins:
            self.violations.append(f"{where}: a report without twins")
        for twin in request.reportedDevice.twins:
            place = f"{where}: property {twin.propertyName!r}"
            for part in ("reported", "observedDesired"):
                if not twin.HasField(part):
                    self.violations.append(f"{place}: without {part} the edge core crashes")
                elif not _VALUE.fullmatch(getattr(twin, part).value):
                    self.violations.append(f"{place}: {part} {getattr(twin, part).value!r} is dropped silently")
            if not _NAME.fullmatch(twin.propertyName):
                self.violations.append(f"{place}: the name is dropped silently")

    def _look_at_id(self, request: Any, where: str) -> None:
        if not request.deviceNamespace or not request.deviceName:
            self.violations.append(f"{where}: no device has this id")
