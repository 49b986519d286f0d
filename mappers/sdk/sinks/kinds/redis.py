"""`dbMethod.redis`: a sorted set per device, scored by time (DMI contract 5). A sample sent twice is there once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from dmi.errors import ConfigError
from dmi.types import split_id
from mappers.sdk.sinks.clients import REQUEST_TIMEOUT_S, load, require, split_address
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, SinkRejected, SinkUnavailable, Target

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisConfig", "RedisRoute", "RedisTarget", "member", "read_redis"]

_UNWANTED: Final = ("WRONGTYPE",)
"""Error codes about the key at hand; others (LOADING, OOM, NOAUTH, READONLY, …) are about the server."""

_GO_ESCAPES: Final = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
"""Go's encoder writes these so; a sorted set compares bytes."""


class _Client(Struct, frozen=True, rename="camel"):
    addr: str = ""
    db: Annotated[int, Meta(ge=0)] = 0
    poolsize: int = 0
    """Upstream's; a mapper keeps one connection, and a second while it catches up."""
    min_idle_conns: int = 0


class RedisConfig(Struct, frozen=True):
    """As the manifest has it."""

    redisClientConfig: _Client = _Client()  # noqa: N815  # a key


class RedisRoute(Route, frozen=True):
    """The key is the device's name."""


class RedisTarget(Target[RedisRoute], frozen=True, tag="redis"):
    kind: ClassVar[str] = "redis"
    route_type: ClassVar[type[Route]] = RedisRoute

    host: str
    port: int
    db: int

    @property
    def label(self) -> str:
        return f"{self.host}:{self.port}/{self.db}"

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[RedisRoute]]:
        return _connect(self, identity)


class _Member(Struct, frozen=True, rename="pascal"):
    """Upstream's record as Go writes it as JSON: these names, in this order."""

    device_name: str
    property_name: str
    namespace: str
    value: str
    type: str
    time_stamp: int


def read_redis(config: RedisConfig, path: str) -> tuple[RedisTarget, RedisRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("redis", "redis", path)
    client = config.redisClientConfig
    if not client.addr:
        raise ConfigError(f"{path}.redisClientConfig.addr", "must be host:port")
    host, port = split_address(client.addr, 6379, f"{path}.redisClientConfig.addr")
    return RedisTarget(host, port, client.db), RedisRoute()


def member(record: Record[RedisRoute]) -> bytes:
    sample = record.sample
    namespace, name = split_id(sample.device)
    text = msgspec.json.encode(
        _Member(name, sample.property_name, namespace, sample.value, sample.type, sample.collected_ms)
    )
    for plain, escaped in _GO_ESCAPES:
        text = text.replace(plain, escaped)
    return text


class _RedisSender:
    def __init__(self, client: Redis) -> None:
        self._client = client

    async def send(self, records: Sequence[Record[RedisRoute]]) -> None:
        import redis.exceptions

        pipeline = self._client.pipeline(transaction=False)
        for record in records:
            _, name = split_id(record.sample.device)
            pipeline.zadd(name, {member(record): record.sample.collected_ms})
        try:
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        except (redis.exceptions.RedisError, OSError) as error:
            raise SinkUnavailable(str(error) or type(error).__name__) from error
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        unwanted = [error for error in errors if str(error).startswith(_UNWANTED)]
        if len(errors) > len(unwanted):
            raise SinkUnavailable(str(next(error for error in errors if error not in unwanted)))
        if unwanted:
            raise SinkRejected(str(unwanted[0]), len(unwanted))


@asynccontextmanager
async def _connect(target: RedisTarget, identity: Identity) -> AsyncIterator[_RedisSender]:
    await load("redis.asyncio")
    import redis.asyncio
    import redis.exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    client = redis.asyncio.Redis(
        host=target.host,
        port=target.port,
        db=target.db,
        username=identity.secrets.find("REDIS_USERNAME"),
        password=identity.secrets.find("REDIS_PASSWORD", "PASSWORD"),
        socket_timeout=REQUEST_TIMEOUT_S,
        socket_connect_timeout=REQUEST_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # the sink's own back-off knows better
        single_connection_client=True,
        protocol=2,
    )
    try:
        await client.ping()
        yield _RedisSender(client)
    except (redis.exceptions.RedisError, OSError) as error:
        raise SinkUnavailable(str(error) or type(error).__name__) from error
    finally:
        await client.aclose()
