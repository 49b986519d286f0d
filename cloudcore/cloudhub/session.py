"""One connected node: receives, sends from its outbox, and ends when the node has been silent for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from picows import WSCloseCode

from cloudcore.cloudhub.outbox import Outbox
from cloudedge import ConnectionLost, Message
from cloudedge.connection import Connection

__all__ = ["Session", "SessionEnded"]

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S: Final = 30.0
"""Longest wait for a node that does not read; upstream has the setting and does not use it."""


class SessionEnded(Exception):
    """Why a session is over, for the log and for the node."""

    def __init__(self, reason: str, code: WSCloseCode = WSCloseCode.OK) -> None:
        super().__init__(reason)
        self.code = code


class Session:
    """Owned by the hub, which runs it in a task. `post` and `put_object` never wait and never fail."""

    def __init__(self, connection: Connection, *, keepalive_s: float, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
        self.node = connection.peer
        self.outbox = Outbox()
        self._connection = connection
        self._keepalive_s = keepalive_s
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._alive_at = self._loop.time()
        self._work = asyncio.Event()
        self._verdict: asyncio.Future[SessionEnded] = self._loop.create_future()

    def post(self, message: Message) -> None:
        """Send once, in order; lost when the connection is."""
        self.outbox.post(message)
        if self.outbox.overflowing:
            # Dropping some would be silent; a node that comes back is brought up to date from scratch.
            self.end(SessionEnded("it does not read what it is sent", WSCloseCode.POLICY_VIOLATION))
        self._work.set()

    def put_object(self, message: Message) -> None:
        """Send until the node has acknowledged it, or a newer one of the same resource."""
        self.outbox.put_object(message)
        self._work.set()

    def acknowledge(self, message_id: str) -> None:
        if self.outbox.acknowledge(message_id):
            self._work.set()
        else:
            logger.debug("node %s: acknowledgement of %.64r, which waits for none", self.node, message_id)

    def keep_alive(self) -> None:
        self._alive_at = self._loop.time()

    def end(self, verdict: SessionEnded) -> None:
        """Have the session close itself. The first verdict counts."""
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    async def run(self, take: Callable[[Session, Message], None]) -> str:
        """Until the connection is gone; returns why. `take` gets every message and must not wait."""
        verdict = SessionEnded("CloudHub is stopping", WSCloseCode.GOING_AWAY)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(take), name=f"receive from {self.node}")
                group.create_task(self._send(), name=f"send to {self.node}")
                group.create_task(self._watch(), name=f"keepalive of {self.node}")
        except* ConnectionLost:
            verdict = SessionEnded("the connection is gone")
        except* SessionEnded as ended:
            first = ended.exceptions[0]
            verdict = first if isinstance(first, SessionEnded) else verdict
        finally:
            self._verdict.cancel()
            await self._connection.close(verdict.code, str(verdict))
        return str(verdict)

    async def _receive(self, take: Callable[[Session, Message], None]) -> None:
        while True:
            message = await self._connection.receive()
            try:
                take(self, message)
            except Exception:  # one message must not end the session of a node
                logger.exception("node %s: %.256r could not be taken", self.node, message.describe())
            # A burst that is in memory already would otherwise keep all other nodes waiting.
            await asyncio.sleep(0)

    async def _send(self) -> None:
        while True:
            now = self._loop.time()
            message = self.outbox.next(now)
            if message is not None:
                try:
                    async with asyncio.timeout(self._write_timeout_s):
                        await self._connection.send(message)
                except TimeoutError:
                    raise SessionEnded(f"it has not read for {self._write_timeout_s:g} s") from None
                continue
            self._work.clear()
            try:
                async with asyncio.timeout(self.outbox.wait_s(now)):
                    await self._work.wait()
            except TimeoutError:
                continue  # something is due to be sent again

    async def _watch(self) -> None:
        while (left_s := self._alive_at + self._keepalive_s - self._loop.time()) > 0:
            done, _ = await asyncio.wait([self._verdict], timeout=left_s)
            if done:
                raise self._verdict.result()
        raise SessionEnded(f"no keepalive for {self._keepalive_s:g} s", WSCloseCode.POLICY_VIOLATION)
