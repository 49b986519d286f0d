"""The connection to CloudHub, from the first dial to the last message.

One connection at a time. It is lost when the socket says so, when a ping stays unanswered, or when a write does not get
through; then the next try is due within a second, and after each failure twice as late, at most five seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from cloudedge import ConnectionLost, ConnectionRefused, Message, new_message
from cloudedge.connection import Connection, connect
from cloudedge.message import now_ms
from cloudedge.tls import client_context
from edgecore.bus import Bus, CloudConnected, CloudLink, CloudLost, Upstream
from edgecore.config import EdgeHubConfig
from edgecore.edgehub.ratelimit import TokenBucket
from edgecore.edgehub.routing import route

__all__ = ["EdgeHub", "keepalive", "retry_delays"]

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 5.0
STABLE_AFTER_S: Final = 5.0
"""A connection that lasted this long was a good one: the next retry starts from the beginning."""


class EdgeHub:
    def __init__(self, config: EdgeHubConfig, *, node: str, bus: Bus) -> None:
        self._config = config
        self._node = node
        self._bus = bus
        self._url = f"wss://{config.websocket.server}"
        self._connection: Connection | None = None
        self._limit = TokenBucket(config.message_qps, config.message_burst)
        self._last_problem = ""
        self._lost = ""
        """Why the last connection ended."""
        self._since_ms = now_ms()
        self._not_taken: dict[str, int] = {}
        bus.subscribe(Upstream, self._send)

    @property
    def link(self) -> CloudLink:
        connected = self._connection is not None
        trouble = "" if connected else self._last_problem or self._lost
        return CloudLink(self._url, connected, self._since_ms, trouble)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        loop = asyncio.get_running_loop()
        delays = retry_delays()
        while True:
            try:
                connection = await self._dial()
                if connection is not None:
                    since = loop.time()
                    await self._use(connection)
                    if loop.time() - since >= STABLE_AFTER_S:
                        delays = retry_delays()
            except Exception as error:  # nothing that goes wrong here may end the process
                self._lost = f"the connection failed in an unexpected way: {error!r}"
                logger.exception("the connection failed in an unexpected way; connecting again")
            await asyncio.sleep(next(delays))

    async def _dial(self) -> Connection | None:
        config = self._config
        try:
            # Read anew each time: a renewed certificate is used from the next connection on.
            context = client_context(
                ca_file=Path(config.tls_ca_file),
                cert_file=Path(config.tls_cert_file),
                key_file=Path(config.tls_private_key_file),
            )
        except (OSError, ssl.SSLError) as error:
            files = f"{config.tls_ca_file}, {config.tls_cert_file}, {config.tls_private_key_file}"
            self._note_problem(f"certificates cannot be used: {error}; check edgeHub's {files}")
            return None
        try:
            connection = await connect(
                self._url,
                node=self._node,
                ssl_context=context,
                project_id=config.project_id,
                timeout_s=config.websocket.handshake_timeout,
                pong_timeout_s=config.websocket.read_deadline,
            )
        except ConnectionRefused as error:
            self._note_problem(f"cannot connect: {error}{_advice(error)}; trying again until it works")
            return None
        self._last_problem = ""
        return connection

    async def _use(self, connection: Connection) -> None:
        """Serve one connection until it is lost."""
        self._connection, self._since_ms = connection, now_ms()
        beat: asyncio.Task[None] | None = None
        try:
            await self._keep_alive(connection)
            logger.info("connected to %s as node %s", self._url, self._node)
            beat = asyncio.create_task(self._beat(connection), name="edgehub keepalive")
            await self._bus.publish(CloudConnected(self._url))  # if that fails, a new connection may do better
            while True:
                await self._pass_on(connection)
        except ConnectionLost as lost:
            self._lost = str(lost)
            logger.warning("%s; connecting again", lost)
        finally:
            self._connection, self._since_ms = None, now_ms()
            if beat is not None:
                beat.cancel()
                await asyncio.wait([beat])  # awaiting it would take a cancellation of ours for its own
            await self._publish(CloudLost())
            await connection.close()

    async def _pass_on(self, connection: Connection) -> None:
        message = await connection.receive()
        event = route(message)
        if event is None:
            self._note_not_taken(f"{message.route.operation} of group {message.route.group!r}")
            return
        await self._publish(event)

    async def _publish(self, event: Struct) -> None:
        """One bad message must not end the connection."""
        try:
            await self._bus.publish(event)
        except ConnectionLost:
            pass  # noticed by `receive` as well, which is where it is dealt with
        except Exception:
            logger.exception("%s was dropped", type(event).__name__)

    async def _beat(self, connection: Connection) -> None:
        """Say that we are there, every heartbeat. A write that hangs ends the connection."""
        with contextlib.suppress(ConnectionLost):
            while True:
                await asyncio.sleep(self._config.heartbeat)
                await self._keep_alive(connection)

    async def _keep_alive(self, connection: Connection) -> None:
        await self._write(connection, keepalive())

    async def _send(self, event: Upstream) -> None:
        await self._limit.take()
        if (connection := self._connection) is None:
            raise ConnectionLost(f"not connected to {self._url}")
        await self._write(connection, event.message)

    async def _write(self, connection: Connection, message: Message) -> None:
        try:
            async with asyncio.timeout(self._config.websocket.write_deadline):
                await connection.send(message)
        except TimeoutError as error:
            connection.abort()
            raise ConnectionLost(f"{self._url} took nothing for {self._config.websocket.write_deadline:g} s") from error

    def _note_problem(self, problem: str) -> None:
        """Log on the change, not at every try."""
        if problem != self._last_problem:
            self._last_problem = problem
            logger.warning("%s", problem)

    def _note_not_taken(self, what: str) -> None:
        count = self._not_taken[what] = self._not_taken.get(what, 0) + 1
        if count == 1:
            logger.warning("messages from the cloud that nothing here takes are dropped: %s", what)
        else:
            logger.debug("dropped: %s (%d so far)", what, count)


def keepalive() -> Message:
    return new_message(source="websocket", group="resource", operation="keepalive", resource="node", content="ping")


def retry_delays() -> Iterator[float]:
    """Seconds to wait before each next try: the first within 1 s, doubling to 5 s, spread so that nodes do not come
    back all at once.
    """
    ceiling = FIRST_RETRY_S
    yield random.uniform(0.1, ceiling)  # noqa: S311 - no secret
    while True:
        ceiling = min(ceiling * 2, MAX_RETRY_S)
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret


def _advice(error: ConnectionRefused) -> str:
    cause = error.__cause__
    match cause:
        case ssl.SSLCertVerificationError():
            return " (the name in websocket.server must be in the cloud's certificate, and its CA in tlsCaFile)"
        case ssl.SSLError():
            return " (is tlsCertFile signed by the cloud's CA, and the clock right?)"
        case OSError():
            return " (is cloudcore running, and websocket.server right?)"
    return ""
