"""`pushMethod.http`: one POST per sample, a form of the value and its time (DMI contract 5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Final
from urllib.parse import quote

from msgspec import Meta, Struct

from dmi.errors import ConfigError
from mappers.sdk.sinks.clients import REQUEST_TIMEOUT_S, http_session, local_time, masked, post, require, split_url
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, Target

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["HttpConfig", "HttpRoute", "HttpTarget", "body", "read_http"]

_PLAIN: Final = " !$'()*,/:<>?@[]^`{|}\"\\~"
"""Left as they are, as upstream leaves everything. What would break the form apart (`&`, `;`, `=`, `+`, `%`), control
characters and those beyond ASCII are percent-encoded, so that a form decoder gets back the very value."""


class HttpConfig(Struct, frozen=True, rename="camel"):
    """As the manifest has it."""

    host_name: str = ""
    """With scheme: `http://collector` or `https://collector`."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """0 or absent: the scheme's own."""
    request_path: str = ""
    """With leading slash."""
    timeout: Annotated[int, Meta(ge=0)] = 0
    """Milliseconds for one request; 0 or absent: 10 s."""


class HttpRoute(Route, frozen=True):
    timeout_s: float


class HttpTarget(Target[HttpRoute], frozen=True, tag="http"):
    kind: ClassVar[str] = "http"
    route_type: ClassVar[type[Route]] = HttpRoute
    batch: ClassVar[int] = 1
    parallel: ClassVar[int] = 8

    url: str
    """With the path: one that fails holds up no other."""

    @property
    def label(self) -> str:
        return masked(self.url)

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[HttpRoute]]:
        return _connect(self, identity)


def read_http(config: HttpConfig, path: str) -> tuple[HttpTarget, HttpRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiohttp", "http", path)
    parts = split_url(config.host_name, ("http", "https"), f"{path}.hostName")
    if parts.path or parts.query or parts.fragment or (parts.port and config.port):
        raise ConfigError(
            f"{path}.hostName",
            f"{config.host_name!r} must be scheme and host; port and requestPath have their own keys",
        )
    if config.request_path and not config.request_path.startswith("/"):
        raise ConfigError(f"{path}.requestPath", f"{config.request_path!r} must start with /")
    base = config.host_name + (f":{config.port}" if config.port else "")
    return HttpTarget(base + config.request_path), HttpRoute(config.timeout / 1000 or REQUEST_TIMEOUT_S)


def body(record: Record[HttpRoute]) -> bytes:
    """`<property>=<value>&time=<local time>`; ordinary values give upstream's very bytes."""
    sample = record.sample
    name, value = quote(sample.property_name, safe=_PLAIN), quote(sample.value, safe=_PLAIN)
    return f"{name}={value}&time={local_time(sample.collected_ms)}".encode()


class _HttpSender:
    def __init__(self, target: HttpTarget, session: ClientSession) -> None:
        self._target = target
        self._session = session

    async def send(self, records: Sequence[Record[HttpRoute]]) -> None:
        for record in records:
            await post(
                self._session,
                self._target.url,
                body(record),
                content_type="application/x-www-form-urlencoded",
                timeout_s=record.route.timeout_s,
            )


@asynccontextmanager
async def _connect(target: HttpTarget, identity: Identity) -> AsyncIterator[_HttpSender]:
    token = identity.secrets.find("HTTP_TOKEN")
    async with http_session({"Authorization": f"Bearer {token}"} if token else None) as session:
        yield _HttpSender(target, session)
