"""One connected node: receives, sends from its outbox, and ends when the node has been silent for too long.

One task and one timer each: there are thousands of sessions, and most have nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from picows import WSCloseCode

from cloudcore.cloudhub.classes import Delivery, classify
from cloudcore.cloudhub.figures import Figures
from cloudcore.cloudhub.outbox import Outbox
from cloudedge import ConnectionLost, Message
from cloudedge.connection import Connection
from dmi.metrics import Metrics

__all__ = ["Session", "SessionEnded"]

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S: Final = 30.0
"""Longest wait for a node that does not read; upstream has the setting and does not use it."""
LONG_S: Final = 0.01
"""Of the processor, to look at one message of a node; its next waits `REST` times as long, `MAX_REST_S` at most."""
REST: Final = 4.0
MAX_REST_S: Final = 1.0
TURN: Final = 64
"""Messages sent before other nodes have their turn."""


class SessionEnded(Exception):
    """Why a session is over, for the log and for the node. `what` is one of few words, for counting."""

    def __init__(self, what: str, reason: str, code: WSCloseCode = WSCloseCode.OK) -> None:
        super().__init__(reason)
        self.what = what
        self.code = code


class Session:
    """Owned by the hub, which runs it in a task. `post` and `put_object` never wait and never fail."""

    __slots__ = (
        "__weakref__",
        "_alive_at",
        "_connection",
        "_figures",
        "_flushing",
        "_keepalive_s",
        "_loop",
        "_outbox",
        "_stuck_at",
        "_timer",
        "_verdict",
        "_write_timeout_s",
        "node",
    )

    def __init__(
        self,
        connection: Connection,
        *,
        keepalive_s: float,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        figures: Figures | None = None,
    ) -> None:
        self.node = connection.peer
        self._connection = connection
        self._keepalive_s = keepalive_s
        self._write_timeout_s = write_timeout_s
        self._figures = figures or Figures(Metrics())
        self._loop = asyncio.get_running_loop()
        self._alive_at = self._loop.time()
        self._outbox: Outbox | None = None
        self._flushing = False
        self._stuck_at: float | None = None
        """Since when the node has not read though there is something for it."""
        self._timer: asyncio.TimerHandle | None = None
        self._verdict: SessionEnded | None = None
        connection.on_writable = self._writable

    @property
    def outbox(self) -> Outbox:
        """Made for the first message."""
        if self._outbox is None:
            self._outbox = Outbox()
        return self._outbox

    @property
    def made_outbox(self) -> Outbox | None:
        """None: there was nothing to send yet."""
        return self._outbox

    @property
    def connection(self) -> Connection:
        return self._connection

    def post(self, message: Message) -> None:
        """Send as its class says (`classify`): most messages once, in order, and lost when the connection is."""
        match classify(message):
            case Delivery.OBJECT:
                self.outbox.put_object(message)
            case Delivery.ANSWER:
                self.outbox.put_answer(message)
            case _:
                self.outbox.post(message)
        self._work()

    def put_object(self, message: Message) -> None:
        """Send until the node has acknowledged it, or a newer one of the same object."""
        self.outbox.put_object(message)
        self._work()

    def acknowledge(self, message_id: str) -> Message | None:
        """The object message the node has now; None for a late or repeated acknowledgement, and for other messages."""
        known = None if self._outbox is None else self._outbox.acknowledge(message_id, self._loop.time())
        if known is None:
            logger.debug("node %s: acknowledgement of %.64r, which waits for none", self.node, message_id)
            return None
        self._figures.acknowledged.add()
        self._figures.lag.add(amount=known.after_s)
        self._work()
        return known.message

    def keep_alive(self) -> None:
        self._alive_at = self._loop.time()

    def end(self, verdict: SessionEnded) -> None:
        """Have the session close itself. The first verdict counts."""
        if self._verdict is None:
            self._verdict = verdict
            self._connection.hang_up(verdict.code, str(verdict))

    def unsent(self) -> list[Message]:
        """What the next session of the node is to send: messages of class `KEPT` that did not go out."""
        waiting = () if self._outbox is None else self._outbox.unsent()
        return [message for message in waiting if classify(message) is Delivery.KEPT]

    async def run(self, take: Callable[[Session, Message], None]) -> SessionEnded:
        """Until the connection is gone; returns why. `take` gets every message and must not wait."""
        stopping = SessionEnded("stopping", "CloudHub is stopping", WSCloseCode.GOING_AWAY)
        gone = ""
        self._set_timer()
        try:
            while self._verdict is None:
                message = await self._connection.receive()
                began_s = time.thread_time()  # that the process has to wait for a processor is nobody's fault
                try:
                    take(self, message)
                except Exception:  # one message must not end the session of a node
                    logger.exception("node %s: %.256r could not be taken", self.node, message.describe())
                # A burst that is in memory already would otherwise keep all other nodes waiting, and so would messages
                # that take their time: whose they are has a part of it, all others have the rest.
                took_s = time.thread_time() - began_s
                await asyncio.sleep(0 if took_s < LONG_S else min(took_s * REST, MAX_REST_S))
        except ConnectionLost as lost:
            gone = str(lost)
        except asyncio.CancelledError:
            self.end(stopping)
            raise
        finally:
            if self._verdict is None:
                self._verdict = SessionEnded("gone", gone)
            if self._timer is not None:
                self._timer.cancel()
            self._connection.on_writable = None
            if self._outbox is not None:
                self._figures.superseded.add(amount=self._outbox.superseded)
            await self._connection.close(self._verdict.code, str(self._verdict))
        return self._verdict

    def _work(self) -> None:
        """Send at the end of this turn of the loop, so that what one event brings goes out together."""
        if self.outbox.overflowing:
            # Dropping some would be silent; a node that comes back is brought up to date from scratch.
            too_much = "it does not read what it is sent"
            self.end(SessionEnded("too much waits", too_much, WSCloseCode.POLICY_VIOLATION))
        elif not self._flushing and self._verdict is None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _writable(self) -> None:
        self._stuck_at = None
        if self._outbox is not None:
            self._work()

    def _flush(self) -> None:
        """Hand the socket what it takes."""
        self._flushing = False
        outbox, now = self.outbox, self._loop.time()
        for _ in range(TURN):
            if self._connection.is_closed:
                return
            if not self._connection.can_send:
                if len(outbox) and self._stuck_at is None:
                    self._stuck_at = now
                self._set_timer()
                return
            resent, given_up = outbox.resent, outbox.given_up
            message = outbox.next(now)
            self._figures.resent.add(amount=outbox.resent - resent)
            if outbox.given_up != given_up:
                self._figures.dropped.add("answer never acknowledged", amount=outbox.given_up - given_up)
            if message is None:
                self._set_timer()
                return
            try:
                self._connection.send_now(message)
            except ConnectionLost:
                return
            self._figures.sent.add(classify(message).value)
        self._work()

    def _set_timer(self) -> None:
        """Have `_look` called when the next thing may be due."""
        now = self._loop.time()
        due = self._alive_at + self._keepalive_s
        if self._stuck_at is not None:
            due = min(due, self._stuck_at + self._write_timeout_s)
        elif self._outbox is not None and (wait_s := self._outbox.wait_s(now)) is not None:
            due = min(due, now + wait_s)
        if self._timer is not None:
            if not self._timer.cancelled() and now < self._timer.when() <= due:
                return  # it looks, and finds out how long still
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = None
        if self._verdict is not None:
            return
        if now >= self._alive_at + self._keepalive_s:
            silent = f"no keepalive for {self._keepalive_s:g} s"
            self.end(SessionEnded("silent", silent, WSCloseCode.POLICY_VIOLATION))
        elif self._stuck_at is not None and now >= self._stuck_at + self._write_timeout_s:
            stuck = f"it has not read for {self._write_timeout_s:g} s"
            self.end(SessionEnded("not reading", stuck, WSCloseCode.POLICY_VIOLATION))
        elif self._outbox is None or self._stuck_at is not None:
            self._set_timer()
        else:
            self._flush()
