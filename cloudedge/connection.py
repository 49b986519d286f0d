"""One WebSocket connection carrying envelopes, the same class at both ends.

Framing is upstream's (channel contract 1.3): text messages of one envelope and a newline; fragments, empty final
fragments and binary opcodes are taken as well. Both directions are bounded: a full inbox stops reading from the
socket, a full socket makes `send` wait. A server holds ten thousand of these, so nothing is made before it is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal

from cloudedge.errors import ConnectionLost, MalformedMessage
from cloudedge.lean import postponed_imports
from cloudedge.message import MAX_MESSAGE_BYTES, Message, decode, encode, new_message, reply
from cloudedge.traffic import Traffic, tell, told

with postponed_imports():
    from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

if TYPE_CHECKING:
    from picows.picows import WSCloseInfo

__all__ = ["CONFIRMS", "Connection"]

logger = logging.getLogger(__name__)

INBOX_MESSAGES: Final = 256
INBOX_BYTES: Final = 4 * 1024 * 1024
"""Reading stops at either; one message may be larger."""
FRAGMENT_BYTES: Final = 64 * 1024
"""Longer messages are sent in fragments: the buffer a peer reads a frame into stays as large as the largest one."""
_CONTROL_OPERATIONS: Final = frozenset({"ping", "pong", "config"})
_CLOSE_TIMEOUT_S: Final = 2.0
_PROBE: Final = b"arrived?"
_probe_numbers: Final = itertools.count()
_TOO_BIG: Final = re.compile(r"a message has more than (\d{1,18}) bytes")
CONFIRMS: Final = "Kubetwin-Confirms"
"""Header of the answer to an upgrade: the operations that this cloud confirms with a response each."""


class Connection(WSListener):
    """Send and receive messages. Owned by one task that receives; any task may send."""

    __slots__ = (
        "_closed",
        "_closers",
        "_fragments",
        "_goodbye",
        "_hung_up",
        "_inbox",
        "_inbox_bytes",
        "_max_bytes",
        "_on_open",
        "_probes",
        "_reading_paused",
        "_receivers",
        "_senders",
        "_transport",
        "_writable",
        "heard_at",
        "malformed",
        "on_writable",
        "peer",
        "traffic",
    )

    def __init__(
        self,
        peer: str,
        on_open: Callable[[Connection], None] | None = None,
        *,
        max_bytes: int = MAX_MESSAGE_BYTES,
        traffic: Traffic | None = None,
    ) -> None:
        self.peer = peer
        """Whom we talk to, for logs: a node's name or the cloud's address."""
        self.traffic = traffic or Traffic()
        self.malformed = 0
        """Messages of this connection dropped because they were not envelopes."""
        self.heard_at = 0.0
        """When the last frame came, in the event loop's time."""
        self.on_writable: Callable[[], None] | None = None
        """Called when the socket takes more again after `can_send` was False."""
        self._max_bytes = max_bytes
        self._on_open = on_open
        self._transport: WSTransport | None = None
        self._inbox: list[Message] = []
        self._inbox_bytes = 0
        self._fragments: bytearray | None = None
        self._probes: dict[bytes, asyncio.Future[None]] | None = None
        self._receivers: list[asyncio.Future[None]] = []
        self._senders: list[asyncio.Future[None]] = []
        self._closers: list[asyncio.Future[None]] = []
        self._writable = True
        self._closed = False
        self._hung_up = False
        self._reading_paused = False
        self._goodbye = ""

    async def receive(self) -> Message:
        """The next message, in order of arrival.

        Raises:
            ConnectionLost: We hung up, or the connection is gone and every message that arrived has been handed out.
        """
        while not self._inbox or self._hung_up:
            if self._closed or self._hung_up:
                raise ConnectionLost(self._loss())
            await told(self._receivers)
        message = self._inbox.pop(0)
        self._inbox_bytes -= message.size
        if self._reading_paused and len(self._inbox) < INBOX_MESSAGES // 2 and self._inbox_bytes < INBOX_BYTES // 2:
            self._pause_reading(False)
        return message

    async def send(self, message: Message) -> None:
        """Hand one message to the socket, waiting while its buffer is full.

        Raises:
            ConnectionLost: The connection is gone. Returning does not mean that the message arrived.
        """
        while not self._writable and not self.is_closed:
            await told(self._senders)
        self.send_now(message)

    @property
    def can_send(self) -> bool:
        """Whether the socket's buffer has room."""
        return self._writable and not self.is_closed

    def send_now(self, message: Message) -> None:
        """Hand one message to the socket whatever its buffer holds.

        Raises:
            ConnectionLost: The connection is gone.
        """
        if self._transport is None or self.is_closed:
            raise ConnectionLost(self._loss())
        self._write(self._transport, encode(message))

    async def probe(self) -> None:
        """Returns when the other end has read everything that was sent before: it answers a ping that follows it.

        Raises:
            ConnectionLost: The connection is gone first.
        """
        if self._transport is None or self.is_closed:
            raise ConnectionLost(self._loss())
        if self._probes is None:
            self._probes = {}
        answered = asyncio.get_running_loop().create_future()
        payload = _PROBE + next(_probe_numbers).to_bytes(8, "big")  # none twice: an answer may be late
        self._probes[payload] = answered
        self._transport.send_ping(payload)
        try:
            await answered
        finally:
            self._probes.pop(payload, None)
        if self.is_closed:
            raise ConnectionLost(self._loss())

    def hang_up(self, code: WSCloseCode = WSCloseCode.OK, reason: str = "") -> None:
        """Say goodbye and start to close; nothing more is received, what the inbox has included."""
        self._hung_up = True
        tell(self._receivers)
        tell(self._senders)
        if self._transport is not None and not self._closed:
            self._transport.send_close(code, reason.encode("utf-8", "replace")[:120].decode("utf-8", "ignore").encode())
            self._transport.disconnect()

    async def close(self, code: WSCloseCode = WSCloseCode.OK, reason: str = "") -> None:
        """Say goodbye and close. Returns when the socket is gone, at the latest after two seconds."""
        if self._transport is None or self._closed:
            return
        self.hang_up(code, reason)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.wait_closed()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Drop the socket at once, as for a peer that does not answer."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    async def wait_closed(self) -> None:
        while not self._closed:
            await told(self._closers)

    @property
    def is_closed(self) -> bool:
        return self._closed or self._hung_up

    @property
    def confirms_uploads(self) -> bool:
        """Whether the cloud at the other end says that it answers every upload; upstream's answers none."""
        if self._transport is None:
            return False
        headers: Mapping[str, str] = self._transport.response.headers or {}
        return "upload" in headers.get(CONFIRMS, "").split()

    @property
    def end(self) -> Literal["closed", "silent", "cut"]:
        """How it ended: the other end said why, did not answer a ping, or the socket broke."""
        if self._goodbye:
            return "closed"
        sent = self._close_sent()
        return "silent" if sent and sent.code == WSCloseCode.GOING_AWAY else "cut"  # a code of picows' pings alone

    @property
    def takes_bytes(self) -> int:
        """The most that a message may have for the other end, which closed over a larger one; 0: it did not."""
        said = _TOO_BIG.search(self._goodbye)
        return int(said[1]) if said else 0

    @property
    def is_full(self) -> bool:
        """Whether reading has stopped because the inbox holds enough."""
        return self._reading_paused

    def peer_certificate(self) -> bytes:
        """The other end's, as DER; empty when there is none."""
        tls = self._transport.underlying_transport.get_extra_info("ssl_object") if self._transport is not None else None
        return (tls.getpeercert(binary_form=True) or b"") if tls is not None else b""

    def _loss(self) -> str:
        """In words, with the other end's own when it said goodbye."""
        why = self._goodbye
        if not why and self.end == "silent":
            why = ": it does not answer a ping"
        elif not why and not self._hung_up and (sent := self._close_sent()):
            why = f": {sent.reason:.200}"  # picows': a frame that is too large or breaks the protocol
        return f"connection to {self.peer} is closed{why}"

    def _close_sent(self) -> WSCloseInfo | None:
        handshake = self._transport.close_handshake if self._transport is not None else None
        return handshake.sent if handshake is not None else None

    # Called by picows.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.heard_at = asyncio.get_running_loop().time()
        on_open, self._on_open = self._on_open, None  # it may know us
        if on_open is not None:
            on_open(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        if frame.rsv1 or frame.rsv2 or frame.rsv3:  # no extension was agreed on (RFC 6455, 5.2)
            if not self._hung_up:
                self.traffic.broken += 1
                self._give_up(WSCloseCode.PROTOCOL_ERROR, "a frame with a reserved bit")
            return
        match frame.msg_type:
            case WSMsgType.TEXT | WSMsgType.BINARY | WSMsgType.CONTINUATION:
                if not self._hung_up:
                    self._take_fragment(transport, frame)
            case WSMsgType.PING:
                if self._writable:  # RFC 6455, 5.5.3: the newest ping alone may be answered
                    transport.send_pong(frame.get_payload_as_bytes())
                else:
                    self.traffic.unanswered += 1
            case WSMsgType.PONG:
                self._take_pong(frame)
            case WSMsgType.CLOSE:
                self._goodbye = f": {(frame.get_close_reason() or frame.get_close_code().name)!s:.200}"
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        """Asked by picows while it waits for the answer to a ping of its own; any pong will do."""
        if frame.msg_type != WSMsgType.PONG:
            return False
        self._take_pong(frame)
        return True

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 - picows names it
        self._closed = True
        for waiting in (self._receivers, self._senders, self._closers, list((self._probes or {}).values())):
            tell(waiting)
        self._fragments = None

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        tell(self._senders)
        if self.on_writable is not None:
            self.on_writable()

    def _take_pong(self, frame: WSFrame) -> None:
        if self._probes and (answered := self._probes.get(frame.get_payload_as_bytes())) and not answered.done():
            answered.set_result(None)

    def _take_fragment(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        self.traffic.received_bytes += len(payload)
        if (frame.msg_type == WSMsgType.CONTINUATION) != (self._fragments is not None):
            self.traffic.broken += 1
            self._give_up(WSCloseCode.PROTOCOL_ERROR, "a fragment out of order")
        elif frame.fin and self._fragments is None:
            self._take_message(transport, payload)
        elif len(self._fragments or b"") + len(payload) > self._max_bytes:
            self.traffic.too_big += 1
            self._give_up(WSCloseCode.MESSAGE_TOO_BIG, f"a message has more than {self._max_bytes} bytes")
        else:
            self._fragments = self._fragments or bytearray()
            self._fragments += payload
            if frame.fin:
                whole, self._fragments = bytes(self._fragments), None
                self._take_message(transport, whole)

    def _give_up(self, code: WSCloseCode, reason: str) -> None:
        logger.warning("%s: %s, closing", self.peer, reason)
        self._goodbye = f": {reason}"
        self._fragments = None
        self.hang_up(code, reason)

    def _take_message(self, transport: WSTransport, payload: bytes) -> None:
        try:
            message = decode(payload)
        except MalformedMessage as error:
            self.malformed += 1
            self.traffic.malformed += 1
            level = logging.WARNING if self.malformed == 1 else logging.DEBUG
            logger.log(level, "%s: message dropped (%d so far): %.512s", self.peer, self.malformed, error)
            if self._writable:  # whose answer it is cannot be said; upstream's cores log one like this
                self._write(transport, encode(_complaint(f"message dropped: {error!s:.200}")))
            return
        if message.route.operation in _CONTROL_OPERATIONS:  # never passed on (channel contract 1.3)
            if message.route.operation != "pong":
                if self._writable:
                    self._write(transport, encode(reply(message, content="ack")))
                else:
                    self.traffic.unanswered += 1
            return
        self._inbox.append(message)
        self._inbox_bytes += message.size
        tell(self._receivers)
        if not self._reading_paused and (len(self._inbox) >= INBOX_MESSAGES or self._inbox_bytes >= INBOX_BYTES):
            self._pause_reading(True)

    def _write(self, transport: WSTransport, payload: bytes) -> None:
        self.traffic.sent_bytes += len(payload)
        for start in range(0, len(payload), FRAGMENT_BYTES):
            end = start + FRAGMENT_BYTES
            kind = WSMsgType.CONTINUATION if start else WSMsgType.TEXT
            transport.send(kind, payload[start:end], fin=end >= len(payload))

    def _pause_reading(self, pause: bool) -> None:
        if self._transport is None or self.is_closed:
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
        if self._transport is None or self.is_closed or self._reading_paused:
            return
        transport = self._transport.underlying_transport
        read = getattr(transport, "_do_read", None)
        if read is not None and not transport.is_closing():
            read()


def _complaint(text: str) -> Message:
    """An error that answers no message in particular: without source, group and resource (channel contract 1.1)."""
    return new_message(source="", group="", operation="error", resource="", content=text)
