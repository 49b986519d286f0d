"""One connection to a broker: aiomqtt, with what it leaves open.

aiomqtt 2.5 dials in a thread, acknowledges a message before anybody has seen it, keeps any number of them in memory (or
throws them away), and leaves socket and task behind when a broker does not answer. Here a message is acknowledged when
it has been dealt with, reading stops while too many wait, and a connection is closed whatever the broker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Final

import aiomqtt
from aiomqtt import MqttError
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTTMessage
from paho.mqtt.client import Client as Paho

from edgecore.eventbus.settings import BrokerTarget, tls_context

__all__ = ["Link", "MqttError", "linked"]

DIAL_S: Final = 5.0
ANSWER_S: Final = 10.0
"""How long a broker may take for CONNACK, PUBACK or SUBACK before the connection counts as lost."""
KEEPALIVE_S: Final = 15
PAUSE_AT: Final = 64
RESUME_AT: Final = 16


class Link(aiomqtt.Client):
    """Made by `linked`. What is overridden and touched of aiomqtt is the same in all of 2.5."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._paho: Paho = self._client
        self._paho.manual_ack_set(on=True)
        self._paho.connect_timeout = DIAL_S
        self._paused_on: int | None = None
        """The socket that is not read from."""
        self._dialling = threading.Event()
        self._dialled = threading.Event()
        self.malformed = 0

    async def received(self) -> AsyncGenerator[aiomqtt.Message, None]:
        """Messages, each of which the broker keeps until `acknowledge`.

        Raises:
            MqttError: The connection is lost.
        """
        async for message in self.messages:
            self._resume()
            yield message

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """It has been dealt with."""
        self._paho.ack(message.mid, message.qos)

    async def until_lost(self) -> None:
        """Raises:
        MqttError: The connection is lost.
        """
        async for _ in self.messages:
            pass

    async def close(self) -> None:
        """Say good-bye and free what the connection holds; waits for no broker. Once."""
        while self._dialling.is_set() and not self._dialled.is_set():  # noqa: ASYNC110 - a thread, five seconds at most
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)  # what that thread asked the loop for comes first
        self._paused_on = None
        with contextlib.suppress(OSError, ValueError):
            if self._paho.disconnect() == MQTT_ERR_SUCCESS:
                await asyncio.sleep(0)  # it asks the loop to watch the socket, which must still be open then
                self._paho.loop_write()
        self._paho._sock_close()  # noqa: SLF001 - paho has no other way that does not wait for the peer
        if self._misc_task is not None:
            self._misc_task.cancel()
            await asyncio.wait([self._misc_task])
            self._misc_task = None
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # seen, whoever else looked

    def _client_connect(self) -> None:
        self._dialling.set()
        try:
            super()._client_connect()
        finally:
            self._dialled.set()

    def _on_socket_register_write(self, client: Paho, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - as aiomqtt has it
        """As aiomqtt's, but for a socket that is closed by the time the loop comes to it: a broker that goes while we
        say good-bye.
        """

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:  # noqa: BLE001 - as aiomqtt's own: whoever waits for the connection gets it
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def watch() -> None:
            if (descriptor := sock.fileno()) > -1:
                self._loop.add_writer(descriptor, write)

        self._loop.call_soon_threadsafe(watch)  # we may be in the thread that dials

    def _on_message(self, client: Paho, userdata: Any, message: MQTTMessage) -> None:
        try:
            _ = message.topic
        except UnicodeDecodeError:
            self.malformed += 1
            client.ack(message.mid, message.qos)
            return
        super()._on_message(client, userdata, message)
        if self._paused_on is None and self._queue.qsize() >= PAUSE_AT:
            self._pause()

    def _pause(self) -> None:
        connection = self._paho.socket()
        if connection is not None:
            self._paused_on = connection.fileno()
            self._loop.remove_reader(self._paused_on)

    def _resume(self) -> None:
        if self._paused_on is None or self._queue.qsize() > RESUME_AT:
            return
        descriptor = self._paused_on
        self._paused_on = None
        connection = self._paho.socket()
        if connection is not None and connection.fileno() == descriptor:
            self._loop.add_reader(descriptor, self._read)
            self._read()  # TLS may hold what the socket no longer has

    def _read(self) -> None:
        try:
            while self._paused_on is None:
                self._paho.loop_read()
                pending = getattr(self._paho.socket(), "pending", None)
                if pending is None or not pending():
                    return
        except Exception as error:  # noqa: BLE001 - as aiomqtt's own: whoever waits for the connection gets it
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


@contextlib.asynccontextmanager
async def linked(target: BrokerTarget, *, client_id: str, keep_session: bool) -> AsyncIterator[Link]:
    """A connection while the block runs. `keep_session`: the broker keeps subscriptions and messages while we are away.

    Raises:
        MqttError: There is no connection, the broker refused us, or the connection was lost; what it says is for a log.
        ConfigError: A certificate file cannot be used.
    """
    context = None if target.tls is None else tls_context(target.tls)  # anew each time: certificates are renewed
    if context is not None or not target.is_local:
        await _probe(target, context)
    link = Link(
        target.host,
        target.port,
        identifier=client_id,
        clean_session=not keep_session,
        username=target.username,
        password=target.password,
        tls_context=context,
        keepalive=KEEPALIVE_S,
        timeout=ANSWER_S,
        logger=_quiet(),
        socket_options=[
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ],  # or an acknowledgement holds back what follows it
    )
    link.pending_calls_threshold = 1000
    try:
        with _lost_as_mqtt_error():
            # Not `async with`: aiomqtt would wait ten seconds for a broker that hangs to take the DISCONNECT.
            await link.__aenter__()
            yield link
    finally:
        await link.close()


def _quiet() -> logging.Logger:
    """For paho, whose errors come as exceptions as well."""
    logger = logging.getLogger(f"{__name__}.paho")
    logger.setLevel(logging.CRITICAL)
    return logger


@contextlib.contextmanager
def _lost_as_mqtt_error() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # paho lets some of the socket's own through
        raise MqttError(str(error) or type(error).__name__) from error


async def _probe(target: BrokerTarget, context: Any) -> None:
    """See whether somebody listens there whom we trust: aiomqtt dials in a thread that no cancellation reaches."""
    try:
        async with asyncio.timeout(DIAL_S):
            _, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    except TimeoutError as error:
        raise MqttError(f"no connection within {DIAL_S:g} s") from error
    except (OSError, ValueError) as error:
        raise MqttError(str(error) or type(error).__name__) from error
    writer.transport.abort()
