"""Messages that must not be lost: stored until the cloud has them, sent in order, again after every cut.

How arrival is known: our cloud says at the upgrade that it answers uploads, and then only the answer counts. Of what is
not answered, which from an upstream cloud is everything, a ping sent after the message and answered proves that the
cloud has read it. What arrived and was not known to have goes again under the same id. See docs/adr/0024.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from cloudedge import MalformedMessage, Message, decode, encode
from cloudedge.connection import Connection
from dmi.metrics import Metrics
from edgecore.bus import UpstreamKept
from edgecore.store import Database, StoreError
from edgecore.store.outbox import KeptRow, OutboxSize, Put, next_kept, put_kept, recount, remove_kept

__all__ = ["KeptMessages"]

logger = logging.getLogger(__name__)

WINDOW: Final = 32
"""On their way at once. A cloud of ours that waits for its API reads no more than 256 of everything."""
WINDOW_BYTES: Final = 1024 * 1024
"""Read from the store at once."""
AGAIN_S: Final = 30.0
"""A message that stays unanswered so long is sent again, and then half as often each time, down to every
`SELDOM_S`."""
SELDOM_S: Final = 300.0
_STORE_RETRY_S: Final = 2.0

Write = Callable[[Message], Awaitable[None]]


class KeptMessages:
    def __init__(self, database: Database, *, max_messages: int, max_bytes: int, metrics: Metrics) -> None:
        name = "kubetwin_edgecore_outbox"
        self._database = database
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._size = OutboxSize()
        self._due = asyncio.Event()
        self._flights: dict[str, int] = {}
        """Sent over this connection and to be answered: number by message id, in order."""
        self._after = 0
        """Up to this number all are sent over this connection."""
        self._read_up_to = 0
        """The highest number that was read from the store. It outlives the file: numbers go on in the next."""
        self._troubled = ""
        self._dropping = False
        self._dropped = metrics.counter(f"{name}_dropped_total", "Kept messages that were given up.", "reason")
        self._sent = metrics.counter(f"{name}_sent_total", "Kept messages written to the channel, again included.")
        self._arrived = metrics.counter(f"{name}_arrived_total", "Kept messages that the cloud has.")
        metrics.gauge(f"{name}_messages", "Messages kept for the cloud.", read=lambda: {(): float(self._size.messages)})
        metrics.gauge(f"{name}_bytes", "Their size.", read=lambda: {(): float(self._size.bytes)})
        self._count()
        database.rebuilt.append(self._count)

    async def keep(self, event: UpstreamKept) -> None:
        """Returns when it is stored.

        Raises:
            StoreError: See `UpstreamKept`.
        """
        body = encode(event.message)
        if len(body) > self._max_bytes:
            self._drop("too large")
            raise StoreError(f"{event.message.describe()}: {len(body)} bytes are more than edgeHub.outboxBytes")
        await self._database.run(
            lambda db: put_kept(
                db,
                body,
                key=event.key,
                used=self._read_up_to,
                max_messages=self._max_messages,
                max_bytes=self._max_bytes,
            ),
            then=self._note_put,
        )

    async def send_over(self, connection: Connection, write: Write, *, most_bytes: int = 0) -> None:
        """Send what is kept and what comes, until cancelled or the connection is lost. One at a time. `most_bytes`:
        what is larger would end the connection, each time anew, and is dropped; 0: nothing is known of that.

        Raises:
            ConnectionLost: `write` says so, or a ping is not answered.
        """
        self._after = 0
        self._flights.clear()
        confirms = connection.confirms_uploads
        loop = asyncio.get_running_loop()
        first, since, pause = "", 0.0, AGAIN_S
        while True:
            self._due.clear()
            rows = await self._next()
            if rows:
                await self._send(rows, connection, write, confirms=confirms, most_bytes=most_bytes)
            elif not self._flights:
                await self._due.wait()
            else:
                if first != (first := next(iter(self._flights))):
                    since, pause = loop.time(), AGAIN_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(since + pause):
                        await self._due.wait()
                if first in self._flights and loop.time() >= since + pause:
                    self._send_again()
                    since, pause = loop.time(), min(pause * 2, SELDOM_S)

    def settle(self, answer: Message) -> bool:
        """The cloud's answer to one of these; False: it is not about any."""
        number = self._flights.pop(answer.header.parent_msg_id, None)
        if number is None:
            return False
        if answer.route.operation == "error":
            self._drop("refused")
            self._note_trouble(f"the cloud refuses: {bytes(answer.content)[:200].decode(errors='replace')}")
        else:
            self._arrived.add()
            self._troubled = ""
        self._remove([number])
        self._due.set()
        return True

    async def _next(self) -> list[KeptRow]:
        room, after = WINDOW - len(self._flights), self._after
        if room <= 0:
            return []
        try:
            rows = await self._database.run(lambda db: next_kept(db, after=after, limit=room, max_bytes=WINDOW_BYTES))
        except StoreError as error:
            self._note_trouble(f"what is kept cannot be read: {error}")
            await asyncio.sleep(_STORE_RETRY_S)
            self._due.set()
            return []
        if rows:
            self._read_up_to = max(self._read_up_to, rows[-1].number)
        return rows

    async def _send(
        self, rows: list[KeptRow], connection: Connection, write: Write, *, confirms: bool, most_bytes: int
    ) -> None:
        unanswered: list[int] = []
        for row in rows:
            self._after = row.number
            if 0 < most_bytes < len(row.body):
                self._drop("too large")
                self._note_trouble(f"messages of more than {most_bytes} bytes are dropped: the cloud takes none")
                self._remove([row.number])
                continue
            try:
                message = decode(row.body)
            except MalformedMessage as error:
                self._drop("malformed")
                self._note_trouble(f"a stored message makes no sense: {error}")
                self._remove([row.number])
                continue
            if confirms and message.route.operation == "upload":
                self._flights[message.id] = row.number
            else:
                unanswered.append(row.number)
            await write(message)
            self._sent.add()
        if unanswered:
            await _probe(connection)
            self._arrived.add(amount=len(unanswered))
            self._remove(unanswered)

    def _send_again(self) -> None:
        """All that is on its way, from the first on."""
        logger.warning("the cloud has not answered %d messages: sending them again", len(self._flights))
        self._after = min(self._flights.values()) - 1
        self._flights.clear()

    def _remove(self, numbers: list[int]) -> None:
        # Not waited for: what is not removed because of a kill goes again.
        self._database.post(lambda db: remove_kept(db, numbers), then=self._note_size)

    def _count(self) -> None:
        self._database.post(recount, then=self._note_size)

    def _note_size(self, size: OutboxSize) -> None:
        self._size = size
        if size.messages * 2 < self._max_messages and size.bytes * 2 < self._max_bytes:
            self._dropping = False

    def _note_put(self, put: Put) -> None:
        self._size = put.size
        self._due.set()
        if put.dropped:
            self._drop("full", put.dropped)
            if not self._dropping:
                self._dropping = True
                logger.warning(
                    "more is kept for the cloud than edgeHub.outboxMessages or outboxBytes allow: the oldest is dropped"
                )

    def _drop(self, reason: str, count: int = 1) -> None:
        self._dropped.add(reason, amount=count)

    def _note_trouble(self, trouble: str) -> None:
        """Log on the change."""
        if trouble != self._troubled:
            self._troubled = trouble
            logger.warning("%s (kept messages)", trouble)


async def _probe(connection: Connection) -> None:
    """Returns when a ping is answered. One may stay unanswered: a cloud that waits to write throws the answer away."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await connection.probe()
                return
