"""`pushMethod.mqtt`: one message per sample, time and value as text (DMI contract 5), on a connection that is kept.

A broker acknowledges no message of QoS 0, and a connection that is cut takes what is written to it for minutes. So an
UNSUBSCRIBE from a topic that nobody subscribed to follows such messages: a broker must answer it (MQTT 3.1.1, 3.10.4),
and as it reads a connection in order, the answer says that it has the messages before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta, Struct

from dmi.errors import ConfigError
from mappers.sdk.sinks.clients import REQUEST_TIMEOUT_S, load, local_time, masked, require, split_url
from mappers.sdk.sinks.record import Identity, Record, Route, Sender, SinkUnavailable, Target

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiomqtt import Client

__all__ = ["MqttConfig", "MqttRoute", "MqttTarget", "payload", "read_mqtt"]

_PLAIN: Final = ("tcp", "mqtt")
_TLS: Final = ("ssl", "tls", "tcps", "mqtts")
_WEB: Final = ("ws", "wss")
_PORTS: Final = {"ws": 80, "wss": 443} | dict.fromkeys(_PLAIN, 1883) | dict.fromkeys(_TLS, 8883)
_DIAL_S: Final = 5.0
_NOBODYS_TOPIC: Final = "kubetwin/none"


class MqttConfig(Struct, frozen=True):
    """As the manifest has it."""

    address: str = ""
    """`tcp://`, `mqtt://`; with TLS `ssl://`, `tls://`, `tcps://`, `mqtts://`; `ws://`, `wss://`; `unix:///path`."""
    topic: str = ""
    qos: Literal[0, 1, 2] = 0
    retained: bool = False


class MqttRoute(Route, frozen=True):
    topic: str
    qos: int
    retained: bool


class MqttTarget(Target[MqttRoute], frozen=True, tag="mqtt"):
    kind: ClassVar[str] = "mqtt"
    route_type: ClassVar[type[Route]] = MqttRoute
    batch: ClassVar[int] = 1
    parallel: ClassVar[int] = 16

    address: Annotated[str, Meta(min_length=1)]

    @property
    def label(self) -> str:
        return masked(self.address)

    def connect(self, identity: Identity) -> AbstractAsyncContextManager[Sender[MqttRoute]]:
        return _connect(self, identity)


def read_mqtt(config: MqttConfig, path: str) -> tuple[MqttTarget, MqttRoute]:
    """Raises:
    ConfigError: Something of it cannot work.
    """
    require("aiomqtt", "mqtt", path)
    if not config.address.startswith("unix:"):
        split_url(config.address, (*_PLAIN, *_TLS, *_WEB), f"{path}.address")
    elif not urlsplit(config.address).path.startswith("/"):
        raise ConfigError(f"{path}.address", f"{config.address!r} must be of the form unix:///path")
    topic = config.topic
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > 0xFFFF:
        raise ConfigError(f"{path}.topic", f"{topic!r} must be a topic to publish to: not empty, without + and #")
    return MqttTarget(config.address), MqttRoute(topic, config.qos, config.retained)


def payload(record: Record[MqttRoute]) -> str:
    """`time is <local time>`, two spaces, `<topic>: <value>`."""
    sample = record.sample
    return f"time is {local_time(sample.collected_ms)}  {record.route.topic}: {sample.value}"


class _MqttSender:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._written = self._confirmed = 0
        """Messages of QoS 0 on this connection."""
        self._confirming = asyncio.Lock()

    async def send(self, records: Sequence[Record[MqttRoute]]) -> None:
        import aiomqtt

        try:
            for record in records:
                route = record.route
                # Returns on the broker's acknowledgement with QoS 1 and 2, and when it is written with QoS 0.
                await self._client.publish(route.topic, payload(record), route.qos, route.retained)
                self._written += route.qos == 0
            await self._confirm(self._written)
        except aiomqtt.MqttError as error:
            raise SinkUnavailable(str(error)) from error

    async def _confirm(self, written: int) -> None:
        """Wait until the broker has read that many. One question serves all who wait."""
        if self._confirmed >= written:
            return
        async with self._confirming:
            if self._confirmed < written:
                asked_for = self._written
                await self._client.unsubscribe(_NOBODYS_TOPIC)
                self._confirmed = asked_for


@asynccontextmanager
async def _connect(target: MqttTarget, identity: Identity) -> AsyncIterator[_MqttSender]:
    await load("aiomqtt")
    import aiomqtt

    parts = urlsplit(target.address)
    transport: Literal["tcp", "websockets", "unix"] = "tcp"
    host, port, context = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1), None  # a socket has no port
    if parts.scheme == "unix":
        transport, host = "unix", parts.path
    elif parts.scheme in _WEB:
        transport = "websockets"
    if parts.scheme in (*_TLS, "wss"):
        import ssl

        context = ssl.create_default_context()
    await _dial(transport, host, port, context)
    try:
        async with aiomqtt.Client(
            host,
            port,
            username=identity.secrets.find("MQTT_USERNAME"),
            password=identity.secrets.find("MQTT_PASSWORD"),
            transport=transport,
            timeout=REQUEST_TIMEOUT_S,
            tls_context=context,
            websocket_path=_web_path(parts) if transport == "websockets" else None,
            max_concurrent_outgoing_calls=4 * target.parallel,
        ) as client:
            yield _MqttSender(client)
    except aiomqtt.MqttError as error:
        raise SinkUnavailable(str(error)) from error


def _web_path(parts: SplitResult) -> str:
    return (parts.path or "/mqtt") + (f"?{parts.query}" if parts.query else "")


async def _dial(transport: str, host: str, port: int, context: SSLContext | None) -> None:
    """See whether somebody listens there whom we trust: the library dials in a thread that no cancellation reaches, and
    leaves a socket open when a handshake fails."""
    try:
        async with asyncio.timeout(_DIAL_S):
            if transport == "unix":
                _, writer = await asyncio.open_unix_connection(host)
            else:
                _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
            await writer.wait_closed()
    except OSError as error:  # TimeoutError too
        raise SinkUnavailable(str(error) or f"no connection within {_DIAL_S:g} s") from error
