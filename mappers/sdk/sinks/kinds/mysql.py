"""`dbMethod.mysql`: a table per property, made when it is first needed (DMI contract 5), rows inserted in batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar, Final

from msgspec import Struct

from dmi.errors import ConfigError
from mappers.sdk.sinks.clients import REQUEST_TIMEOUT_S, load, local_time, require, split_address
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, SinkRejected, SinkUnavailable, Target

__all__ = ["MySqlConfig", "MySqlRoute", "MySqlTarget", "quoted", "read_mysql"]

MAX_NAME: Final = 64
"""Characters of a table's name (MySQL reference manual, 11.2.1)."""
_COLUMNS: Final = "id INT AUTO_INCREMENT PRIMARY KEY, ts DATETIME NOT NULL, field TEXT"
_TABLE_EXISTS: Final = 1050
_NO_SUCH_TABLE: Final = 1146
_OTHER_TABLE: Final = (1054, 1136, 1364)
"""Unknown column, wrong number of columns, a column without a default: the table of that name is not of our form, and
must not hold up the others."""


class _Client(Struct, frozen=True, rename="camel"):
    addr: str = ""
    database: str = ""
    user_name: str = ""


class MySqlConfig(Struct, frozen=True):
    """As the manifest has it."""

    mysqlClientConfig: _Client = _Client()  # noqa: N815  # a key


class MySqlRoute(Route, frozen=True):
    table: str


class MySqlTarget(Target[MySqlRoute], frozen=True, tag="mysql"):
    kind: ClassVar[str] = "mysql"
    route_type: ClassVar[type[Route]] = MySqlRoute

    host: str
    port: int
    database: str
    user: str

    @property
    def label(self) -> str:
        return f"{self.user}@{self.host}:{self.port}/{self.database}"

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[MySqlRoute]]:
        return _connect(self, identity)


def read_mysql(config: MySqlConfig, path: str, device: str, property_name: str) -> tuple[MySqlTarget, MySqlRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiomysql", "mysql", path)
    client = config.mysqlClientConfig
    here = f"{path}.mysqlClientConfig"
    if not client.addr:
        raise ConfigError(f"{here}.addr", "must be host:port")
    host, port = split_address(client.addr, 3306, f"{here}.addr")
    if not client.database:
        raise ConfigError(f"{here}.database", "must name a database")
    table = f"{device}/{property_name}"
    if len(table) > MAX_NAME:
        raise ConfigError(path, f"the table {table!r} would have {len(table)} characters; MySQL takes {MAX_NAME}")
    return MySqlTarget(host, port, client.database, client.user_name), MySqlRoute(table)


def quoted(name: str) -> str:
    """An identifier as it stands in a statement with `%s` for its values."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


@contextmanager
def mysql_errors(mysql: Any) -> Iterator[None]:
    """What the library raises in the block, as the sink's own errors."""
    try:
        yield
    except (mysql.DataError, mysql.IntegrityError) as error:
        raise SinkRejected(str(error)) from error
    except (mysql.ProgrammingError, mysql.OperationalError) as error:
        raise (SinkRejected if error.args[0] in _OTHER_TABLE else SinkUnavailable)(str(error)) from error
    except (mysql.MySQLError, OSError, EOFError) as error:
        raise SinkUnavailable(str(error) or type(error).__name__) from error


class _MySqlSender:
    def __init__(self, mysql: Any, connection: Any) -> None:
        self._mysql = mysql
        """The library: it comes without types."""
        self._connection = connection

    async def send(self, records: Sequence[Record[MySqlRoute]]) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for record in records:
            row = (local_time(record.sample.collected_ms), record.sample.value)
            rows.setdefault(record.route.table, []).append(row)
        with mysql_errors(self._mysql):
            try:
                await self._insert(rows)
            except self._mysql.ProgrammingError as error:
                if error.args[0] != _NO_SUCH_TABLE:
                    raise
                await self._create(rows)
                await self._insert(rows)

    async def _insert(self, rows: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """All or nothing."""
        async with self._connection.cursor() as cursor:
            try:
                for table, values in rows.items():
                    statement = f"INSERT INTO {quoted(table)} (ts, field) VALUES (%s, %s)"  # noqa: S608  # quoted
                    await cursor.executemany(statement, values)
                await self._connection.commit()
            except self._mysql.MySQLError:
                await self._connection.rollback()
                raise

    async def _create(self, tables: Iterable[str]) -> None:
        async with self._connection.cursor() as cursor:
            for table in tables:
                try:
                    await cursor.execute(f"CREATE TABLE {quoted(table)} ({_COLUMNS})", ())
                except self._mysql.OperationalError as error:
                    if error.args[0] != _TABLE_EXISTS:
                        raise


@asynccontextmanager
async def _connect(target: MySqlTarget, identity: Identity) -> AsyncIterator[_MySqlSender]:
    aiomysql = await load("aiomysql")
    with mysql_errors(aiomysql):
        connection = await aiomysql.connect(
            host=target.host,
            port=target.port,
            user=target.user,
            password=identity.secrets.find("MYSQL_PASSWORD", "PASSWORD") or "",
            db=target.database,
            connect_timeout=REQUEST_TIMEOUT_S,
            charset="utf8mb4",
        )
    try:
        yield _MySqlSender(aiomysql, connection)
    finally:
        connection.close()
