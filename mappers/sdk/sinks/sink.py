"""One sink: what arrives goes straight to its target; what the target did not take waits on disk and follows later.

Two lanes, each with a connection of its own, so that catching up delays nothing: live samples are sent as they come,
and beside them the backlog is sent in the order in which it was collected, at a bounded rate, pausing whenever live
samples wait. So after a cut new samples arrive before older ones; all carry the time of their collection. While the
target is away everything goes to the backlog, and its oldest samples are what the target is tried with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from mappers.sdk.schedule import backoff, epoch_ms
from mappers.sdk.sinks.backlog import Backlog
from mappers.sdk.sinks.delivery import Delivery
from mappers.sdk.sinks.record import AnyRecord, AnyTarget, Identity, Route, Sender, SinkStats, SinkUnavailable, size_of
from mappers.sdk.sinks.store import StoreError

__all__ = ["Sink"]

logger = logging.getLogger(__name__)

LIVE_RECORDS: Final = 2000
LIVE_BYTES: Final = 1_000_000
"""Waiting for the connection; more go to the backlog, the oldest first."""
CHUNK_RECORDS: Final = 500
TRIAL_RECORDS: Final = 16
"""What a target that was away is tried with."""
CONNECT_DEADLINE_S: Final = 30.0
RETRY_S: Final = (0.5, 60.0)
YIELD_S: Final = 1.0
"""The longest that catching up waits for live samples, each time: a busy sink catches up, too."""
REJECTIONS_LOGGED_EVERY_S: Final = 60.0


class Sink:
    """Made by `DataPlane`. `put` never waits."""

    def __init__(self, target: AnyTarget, identity: Identity, backlog: Backlog, *, replay_per_s: float) -> None:
        self.target = target
        self.outlets = 0
        """Properties that use it."""
        self.retiring = False
        """None does, and it ends when it has sent everything."""
        self._identity = identity
        self._backlog = backlog
        self._replay_per_s = replay_per_s
        self._live: deque[AnyRecord] = deque()
        self._live_bytes = 0
        self._in_flight: Sequence[AnyRecord] = ()
        self._some = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._down = False
        self._problem = ""
        self._sent = self._failed = self._rejected = 0
        self._rejection_logged = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for name, lane in (("live", self._run_live), ("replay", self._run_replay), ("store", self._backlog.run)):
            task = asyncio.create_task(lane(), name=f"sink {self.target.kind} {name}")
            task.add_done_callback(_log_failure)
            self._tasks.append(task)

    async def load(self) -> None:
        """Take up what an earlier run left on disk."""
        await self._backlog.load()

    def put(self, record: AnyRecord) -> None:
        if self._down:
            self._backlog.add((record,))
            return
        self._live.append(record)
        self._live_bytes += size_of(record)
        while len(self._live) > LIVE_RECORDS or (self._live_bytes > LIVE_BYTES and len(self._live) > 1):
            self._backlog.add((self._pop_live(),))
        self._idle.clear()
        self._some.set()

    @property
    def waiting(self) -> int:
        return len(self._live) + len(self._in_flight) + self._backlog.waiting

    def stats(self) -> SinkStats:
        first = [r.sample.collected_ms for r in (*self._in_flight[:1], *list(self._live)[:1])]
        oldest = min((ms for ms in (*first, self._backlog.oldest_ms) if ms), default=0)
        rejected = {"rejected": self._rejected} if self._rejected else {}
        return SinkStats(
            sink=self.target.kind,
            target=self.target.label,
            up=not self._problem,
            problem=self._problem,
            sent=self._sent,
            failed=self._failed,
            dropped={**self._backlog.dropped, **rejected},
            waiting=self.waiting,
            lag_s=max(epoch_ms() - oldest, 0) / 1000 if oldest else 0.0,
            file=str(self._backlog.store.path) if self._backlog.store.waiting else "",
        )

    async def drained(self) -> None:
        """Wait until nothing waits to be sent live."""
        while not self._idle.is_set() and not self._down:
            await self._idle.wait()

    async def close(self, *, drain_s: float = 0.0, deadline_s: float = 1.0) -> None:
        """Send what is live, up to `drain_s`; put the rest on disk; let go of the target within about `deadline_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.drained()
        for _ in range(2):  # some libraries take leave of their server at length
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=deadline_s / 2)
        self._shelve_live()
        try:
            await self._backlog.save()
        except StoreError as error:
            logger.error(
                "sink %s %s: %d samples are lost: %s", self.target.kind, self.target.label, self.waiting, error
            )
        await self._backlog.close()

    def _pop_live(self) -> AnyRecord:
        record = self._live.popleft()
        self._live_bytes -= size_of(record)
        return record

    def _shelve_live(self) -> None:
        self._backlog.add(self._live)
        self._live.clear()
        self._live_bytes = 0

    async def _run_live(self) -> None:
        while True:
            await self._some.wait()
            used = False
            try:
                async with self._connection() as sender:
                    while True:
                        await self._send_live(sender, retry=used)
                        used = True
                        await self._some.wait()
            except SinkUnavailable as error:
                self._failed += 1
                # A connection that was good may have been closed while it was idle: that alone is no failure.
                if not used:
                    self._note_down(str(error))

    async def _send_live(self, sender: Sender[Route], *, retry: bool) -> None:
        batch = [self._pop_live() for _ in range(min(len(self._live), CHUNK_RECORDS))]
        self._in_flight = batch
        delivery = Delivery(self.target, batch, self._note_rejected)
        try:
            await delivery.run(sender)
        except SinkUnavailable:
            left = [record for index, record in enumerate(batch) if index not in delivery.done]
            if retry:
                self._live.extendleft(reversed(left))
                self._live_bytes += sum(map(size_of, left))
            else:
                self._backlog.add(left)
            raise
        except BaseException:
            self._backlog.add(record for index, record in enumerate(batch) if index not in delivery.done)
            raise
        finally:
            self._sent += delivery.sent
            self._in_flight = ()
        self._note_up()
        if not self._live:
            self._some.clear()
            self._idle.set()

    async def _run_replay(self) -> None:
        retries = backoff(*RETRY_S)
        while True:
            await self._backlog.arrival()
            try:
                async with self._connection() as sender:
                    while self._backlog.waiting:
                        await self._send_chunk(sender)
                        retries = backoff(*RETRY_S)
            except SinkUnavailable as error:
                self._failed += 1
                self._note_replay_failure(str(error))
                await asyncio.sleep(next(retries))

    async def _send_chunk(self, sender: Sender[Route]) -> None:
        started = time.monotonic()
        chunk = await self._backlog.take(TRIAL_RECORDS if self._down else CHUNK_RECORDS)
        if not chunk.records:
            return
        delivery = Delivery(self.target, chunk.records, self._note_rejected)
        try:
            await delivery.run(sender)
        finally:
            self._sent += delivery.sent
            settled = self._backlog.settle(chunk, delivery.done)
        self._note_up()
        try:
            await settled
        except StoreError as error:
            # On disk still, so they will be sent twice; not over and over while the disk is broken.
            logger.warning("sink %s %s: %s", self.target.kind, self.target.label, error)
            await asyncio.sleep(RETRY_S[1])
        await asyncio.sleep(max(len(chunk.records) / self._replay_per_s - (time.monotonic() - started), 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(YIELD_S):
                await self.drained()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Sender[Route]]:
        """Whatever a kind of sink or its library raises is `SinkUnavailable` beyond here."""
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(CONNECT_DEADLINE_S):
                    sender = await stack.enter_async_context(self.target.connect(self._identity))
                yield sender
        except SinkUnavailable:
            raise
        except TimeoutError:
            raise SinkUnavailable("cannot be reached in time") from None
        except (OSError, ValueError) as error:
            raise SinkUnavailable(str(error) or type(error).__name__) from error
        except Exception as error:
            if not self._problem:
                logger.exception("sink %s %s failed", self.target.kind, self.target.label)
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from error

    def _note_down(self, problem: str) -> None:
        self._down = True
        self._shelve_live()
        self._some.clear()
        self._idle.set()
        self._note_problem(problem)

    def _note_replay_failure(self, problem: str) -> None:
        if self._down:
            self._problem = problem
        elif not self._live and not self._in_flight:
            self._note_problem(problem)  # nothing live says otherwise

    def _note_problem(self, problem: str) -> None:
        if not self._problem:
            where = self._backlog.store.path
            logger.warning(
                "sink %s %s is away: %s; samples wait in %s", self.target.kind, self.target.label, problem, where
            )
        self._problem = problem or "away"

    def _note_up(self) -> None:
        if self._problem:
            waiting = self._backlog.waiting
            logger.info("sink %s %s is back; %d samples wait", self.target.kind, self.target.label, waiting)
        self._down = False
        self._problem = ""

    def _note_rejected(self, problem: str, count: int) -> None:
        self._rejected += count
        now = time.monotonic()
        if now - self._rejection_logged >= REJECTIONS_LOGGED_EVERY_S:
            self._rejection_logged = now
            logger.warning(
                "sink %s %s refuses samples, %d so far: %s",
                self.target.kind, self.target.label, self._rejected, problem,
            )  # fmt: skip


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("%s ended: samples are no longer sent", task.get_name(), exc_info=error)
