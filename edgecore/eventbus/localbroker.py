"""The internal broker: amqtt with bounded queues, for KubeEdge's topics.

amqtt 0.12 as it is refuses what clients publish on topics that begin with `$`, which all topics of device twins do. It
also starts a task for each message and subscriber, however many wait; forgets the session of a client without a
password; and gives a new client what others have subscribed to. Connections, packets, sessions and subscriptions are
amqtt's; what is delivered, to whom, and how much may wait is decided here (docs/adr/0016-eventbus-brokers.md).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from functools import partial
from typing import Any, Final

import amqtt.broker
from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, MQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session
from msgspec import Struct

from edgecore.eventbus.brokerwire import BrokerSettings
from edgecore.eventbus.topics import topic_problem

__all__ = ["LocalBroker"]

logger = logging.getLogger(__name__)

CONNECT_S: Final = 10.0
"""How long a client may take to say who it is."""
SLOW_S: Final = 1.0
"""How long publishers wait for a subscriber that does not read; then it loses messages until it has caught up."""
_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)  # Linux has it
MAX_PACKET_BYTES: Final = 4 * 1024 * 1024
MAX_RETAINED: Final = 10_000
MAX_RETAINED_BYTES: Final = 32 * 1024 * 1024
MAX_UNREAD: Final = 64
MAX_SESSIONS: Final = 512
SESSION_EXPIRY_S: Final = 24 * 3600


class _Delivery(Struct, frozen=True):
    topic: str
    data: bytes
    qos: int
    retain: bool = False


class _Waiting:
    """What one client has not been sent yet. The oldest goes first when there is no room."""

    def __init__(self, client_id: str, size: int) -> None:
        self._client_id = client_id
        self._size = size
        self._items: deque[_Delivery] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._slow = False
        self.owner: BrokerProtocolHandler | None = None
        """The connection it is sent over; None: the client is away."""
        self.dropped = 0

    async def put(self, item: _Delivery) -> None:
        """Waits for a client that reads slowly, but not again and again for one that does not read."""
        if len(self._items) >= self._size and self.owner is not None and not self._slow:
            self._room.clear()
            try:
                async with asyncio.timeout(SLOW_S):
                    await self._room.wait()
            except TimeoutError:
                self._slow = True
                logger.warning("client %s does not keep up: its oldest messages are dropped", self._client_id)
        while len(self._items) >= self._size:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._ready.set()

    async def first(self) -> _Delivery:
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        return self._items[0]

    def done(self, item: _Delivery) -> None:
        if self._items and self._items[0] is item:
            self._items.popleft()
        self._room.set()
        if self._slow and not self._items:
            self._slow = False
            logger.info("client %s keeps up again; %d messages were dropped", self._client_id, self.dropped)


class _Reader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt is untyped
    """Caps what a client may declare, and stops reading while much of what it sent waits."""

    session: Session | None = None

    def __init__(self, reader: asyncio.StreamReader, connection: Any) -> None:
        super().__init__(reader)
        self._connection = connection

    async def read(self, n: int = -1) -> bytes:
        if n > MAX_PACKET_BYTES:
            raise _TooLarge(f"{n} bytes are more than the {MAX_PACKET_BYTES} a packet may have")
        # Short waits, and only for a client that sends faster than others can be given it.
        while self.session is not None and self.session.delivered_message_queue.qsize() >= MAX_UNREAD:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        data: bytes = await super().read(n)
        if _QUICKACK is not None:
            # Most clients leave Nagle's algorithm on: what follows their PUBACK would wait 40 ms for our kernel's ACK.
            self._connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return data


class _TooLarge(Exception):
    """Ends the connection; amqtt itself would go on in the middle of the packet."""


class _Handler(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt is untyped
    def handle_read_timeout(self) -> None:
        """Nothing for the time the client has set itself: it is gone (MQTT 3.1.1, 3.1.2.10)."""
        if self.reader is not None:
            self.reader.feed_eof()


amqtt.broker.BrokerProtocolHandler = _Handler  # the broker makes its handlers by that name


def _problem(topic: str) -> str:
    return "it is the broker's own" if topic.startswith("$SYS") else topic_problem(topic)


class LocalBroker(Broker):  # type: ignore[misc]  # amqtt is untyped
    def __init__(self, settings: BrokerSettings) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        listener = ListenerConfig(bind=f"{host}:{settings.port}", max_connections=MAX_SESSIONS)
        super().__init__(
            BrokerConfig(listeners={"default": listener}, plugins={}, session_expiry_interval=SESSION_EXPIRY_S)
        )
        self._settings = settings
        self._queues: dict[str, _Waiting] = {}
        self._retained_bytes = 0

    @property
    def port(self) -> int:
        instance = self._servers["default"].instance
        return int(next(iter(instance.sockets)).getsockname()[1])

    # Connections

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        try:
            await self._client_connected(
                listener_name, _Reader(reader, writer.get_extra_info("socket")), StreamWriterAdapter(writer)
            )
        except Exception as error:  # noqa: BLE001 - one client; the broker goes on
            logger.warning("a client was cut off: %s", error or type(error).__name__)
        finally:
            writer.close()

    async def _create_server_instance(
        self,
        listener_name: str,
        listener_type: Any,  # noqa: ARG002 - as amqtt calls it, and the next
        address: str | None,
        port: int,
        ssl_context: Any,  # noqa: ARG002
    ) -> asyncio.Server:
        return await asyncio.start_server(
            partial(self.stream_connected, listener_name=listener_name),
            (address or "").strip("[]"),
            port,
            reuse_address=True,
        )

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        try:
            async with asyncio.timeout(CONNECT_S):
                handler, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        except TimeoutError as error:
            raise AMQTTError(f"{remote_address}:{remote_port} did not say who it is") from error
        if session.client_id not in self._sessions and len(self._sessions) >= MAX_SESSIONS:
            raise MQTTError(f"there are {MAX_SESSIONS} sessions already")
        session.keep_alive = session.keep_alive * 3 // 2
        if isinstance(reader, _Reader):
            reader.session = session
        return handler, session

    async def _authenticate(self, session: Session, _: ListenerConfig) -> bool:  # noqa: ARG002
        """Who can open a connection may come in: the broker listens on loopback."""
        return True

    async def _client_message_loop(self, client_session: Session, handler: BrokerProtocolHandler) -> None:
        if client_session.transitions.state != "connected":  # a connection that this one takes over from has just ended
            client_session.transitions.connect()
        waiting = self._waiting(client_session)
        waiting.owner = handler
        pump = asyncio.create_task(self._deliver(waiting, handler), name=f"deliver to {client_session.client_id}")
        try:
            await super()._client_message_loop(client_session, handler)
        finally:
            if waiting.owner is handler:
                waiting.owner = None
            pump.cancel()
            await asyncio.wait([pump])

    async def _cleanup_session(self, client_id: str) -> None:
        self._queues.pop(client_id, None)
        await super()._cleanup_session(client_id)

    async def _delete_session(self, client_id: str) -> None:
        _, before = self._sessions.get(client_id, (None, None))
        if before is not None:  # one connection for a client id (MQTT 3.1.1, 3.1.4); amqtt would leave the other open
            await before.handle_connection_closed()
            await self._stop_handler(before)
        self._queues.pop(client_id, None)
        await super()._delete_session(client_id)

    async def _handle_disconnect(
        self, client_session: Session, handler: BrokerProtocolHandler, disconnect_waiter: asyncio.Future[Any]
    ) -> None:
        _, now = self._sessions.get(client_session.client_id, (None, None))
        if now is handler:
            await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        else:  # taken over: the session is another connection's
            await self._stop_handler(handler)

    async def _handle_unsubscription(
        self, client_session: Session, handler: BrokerProtocolHandler, unsubscribe_waiter: asyncio.Future[Any]
    ) -> None:
        """amqtt keeps a filter that nobody has any more, and each message is compared with it."""
        await super()._handle_unsubscription(client_session, handler, unsubscribe_waiter)
        for filter_ in unsubscribe_waiter.result().topics:
            if self._subscriptions.get(filter_) == []:
                del self._subscriptions[filter_]

    # Messages

    async def _handle_message_delivery(
        self, client_session: Session, handler: BrokerProtocolHandler, wait_deliver: asyncio.Future[Any]
    ) -> bool:
        message = wait_deliver.result()
        if message is None:
            return True
        problem = _problem(message.topic)
        if problem:
            logger.warning("client %s is cut off: topic %r: %s", client_session.client_id, message.topic, problem)
            await handler.handle_connection_closed()
            return True
        data = bytes(message.data)
        if message.publish_packet is not None and message.publish_packet.retain_flag:
            await self.retain_message(client_session, message.topic, data, message.qos)
        await self._distribute(message.topic, data, message.qos or 0)
        return True

    async def _broadcast_message(
        self,
        session: Session | None,  # noqa: ARG002 - as amqtt calls it, for wills
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        if topic and not _problem(topic):
            await self._distribute(topic, bytes(data or b""), force_qos or 0)

    async def _distribute(self, topic: str, data: bytes, qos: int) -> None:
        """To each client once, with the lesser of the publisher's QoS and the best of its subscriptions that match."""
        best: dict[str, tuple[Session, int]] = {}
        for filter_, subscriptions in self._subscriptions.items():
            if self._matches(topic, filter_):
                for session, granted in subscriptions:
                    key = session.client_id or ""
                    best[key] = (session, max(granted, best[key][1] if key in best else 0))
        for session, granted in best.values():
            effective = min(qos, granted)
            if session.transitions.state == "connected" or (effective and not session.clean_session):
                await self._waiting(session).put(_Delivery(topic, data, effective))

    async def _deliver(self, waiting: _Waiting, handler: BrokerProtocolHandler) -> None:
        """One at a time, so that their order is kept; what is not acknowledged is sent again, also after a cut."""
        while True:
            item = await waiting.first()
            try:
                await handler.mqtt_publish(item.topic, item.data, item.qos, item.retain)
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001 - of a connection that ends
                logger.debug("not delivered: %s", error)
                await asyncio.sleep(0.1)
                continue
            waiting.done(item)

    def _waiting(self, session: Session) -> _Waiting:
        client_id = session.client_id or ""
        found = self._queues.get(client_id)
        if found is None:
            found = self._queues[client_id] = _Waiting(client_id, self._settings.queue_size)
        return found

    # Retained messages

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        before = self._retained_messages.get(topic_name or "")
        size = self._retained_bytes + len(data or b"") - (len(before.data) if before else 0)
        if data and (size > MAX_RETAINED_BYTES or (before is None and len(self._retained_messages) >= MAX_RETAINED)):
            logger.warning("%s is not retained: too much is already", topic_name)
            return
        await super().retain_message(source_session, topic_name, data, qos)
        self._retained_bytes = size

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        filter_, qos = subscription
        waiting = self._waiting(session)
        if waiting.owner is None:
            return  # amqtt asks this for every filter of anybody, when a client connects
        for topic, retained in list(self._retained_messages.items()):
            if self._matches(topic, filter_):
                await waiting.put(_Delivery(topic, bytes(retained.data), min(qos, retained.qos or 0), retain=True))
