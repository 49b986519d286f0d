"""The connection to CloudHub, from the first dial to the last message.

One connection at a time. It is lost when the socket says so, when a ping stays unanswered, or when a write does not get
through; then the next try is due within a second, and after each failure twice as late, at most five seconds. With a
renewed certificate a second one is made first, and the other let go after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final, Literal

from msgspec import Struct

from cloudedge import ConnectionLost, Message, new_message, reply
from cloudedge.connection import Connection
from cloudedge.message import ENVELOPE_BYTES, encode, now_ms
from dmi.metrics import Metrics
from edgecore.bus import Bus, CertificateRenewed, CloudConnected, CloudLink, CloudLost, Reply, Upstream, UpstreamKept
from edgecore.config import EdgeHubConfig
from edgecore.edgehub.addresses import Addresses
from edgecore.edgehub.asked import Asked
from edgecore.edgehub.dialling import Dialler, retry_delays
from edgecore.edgehub.kept import KeptMessages
from edgecore.edgehub.ratelimit import TokenBucket
from edgecore.edgehub.routing import route
from edgecore.store import Database

__all__ = ["EdgeHub", "keepalive"]

logger = logging.getLogger(__name__)

STABLE_AFTER_S: Final = 5.0
"""A connection that lasted this long was a good one: the next retry starts from the beginning, at its address."""
DRAIN_S: Final = 2.0
"""For the cloud to close the older of two connections, before we do."""
_MOST_KINDS: Final = 64
"""Kinds of messages that nothing takes, named in the log."""


class EdgeHub:
    """Raises:
    ConfigError: `edgeHub.websocket.server` names no address.
    """

    def __init__(
        self, config: EdgeHubConfig, *, node: str, bus: Bus, database: Database, metrics: Metrics | None = None
    ) -> None:
        metrics = metrics or Metrics()
        name = "kubetwin_edgecore_cloud"
        self._config = config
        self._node = node
        self._bus = bus
        self._addresses = Addresses(config.websocket.server)
        self._dialler = Dialler(config, node=node, metrics=metrics)
        self._kept = KeptMessages(
            database, max_messages=config.outbox_messages, max_bytes=config.outbox_bytes, metrics=metrics
        )
        self._asked = Asked()
        self._connection: Connection | None = None
        self._successor: Connection | None = None
        """Made, and already written to, while what came over the one before it is still taken."""
        self._renewed = asyncio.Event()
        self._stuck = False
        """A write did not get through."""
        self._not_let_in = ""
        """What the cloud closed the last connection with, if at once. It tries again soon, and says so once."""
        self._most_bytes = 0
        """A larger message ends the connection, as one did; sent again, it would end each. 0: none has."""
        self._left_out = ""
        self._since_ms = now_ms()
        self._not_taken: dict[str, int] = {}
        self._connects = metrics.counter(f"{name}_connects_total", "Connections to the cloud that were made.")
        self._losses = metrics.counter(f"{name}_losses_total", "Connections that ended, by how.", "reason")
        self._sent = metrics.counter(f"{name}_sent_total", "Messages written to the channel, keepalives apart.")
        self._received = metrics.counter(f"{name}_received_total", "Messages that came over the channel.")
        self._untaken = metrics.counter(f"{name}_not_taken_total", "Messages that nothing here takes.")
        self._too_large = metrics.counter(
            f"{name}_too_large_total", "Messages that were not sent: the cloud takes none so large."
        )
        self._late = metrics.counter(f"{name}_late_replies_total", "Answers that nobody waited for any more.")
        waits = metrics.counter(f"{name}_rate_limit_waits_total", "Messages that edgeHub.messageQPS held up.")
        self._limit = TokenBucket(config.message_qps, config.message_burst, waited=waits.add)
        bus.subscribe(Upstream, self._send)
        bus.subscribe(UpstreamKept, self._kept.keep)
        bus.subscribe(CertificateRenewed, self._note_renewed)

    @property
    def link(self) -> CloudLink:
        if (connection := self._connection) is not None:
            return CloudLink(connection.peer, True, self._since_ms)
        return CloudLink(str(self._addresses), False, self._since_ms, self._dialler.trouble)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        delays = retry_delays()
        try:
            while True:
                lasted = False
                try:
                    lasted = await self._connect_once()
                except Exception as error:  # nothing that goes wrong here may end the process
                    self._dialler.note_lost(
                        self._addresses.current, f"the connection failed in an unexpected way: {error!r}"
                    )
                    self._losses.add("failed")
                    logger.exception("the connection failed in an unexpected way; connecting again")
                if self._successor is not None:
                    continue
                if lasted:
                    delays = retry_delays()
                    self._dialler.forget_others(self._addresses.current)
                    self._addresses.worked()
                elif not self._addresses.failed():
                    continue  # the next address, at once
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(next(delays)):
                        await self._renewed.wait()  # new files are tried at once
        finally:
            if self._successor is not None:
                self._successor.abort()

    async def _connect_once(self) -> bool:
        """Whether there was a connection that lasted."""
        connection, self._successor = self._successor, None
        if connection is None:
            self._renewed.clear()  # what is dialled now has the files there are now
            url, connection = await self._dialler.dial_first(self._addresses.left)
            self._addresses.skip_to(url)
        if connection is None:
            return False
        loop = asyncio.get_running_loop()
        since = loop.time()
        await self._use(connection)
        return loop.time() - since >= STABLE_AFTER_S

    async def _use(self, connection: Connection) -> None:
        """Serve one connection until it is lost, or has a successor and is drained."""
        self._connection, self._since_ms, self._stuck = connection, now_ms(), False
        self._connects.add()
        try:
            async with asyncio.TaskGroup() as tasks:
                beside: list[asyncio.Task[None]] = []
                try:
                    await self._write(connection, keepalive())
                    if not self._not_let_in:
                        logger.info("connected to %s as node %s", connection.peer, self._node)
                    beside.append(tasks.create_task(self._beat(connection), name="edgehub keepalive"))
                    beside.append(tasks.create_task(self._change_over(connection, tasks), name="edgehub change-over"))
                    # If that fails, a new connection may do better.
                    await self._bus.publish(CloudConnected(connection.peer, self._most_bytes))
                    while True:
                        await self._pass_on(connection)
                except ConnectionLost as lost:
                    self._note_lost(connection, lost)
                finally:
                    for task in beside:
                        task.cancel()
        finally:
            if self._successor is None:
                self._connection, self._since_ms = None, now_ms()
            await self._publish(CloudLost())
            await connection.close()

    async def _pass_on(self, connection: Connection) -> None:
        message = await connection.receive()
        self._received.add()
        if message.header.parent_msg_id and self._kept.settle(message):
            return
        event = route(message)
        if event is None:
            self._note_not_taken(f"{message.route.operation} of group {message.route.group!r}")
        elif isinstance(event, Reply):
            await self._take_reply(event)
        else:
            await self._publish(event)

    async def _take_reply(self, event: Reply) -> None:
        """A late one is acknowledged as well: upstream's cloud would send it again for ever (channel contract 8.1 #5).
        Failures and a bare `OK` are not objects, and no cloud waits for them to be acknowledged.
        """
        message = event.message
        if self._asked.is_late(message, asyncio.get_running_loop().time()):
            self._late.add()
        taken = await self._publish(event)
        if taken and message.route.operation == "response" and not message.is_ok:
            await self._send(Upstream(reply(message)))

    async def _publish(self, event: Struct) -> bool:
        """One bad message must not end the connection; False: it was not taken up."""
        try:
            await self._bus.publish(event)
        except ConnectionLost:
            pass  # noticed by `receive` as well, which is where it is dealt with
        except Exception:
            logger.exception("%s was dropped", type(event).__name__)
        else:
            return True
        return False

    async def _beat(self, connection: Connection) -> None:
        """Say that we are there, every heartbeat. A write that hangs ends the connection."""
        with contextlib.suppress(ConnectionLost):
            if self._not_let_in:
                await asyncio.sleep(STABLE_AFTER_S)
                self._not_let_in = ""
                logger.info("connected to %s as node %s, which lets it in again", connection.peer, self._node)
            while True:
                await asyncio.sleep(self._config.heartbeat)
                await self._write(connection, keepalive())

    async def _change_over(self, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        """Send what is kept, until the certificate is renewed: then make the next connection before this one goes."""
        delays, pause = retry_delays(), 0.0
        while True:
            sending = tasks.create_task(self._send_kept(connection), name="edgehub kept messages")
            try:
                await asyncio.sleep(pause)
                await self._renewed.wait()
            finally:
                # What goes over a connection that is being replaced may be read there, and dropped.
                sending.cancel()
            self._renewed.clear()
            await asyncio.wait([sending])
            successor = await self._dialler.dial(connection.peer)
            if successor is not None:
                break
            self._renewed.set()
            pause = next(delays)
        self._successor = self._connection = successor
        logger.info("the certificate is renewed: going on with a new connection to %s", connection.peer)
        # The cloud takes the newest for the one that counts and closes the other.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await connection.wait_closed()
        await connection.close()

    async def _send_kept(self, connection: Connection) -> None:
        async def write(message: Message) -> None:
            await self._limit.take()
            await self._write(connection, message)
            self._sent.add()

        with contextlib.suppress(ConnectionLost):
            await self._kept.send_over(connection, write, most_bytes=self._most_bytes)

    async def _send(self, event: Upstream) -> None:
        if self._is_too_large(event.message):
            return
        await self._limit.take()
        if (connection := self._connection) is None:
            raise ConnectionLost(f"not connected to {self._addresses}")
        self._asked.note(event.message, asyncio.get_running_loop().time())
        await self._write(connection, event.message)
        self._sent.add()

    async def _write(self, connection: Connection, message: Message) -> None:
        deadline_s = self._config.websocket.write_deadline
        try:
            async with asyncio.timeout(deadline_s):
                await connection.send(message)
        except TimeoutError as error:
            self._stuck = True
            connection.abort()
            raise ConnectionLost(f"{connection.peer} took nothing for {deadline_s:g} s") from error

    def _is_too_large(self, message: Message) -> bool:
        most = self._most_bytes
        if not most or message.size + ENVELOPE_BYTES <= most or len(encode(message)) <= most:
            return False
        self._too_large.add()
        is_news, self._left_out = message.route.resource != self._left_out, message.route.resource
        logger.log(
            logging.WARNING if is_news else logging.DEBUG,
            "not sent: %.200s has more than %d bytes, and the cloud takes none so large (cloudHub.maxMessageBytes)",
            message.route.resource,
            most,
        )
        return True

    async def _note_renewed(self, _: CertificateRenewed) -> None:
        self._renewed.set()

    def _note_lost(self, connection: Connection, lost: ConnectionLost) -> None:
        reason: Literal["renewed", "stuck", "closed", "silent", "cut"] = connection.end
        if self._successor is not None:
            reason = "renewed"
        elif self._stuck:
            reason = "stuck"
        self._losses.add(reason)
        if reason == "renewed":
            return
        self._most_bytes = connection.takes_bytes or self._most_bytes
        self._dialler.note_lost(connection.peer, str(lost))
        is_news = str(lost) != self._not_let_in
        logger.log(logging.WARNING if is_news else logging.DEBUG, "%s; connecting again", lost)
        at_once = reason == "closed" and now_ms() - self._since_ms < STABLE_AFTER_S * 1000
        self._not_let_in = str(lost) if at_once else ""

    def _note_not_taken(self, what: str) -> None:
        self._untaken.add()
        what = what[:200]  # it is kept, and a peer may make it as long as a message
        if what not in self._not_taken and len(self._not_taken) >= _MOST_KINDS:
            what = "others"
        count = self._not_taken[what] = self._not_taken.get(what, 0) + 1
        if count == 1:
            logger.warning("messages from the cloud that nothing here takes are dropped: %s", what)
        else:
            logger.debug("dropped: %s (%d so far)", what, count)


def keepalive() -> Message:
    return new_message(source="websocket", group="resource", operation="keepalive", resource="node", content="ping")
