"""`dbMethod.TDEngine`: a super table per device, a child table per property (DMI contract 5), over TDengine's REST API.

Upstream's names hold `/` unquoted, which is no valid SQL; here they are quoted. Its child table is named after the
property alone, so that a second device with that property would fail; here the device is part of the name. A time to
the second would let samples of the same second overwrite each other; here it has milliseconds and a time zone.

Spec: TDengine REST API, POST /rest/sql/<database>: basic authentication, an answer with `code`, 0 for success.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from dmi.errors import ConfigError
from mappers.sdk.samples import Sample
from mappers.sdk.sinks.clients import http_session, post, require, split_address
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, SinkRejected, SinkUnavailable, Target

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["TdEngineConfig", "TdEngineRoute", "TdEngineTarget", "create_statement", "insert_statement", "read_tdengine"]

MAX_NAME: Final = 192
"""Bytes of a table's name (TDengine reference, naming and limits)."""
_COLUMNS: Final = "ts TIMESTAMP, deviceid BINARY(320), propertyname BINARY(128), data BINARY(1024), type BINARY(64)"
_TEXT: Final = str.maketrans({"'": "\\'", "\\": "\\\\"})
_NO_TABLE: Final = (0x2603, 0x2662, 0x0362, 0x0618)
"""Table does not exist, as parser, catalog, management node or storage node say it."""
_STATEMENT_WRONG: Final = (0x0216, *range(0x2600, 0x2700))
"""Errors of the parser; of those, a missing database (0x2616) can be made."""
_NO_DATABASE: Final = (0x0388, 0x2616)


class _Client(Struct, frozen=True, rename="camel"):
    addr: str = ""
    db_name: str = ""


class TdEngineConfig(Struct, frozen=True):
    """As the manifest has it."""

    TDEngineClientConfig: _Client = _Client()


class TdEngineRoute(Route, frozen=True):
    """Tables are named after device and property."""


class TdEngineTarget(Target[TdEngineRoute], frozen=True, tag="tdengine"):
    kind: ClassVar[str] = "tdengine"
    route_type: ClassVar[type[Route]] = TdEngineRoute

    host: str
    port: int
    database: str

    @property
    def label(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[TdEngineRoute]]:
        return _connect(self, identity)


class _Answer(Struct, frozen=True):
    code: int = 0
    desc: str = ""


def read_tdengine(
    config: TdEngineConfig, path: str, device: str, property_name: str
) -> tuple[TdEngineTarget, TdEngineRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiohttp", "http", path)
    client, here = config.TDEngineClientConfig, f"{path}.TDEngineClientConfig"
    if not client.addr:
        raise ConfigError(f"{here}.addr", "must be host:port")
    host, port = split_address(client.addr, 6041, f"{here}.addr")
    if not client.db_name or "/" in client.db_name:
        raise ConfigError(f"{here}.dbName", f"{client.db_name!r} must name a database")
    if len(_child(device, property_name).encode()) > MAX_NAME:
        raise ConfigError(path, f"the table {_child(device, property_name)!r} has more than {MAX_NAME} bytes")
    return TdEngineTarget(host, port, client.db_name), TdEngineRoute()


def create_statement(device: str) -> str:
    return f"CREATE STABLE IF NOT EXISTS {_quoted(_legal(device))} ({_COLUMNS}) TAGS (location BINARY(128))"


def insert_statement(samples: Iterable[Sample]) -> str:
    """One statement for all, a part per child table."""
    tables: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        texts = (_time(sample.collected_ms), sample.device, sample.property_name, sample.value, sample.type)
        values = ", ".join(f"'{text.translate(_TEXT)}'" for text in texts)
        tables.setdefault((sample.device, sample.property_name), []).append(f"({values})")
    return "INSERT INTO " + " ".join(
        f"{_quoted(_child(device, name))} USING {_quoted(_legal(device))} TAGS ('{_legal(name).translate(_TEXT)}') "
        f"VALUES {' '.join(rows)}"
        for (device, name), rows in tables.items()
    )


def _legal(name: str) -> str:
    return name.replace("-", "_")


def _child(device: str, property_name: str) -> str:
    return _legal(f"{device}/{property_name}")


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "_") + "`"


def _time(epoch_ms: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=epoch_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TdEngineSender:
    def __init__(self, target: TdEngineTarget, session: ClientSession) -> None:
        self._url = f"http://{_host(target.host)}:{target.port}/rest/sql/{quote(target.database, safe='')}"
        self._session = session

    async def send(self, records: Sequence[Record[TdEngineRoute]]) -> None:
        insert = insert_statement(record.sample for record in records)
        answer = await self._ask(insert)
        if answer.code & 0xFFFF in _NO_TABLE:
            for device in {record.sample.device: None for record in records}:
                _check(await self._ask(create_statement(device)))
            answer = await self._ask(insert)
        _check(answer)

    async def _ask(self, statement: str) -> _Answer:
        body = await post(self._session, self._url, statement.encode(), content_type="text/plain; charset=utf-8")
        try:
            return msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError as error:
            raise SinkUnavailable("the answer is not TDengine's: is this the right address?") from error


def _check(answer: _Answer) -> None:
    """Raises: what the code means. Only its lower 16 bits tell errors apart."""
    code = answer.code & 0xFFFF
    if answer.code == 0:
        return
    problem = f"error 0x{code:04x}: {answer.desc[:200]}"
    if code in _STATEMENT_WRONG and code not in (*_NO_DATABASE, *_NO_TABLE):
        raise SinkRejected(problem)
    raise SinkUnavailable(problem)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@asynccontextmanager
async def _connect(target: TdEngineTarget, identity: Identity) -> AsyncIterator[_TdEngineSender]:
    headers: Mapping[str, str] | None = None
    user = identity.secrets.find("TDENGINE_USERNAME", "USERNAME")
    if user is not None:
        password = identity.secrets.find("TDENGINE_PASSWORD", "PASSWORD") or ""
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    async with http_session(headers) as session:
        yield _TdEngineSender(target, session)
