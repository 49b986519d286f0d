"""One WebSocket connection carrying envelopes, the same class at both ends.

Framing is upstream's (channel contract 1.3): text messages of one envelope and a newline; fragments, empty final
fragments and binary opcodes are taken as well. Both directions are bounded: a full inbox stops reading from the
socket, a full socket makes `send` wait.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from cloudedge.errors import ConnectionLost, ConnectionRefused, MalformedMessage
from cloudedge.lean import postponed_imports
from cloudedge.message import MAX_MESSAGE_BYTES, Message, decode, encode, reply

with postponed_imports():
    from picows import (
        WSCloseCode,
        WSError,
        WSFrame,
        WSListener,
        WSMsgType,
        WSTransport,
        WSUpgradeRequest,
        WSUpgradeResponse,
        WSUpgradeResponseWithListener,
        ws_connect,
        ws_create_server,
    )

__all__ = ["PROJECT_ID", "Connection", "Refusal", "connect", "serve"]

logger = logging.getLogger(__name__)

PROJECT_ID: Final = "e632aba927ea4ac2b575ec1603d56f10"
"""Upstream's default; informational."""
INBOX_MESSAGES: Final = 256
_CONTROL_OPERATIONS: Final = frozenset({"ping", "pong", "config"})
_CLOSE_TIMEOUT_S: Final = 2.0
_PING_IDLE_S: Final = 10.0


class Connection(WSListener):
    """Send and receive messages. Owned by one task that receives; any task may send."""

    def __init__(self, peer: str, on_open: Callable[[Connection], None] | None = None) -> None:
        self.peer = peer
        """Whom we talk to, for logs: a node's name or the cloud's address."""
        self.malformed = 0
        """Messages dropped because they were not envelopes."""
        self._on_open = on_open
        self._transport: WSTransport | None = None
        self._inbox: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._fragments = bytearray()
        self._reading_paused = False
        self._goodbye = ""

    async def receive(self) -> Message:
        """The next message, in order of arrival.

        Raises:
            ConnectionLost: The connection is gone and every message that arrived has been handed out.
        """
        while not self._inbox:
            if self._closed.is_set():
                raise ConnectionLost(self._loss())
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        if self._reading_paused and len(self._inbox) < INBOX_MESSAGES // 2:
            self._pause_reading(False)
        return message

    async def send(self, message: Message) -> None:
        """Hand one message to the socket, waiting while its buffer is full.

        Raises:
            ConnectionLost: The connection is gone. Returning does not mean that the message arrived.
        """
        if not self._writable.is_set():
            await self._writable.wait()
        if self._transport is None or self._closed.is_set():
            raise ConnectionLost(self._loss())
        self._transport.send(WSMsgType.TEXT, encode(message))

    async def close(self, code: WSCloseCode = WSCloseCode.OK, reason: str = "") -> None:
        """Say goodbye and close. Returns when the socket is gone, at the latest after two seconds."""
        transport = self._transport
        if transport is None or self._closed.is_set():
            return
        transport.send_close(code, reason.encode()[:120])
        transport.disconnect()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._closed.wait()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Drop the socket at once, as for a peer that does not answer."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    async def wait_closed(self) -> None:
        await self._closed.wait()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def peer_certificate(self) -> Mapping[str, Any] | None:
        """What `SSLObject.getpeercert()` gives for the other end."""
        if self._transport is None:
            return None
        tls = self._transport.underlying_transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert()

    def _loss(self) -> str:
        """In words, with the other end's own when it said goodbye."""
        return f"connection to {self.peer} is closed{self._goodbye}"

    # Called by picows.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if self._on_open is not None:
            self._on_open(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        match frame.msg_type:
            case WSMsgType.TEXT | WSMsgType.BINARY | WSMsgType.CONTINUATION:
                self._take_fragment(transport, frame)
            case WSMsgType.CLOSE:
                self._goodbye = f": {frame.get_close_reason() or frame.get_close_code().name}"
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 - picows names it
        self._closed.set()
        self._arrived.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take_fragment(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if frame.fin and not self._fragments:
            self._take_message(transport, payload)
            return
        if len(self._fragments) + len(payload) > MAX_MESSAGE_BYTES:
            logger.warning("%s: message over %d bytes, closing", self.peer, MAX_MESSAGE_BYTES)
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
            return
        self._fragments += payload
        if frame.fin:
            whole = bytes(self._fragments)
            self._fragments.clear()
            self._take_message(transport, whole)

    def _take_message(self, transport: WSTransport, payload: bytes) -> None:
        try:
            message = decode(payload)
        except MalformedMessage as error:
            self.malformed += 1
            level = logging.WARNING if self.malformed == 1 else logging.DEBUG
            logger.log(level, "%s: message dropped (%d so far): %s", self.peer, self.malformed, error)
            return
        if message.route.operation in _CONTROL_OPERATIONS:  # never passed on (channel contract 1.3)
            if message.route.operation != "pong":
                transport.send(WSMsgType.TEXT, encode(reply(message, content="ack")))
            return
        self._inbox.append(message)
        self._arrived.set()
        if len(self._inbox) >= INBOX_MESSAGES and not self._reading_paused:
            self._pause_reading(True)

    def _pause_reading(self, pause: bool) -> None:
        if self._transport is None or self._closed.is_set():
            return
        self._reading_paused = pause
        if pause:
            self._transport.underlying_transport.pause_reading()
        else:
            self._transport.underlying_transport.resume_reading()
            asyncio.get_running_loop().call_soon(self._read_leftovers)

    def _read_leftovers(self) -> None:
        """Have the TLS layer hand out what it had read before the pause.

        aiofastnet 1.2 (picows' transport) looks at it only when the socket has more, so a burst that ends while reading
        is paused would stay there until the peer sends something else.
        """
        if self._transport is None or self._closed.is_set() or self._reading_paused:
            return
        transport = self._transport.underlying_transport
        read = getattr(transport, "_do_read", None)
        if read is not None and not transport.is_closing():
            read()


class Refusal(Exception):
    """Why an upgrade request is not accepted; answered as HTTP `status` before the upgrade."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def connect(
    url: str,
    *,
    node: str,
    ssl_context: ssl.SSLContext,
    project_id: str = PROJECT_ID,
    timeout_s: float = 30.0,
    pong_timeout_s: float | None = None,
) -> Connection:
    """Dial CloudHub as `node`. `url` is `wss://host:port`; the path is upstream's.

    With `pong_timeout_s` a ping goes out after ten seconds (or after `pong_timeout_s`, if longer) without a word, and
    a cloud that leaves it unanswered for `pong_timeout_s` counts as gone: how a path that fell silent is noticed.

    Raises:
        ConnectionRefused: No connection, no TLS, or no upgrade; says which.
    """
    path = f"{url.rstrip('/')}/{project_id}/{node}/events"
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await ws_connect(
                lambda: Connection(url),
                path,
                ssl_context=ssl_context,
                websocket_handshake_timeout=timeout_s,
                max_frame_size=MAX_MESSAGE_BYTES,
                max_redirects=0,
                enable_auto_ping=pong_timeout_s is not None,
                auto_ping_idle_timeout=max(_PING_IDLE_S, pong_timeout_s or 0.0),
                auto_ping_reply_timeout=pong_timeout_s or 0.0,
                extra_headers={"node_id": node, "project_id": project_id, "ConnectionUse": "msg"},
            )
    except TimeoutError as error:
        raise ConnectionRefused(f"{url}: no answer within {timeout_s:g} s") from error
    except ssl.SSLError as error:  # before OSError, which it is a kind of
        raise ConnectionRefused(f"{url}: TLS: {error}") from error
    except (OSError, WSError) as error:
        raise ConnectionRefused(f"{url}: {error}") from error
    if connection is None:  # closed between TLS and upgrade, which is how a TLS 1.3 server refuses our certificate
        raise ConnectionRefused(f"{url}: closed before the upgrade; is the certificate of this cloud's CA?")
    return cast(Connection, connection)


async def serve(
    accept: Callable[[Mapping[str, str]], str],
    on_open: Callable[[Connection], None],
    *,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext,
) -> asyncio.Server:
    """Listen for nodes. `accept` looks at the upgrade headers and returns the node's name or raises `Refusal`, which it
    logs itself; `on_open` gets every accepted connection, which has its peer's certificate by then.
    """

    def route(request: WSUpgradeRequest) -> Connection | WSUpgradeResponseWithListener:
        try:
            node = accept(request.headers)
        except Refusal as refusal:
            response = WSUpgradeResponse.create_error_response(refusal.status, str(refusal).encode())
            return WSUpgradeResponseWithListener(response, None)
        return Connection(node, on_open)

    return await ws_create_server(
        route,
        host,
        port,
        ssl=ssl_context,
        websocket_handshake_timeout=30,
        max_frame_size=MAX_MESSAGE_BYTES,
    )
