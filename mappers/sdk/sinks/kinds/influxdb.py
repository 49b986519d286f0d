"""`dbMethod.influxdb2`: points in line protocol (DMI contract 5), a POST for all that wait, stamped with the time of
collection.

Spec: InfluxDB 2 API, POST /api/v2/write; line protocol: escaping of measurement, tags and string fields.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from msgspec import Struct

from dmi.errors import ConfigError
from mappers.sdk.sinks.clients import http_session, post, require, split_url
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, Target

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["InfluxConfig", "InfluxRoute", "InfluxTarget", "line", "read_influxdb"]

_NAME: Final = str.maketrans({",": "\\,", " ": "\\ "})
_KEY: Final = str.maketrans({",": "\\,", " ": "\\ ", "=": "\\="})
_TEXT: Final = str.maketrans({'"': '\\"', "\\": "\\\\"})


class _Client(Struct, frozen=True):
    url: str = ""
    org: str = ""
    bucket: str = ""


class _Data(Struct, frozen=True, rename="camel"):
    measurement: str = ""
    tag: Mapping[str, str] = {}
    field_key: str = ""


class InfluxConfig(Struct, frozen=True):
    """As the manifest has it."""

    influxdb2ClientConfig: _Client = _Client()  # noqa: N815  # a key
    influxdb2DataConfig: _Data = _Data()  # noqa: N815


class InfluxRoute(Route, frozen=True):
    prefix: str
    """Measurement, tags and field key, escaped: what stands before the value."""


class InfluxTarget(Target[InfluxRoute], frozen=True, tag="influxdb2"):
    kind: ClassVar[str] = "influxdb2"
    route_type: ClassVar[type[Route]] = InfluxRoute

    url: str
    org: str
    bucket: str

    @property
    def label(self) -> str:
        return f"{self.url} {self.org}/{self.bucket}"

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[InfluxRoute]]:
        return _connect(self, identity)


def read_influxdb(config: InfluxConfig, path: str) -> tuple[InfluxTarget, InfluxRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiohttp", "http", path)
    client, data = config.influxdb2ClientConfig, config.influxdb2DataConfig
    parts = split_url(client.url, ("http", "https"), f"{path}.influxdb2ClientConfig.url")
    if parts.query or parts.fragment:
        raise ConfigError(f"{path}.influxdb2ClientConfig.url", "must end before ? and #; a token is one of the secrets")
    if not client.bucket:
        raise ConfigError(f"{path}.influxdb2ClientConfig.bucket", "must name a bucket")
    for key, text in (("measurement", data.measurement), ("fieldKey", data.field_key), *data.tag.items()):
        here = f"{path}.influxdb2DataConfig." + (key if key in ("measurement", "fieldKey") else f"tag.{key}")
        if not text or not key:
            raise ConfigError(here, "must not be empty")
        # Line protocol has no way to write these: a backslash before a delimiter would escape it.
        if any(not c.isprintable() for c in key + text) or key.endswith("\\") or text.endswith("\\"):
            raise ConfigError(here, f"{text!r} must be without control characters, and not end with a backslash")
    tags = "".join(f",{k.translate(_KEY)}={v.translate(_KEY)}" for k, v in sorted(data.tag.items()))
    prefix = f"{data.measurement.translate(_NAME)}{tags} {data.field_key.translate(_KEY)}="
    return InfluxTarget(client.url.rstrip("/"), client.org, client.bucket), InfluxRoute(prefix)


def line(record: Record[InfluxRoute]) -> str:
    """One point. The value is a string field whatever its type, as upstream writes it."""
    return f'{record.route.prefix}"{record.sample.value.translate(_TEXT)}" {record.sample.collected_ms}'


class _InfluxSender:
    def __init__(self, target: InfluxTarget, session: ClientSession) -> None:
        self._target = target
        self._session = session

    async def send(self, records: Sequence[Record[InfluxRoute]]) -> None:
        await post(
            self._session,
            f"{self._target.url}/api/v2/write",
            "\n".join(map(line, records)).encode(),
            content_type="text/plain; charset=utf-8",
            params={"org": self._target.org, "bucket": self._target.bucket, "precision": "ms"},
        )


@asynccontextmanager
async def _connect(target: InfluxTarget, identity: Identity) -> AsyncIterator[_InfluxSender]:
    token = identity.secrets.find("INFLUXDB_TOKEN", "TOKEN")
    async with http_session({"Authorization": f"Token {token}"} if token else None) as session:
        yield _InfluxSender(target, session)
