"""Where nodes dial in: takes sockets, and sees each through TLS and the WebSocket upgrade in bounded time and number.

Until its upgrade is done a client has proved nothing, so these are limited for each address, and one that is slow holds
up its own address only. aiofastnet's own server has no such limits, and fails in a loop once the process is out of file
descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Final

from msgspec import Struct

from cloudedge.connection import CONFIRMS, Connection
from cloudedge.errors import without_frames
from cloudedge.lean import postponed_imports
from cloudedge.message import MAX_MESSAGE_BYTES
from cloudedge.traffic import Traffic

with postponed_imports():
    import aiofastnet
    from picows import WSAutoPingStrategy, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
    from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its server is this and aiofastnet's

__all__ = ["Listener", "ListenerLimits", "Refusal", "serve"]

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
SHUTDOWN_S: Final = 5.0
"""For a peer to answer that TLS is over."""
READ_BUFFER_BYTES: Final = 2 * 1024
"""At first; it grows to hold the largest frame. Idle nodes send 200 bytes at a time."""
TLS_BUFFER_BYTES: Final = 2 * (16 * 1024 + 64)
"""Each way: two TLS records. With aiofastnet's sixteen, buffers are mapped one by one, and cost whole pages."""
ACCEPT_PAUSE_S: Final = 0.5
MAX_NAMED: Final = 1024
"""Addresses that are named in the log; there is no end to those of strangers."""


class ListenerLimits(Struct, frozen=True):
    max_message_bytes: int = MAX_MESSAGE_BYTES
    upgrading: int = 128
    """Clients of one address between TCP and upgrade; further ones of it wait for their turn."""
    waiting: int = 4096
    """Clients of all addresses that have no upgrade yet. The next takes the place of one of the address that has most,
    or is closed at once if that is its own.
    """
    upgrade_s: float = 10.0
    """For TLS, and again for the upgrade."""


class Refusal(Exception):
    """Why an upgrade request is not accepted; answered as HTTP `status` before the upgrade."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Listener:
    """Owned by who called `serve`, which closes it."""

    def __init__(
        self,
        sockets: list[socket.socket],
        accept: Callable[[Mapping[str, str]], str],
        on_open: Callable[[Connection], None],
        ssl_context: ssl.SSLContext,
        limits: ListenerLimits,
        confirms_uploads: bool,
    ) -> None:
        self.sockets = sockets
        self.traffic = Traffic()
        self.refused: Counter[str] = Counter()
        """Clients that did not come as far as `accept`, by why."""
        self._accept_headers = accept
        self._on_open = on_open
        self._ssl_context = ssl_context
        self._limits = limits
        self._confirms_uploads = confirms_uploads
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._clients: Counter[str] = Counter()
        """Without an upgrade, by address."""
        self._named: set[tuple[str, str]] = set()
        self._log = _PeerLog(logging.getLogger("picows.server"), self.traffic)
        self._accepting = [asyncio.create_task(self._accept(sock), name="accept nodes") for sock in sockets]
        self._greeting: set[asyncio.Task[None]] = set()
        self._queued: dict[str, dict[asyncio.Task[None], None]] = {}
        """The same by address, oldest first."""
        self._ending: set[asyncio.Task[None]] = set()
        """Those that had to make room."""

    @property
    def upgrading(self) -> int:
        """Clients without an upgrade."""
        return len(self._greeting)

    def close(self) -> None:
        """Take no more clients; those that have their upgrade stay."""
        for task in (*self._accepting, *self._greeting):
            task.cancel()
        for sock in self.sockets:
            sock.close()

    async def wait_closed(self) -> None:
        if tasks := [*self._accepting, *self._greeting, *self._ending]:
            await asyncio.wait(tasks)

    async def _accept(self, listening: socket.socket) -> None:
        loop, complaint = asyncio.get_running_loop(), ""
        while True:
            try:
                client, address = await loop.sock_accept(listening)
                complaint = ""
            except OSError as error:
                if error.errno == errno.EBADF:  # closed
                    return
                self.refused["no file descriptor"] += 1
                if complaint != (complaint := str(error)):
                    logger.error("a node could not be taken, trying again: %s; raise the limit of open files", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._greeting) >= self._limits.waiting and not self._make_room(str(address[0])):
                self._refuse("too many at once", address[0])
                client.close()
                await asyncio.sleep(0)  # the next may be there already, and nobody else would have a turn
                continue
            task = asyncio.create_task(self._greet(client, str(address[0])), name=f"greet {address[0]}")
            self._greeting.add(task)
            self._queued.setdefault(str(address[0]), {})[task] = None
            task.add_done_callback(partial(self._greeted, client, str(address[0])))

    def _make_room(self, address: str) -> bool:
        """Let go of a client of the address that has most, if that is another one: it must not keep out all others."""
        most = max(self._queued, key=lambda one: len(self._queued[one]))
        if most == address or len(self._queued[most]) <= len(self._queued.get(address, ())) + 1:
            return False
        victim = next(reversed(self._queued[most]))
        del self._queued[most][victim]
        victim.cancel()
        self._greeting.discard(victim)
        self._ending.add(victim)
        self._refuse("too many at once", most)
        return True

    async def _greet(self, client: socket.socket, address: str) -> None:
        """TLS and upgrade of one client."""
        turn = self._turns.setdefault(address, asyncio.Semaphore(self._limits.upgrading))
        self._clients[address] += 1
        transport: asyncio.Transport | None = None
        try:
            async with turn:
                answer = _Answer()
                transport, protocol = await aiofastnet.connect_accepted_socket(
                    asyncio.get_running_loop(),
                    lambda: self._protocol(answer),
                    client,
                    ssl=self._ssl_context,
                    ssl_handshake_timeout=self._limits.upgrade_s,
                    ssl_shutdown_timeout=SHUTDOWN_S,
                    ssl_incoming_bio_size=TLS_BUFFER_BYTES,
                    ssl_outgoing_bio_size=TLS_BUFFER_BYTES,
                )
                await protocol.wait_until_handshake_complete()
                if answer.request is None:
                    self._refuse("no upgrade request", address)
                else:
                    answer.request.headers.clear()  # they would stay as long as the connection
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._refuse("no upgrade in time", address)
            else:
                self._refuse("no TLS", address, f": {_wrong_with_tls(error)}")
            without_frames(error)
        except asyncio.CancelledError:
            if transport is not None:
                transport.abort()
            raise
        except Exception:  # one client must not end the listener
            logger.exception("a client from %s failed", address)
            if transport is not None:
                transport.abort()
        finally:
            self._clients[address] -= 1
            if not self._clients[address]:
                del self._clients[address], self._turns[address]

    def _greeted(self, client: socket.socket, address: str, task: asyncio.Task[None]) -> None:
        self._greeting.discard(task)
        self._ending.discard(task)
        queued = self._queued.get(address, {})
        queued.pop(task, None)
        if not queued:
            self._queued.pop(address, None)
        if task.cancelled():  # perhaps before its first step
            client.close()

    def _refuse(self, why: str, address: str, detail: str = "") -> None:
        """Counted, and said once for an address: port scanners and monitors come for ever."""
        self.refused[why] += 1
        if (why, address) not in self._named and len(self._named) < MAX_NAMED:
            self._named.add((why, address))
            logger.warning("a client from %s was not taken, %s%.200s", address, why, detail)

    def _protocol(self, answer: _Answer) -> WSProtocol:
        return WSProtocol(
            None,  # host, path: a client's
            None,
            False,  # not a client
            lambda request: self._upgrade(request, answer),
            self._log,
            True,  # an exception of ours ends the connection
            self._limits.upgrade_s,
            False,  # no pings: upstream's cloud sends none, and waits for keepalives
            0.0,
            0.0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # pings are answered by `Connection`
            self._limits.max_message_bytes,
            None,
            READ_BUFFER_BYTES,
        )

    def _upgrade(self, request: WSUpgradeRequest, answer: _Answer) -> Connection | WSUpgradeResponseWithListener:
        answer.request = request
        try:
            node = self._accept_headers(request.headers)
        except Refusal as refusal:
            body = str(refusal).encode("utf-8", "backslashreplace")
            response = WSUpgradeResponse.create_error_response(refusal.status, body)
            return WSUpgradeResponseWithListener(response, None)
        connection = Connection(node, self._on_open, max_bytes=self._limits.max_message_bytes, traffic=self.traffic)
        if not self._confirms_uploads:
            return connection
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response({CONFIRMS: "upload"}), connection)


def _wrong_with_tls(error: OSError) -> str:
    """For who has to do something about it: at the node, most often."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if not isinstance(error, ssl.SSLError):
        return str(error) or "it hung up"
    reason = error.reason or str(error)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate"
    return f"{reason}; does it trust this cloud's CA?" if "ALERT" in reason else reason


class _Answer:
    """The upgrade request, once one came that could be read."""

    __slots__ = ("request",)

    def __init__(self) -> None:
        self.request: WSUpgradeRequest | None = None


class _PeerLog(logging.LoggerAdapter[logging.Logger]):
    """What picows logs. An adapter, or it would make a logger for each connection; and what a peer does wrong is
    counted: nothing here has to be done about it.
    """

    def __init__(self, log: logging.Logger, traffic: Traffic) -> None:
        super().__init__(log)
        self._traffic = traffic

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Who comes and goes is the hub's to say."""
        self.debug(msg, *args, **kwargs)

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        if args and isinstance(args[0], tuple) and args[0] and args[0][0] == 1009:
            self._traffic.too_big += 1
        else:
            self._traffic.broken += 1
        self.debug(msg, *args, **kwargs)


async def serve(
    accept: Callable[[Mapping[str, str]], str],
    on_open: Callable[[Connection], None],
    *,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext,
    limits: ListenerLimits | None = None,
    confirms_uploads: bool = False,
) -> Listener:
    """Listen for nodes. `accept` looks at the upgrade headers and returns the node's name or raises `Refusal`, which it
    logs itself; `on_open` gets every accepted connection, which has its peer's certificate by then.
    `confirms_uploads`: nodes are told to keep an upload until it is answered, with a response, or with an error if
    nobody takes it.

    Raises:
        OSError: The address cannot be listened on.
    """
    # A node comes back after days or with a new certificate: nothing to resume, and a ticket is memory and bytes.
    ssl_context.num_tickets = 0
    addresses = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(addresses):
            sock = socket.create_server(address, family=family, backlog=BACKLOG)
            sock.setblocking(False)
            sockets.append(sock)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return Listener(sockets, accept, on_open, ssl_context, limits or ListenerLimits(), confirms_uploads)
