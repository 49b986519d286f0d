"""Records that wait for their sink: in memory for a moment, then on disk; in memory only while the disk takes nothing.

The memory is bounded, and so is the disk (`store`). What exceeds either is dropped, oldest first, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from msgspec import Struct

from mappers.sdk.schedule import backoff, epoch_ms
from mappers.sdk.sinks.record import AnyRecord, size_of
from mappers.sdk.sinks.store import Store, StoreError

__all__ = ["Backlog", "Chunk"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

COMMIT_EVERY_S: Final = 1.0
"""A commit is a flush to the medium: one a second spares an SD card."""
COMMIT_RECORDS: Final = 1000
"""That many waiting make the commit come at once."""
COMMIT_BYTES: Final = 128_000
MEMORY_RECORDS: Final = 10_000
MEMORY_BYTES: Final = 4_000_000
_RETRY_S: Final = (1.0, 30.0)


class Chunk(Struct, frozen=True):
    """The oldest records, lent out to be sent. `seqs` are their places on disk; None: they were in memory only."""

    records: Sequence[AnyRecord]
    seqs: Sequence[int] | None = None
    generation: int = 0


class Backlog:
    """`add` from the event loop, never waiting; one consumer takes from the front."""

    def __init__(self, store: Store, executor: Executor) -> None:
        self.store = store
        self._dropped_memory = 0
        self._losing = False
        self._lost_before = 0
        self._executor = executor
        self._memory: deque[AnyRecord] = deque()
        self._bytes = 0
        self._writing: Sequence[AnyRecord] = ()
        self._lent: Sequence[AnyRecord] = ()
        """Taken from memory, not settled."""
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._stored = asyncio.Event()
        self._failing = False

    @property
    def waiting(self) -> int:
        return self.store.waiting + len(self._memory) + len(self._writing) + len(self._lent)

    @property
    def oldest_ms(self) -> int:
        """When the oldest was collected; 0: none waits."""
        if self.store.waiting:
            return self.store.oldest_ms
        first = next(iter(self._lent or self._writing or self._memory), None)
        return 0 if first is None else first.sample.collected_ms

    @property
    def dropped(self) -> dict[str, int]:
        """Records lost so far, by reason."""
        counts = {**self.store.dropped, "memory": self._dropped_memory}
        return {reason: count for reason, count in counts.items() if count}

    def add(self, records: Iterable[AnyRecord]) -> None:
        for record in records:
            self._memory.append(record)
            self._bytes += size_of(record)
        self._bound()
        if self._memory:
            self._some.set()
        if len(self._memory) >= COMMIT_RECORDS or self._bytes >= COMMIT_BYTES:
            self._urgent.set()

    async def run(self) -> None:
        """Put on disk what is added, until cancelled."""
        retries = backoff(*_RETRY_S)
        while True:
            await self._some.wait()
            try:
                await self._write()
            except StoreError:
                self._stored.set()  # to be taken from memory
                await asyncio.sleep(next(retries))
                continue
            retries = backoff(*_RETRY_S)
            try:
                async with asyncio.timeout(COMMIT_EVERY_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass

    async def save(self) -> None:
        """Put on disk what is in memory still, once `run` has ended.

        Raises:
            StoreError: It cannot be written.
        """
        while self._memory:
            await self._write()

    async def arrival(self) -> None:
        """Wait until `take` has something."""
        while not (self.store.waiting or (self._failing and self._memory)):
            self._stored.clear()
            await self._stored.wait()

    async def take(self, count: int) -> Chunk:
        """The oldest records, at most `count`, once there are some. They stay on disk until `settle`."""
        while True:
            await self.arrival()
            if self.store.waiting:
                try:
                    return await self._take_stored(count)
                except StoreError as error:
                    self._note_failure(error)
            if self._memory:  # out of order, but the disk may never come back
                self._lent = self._pop(count)
                return Chunk(self._lent)
            await asyncio.sleep(_RETRY_S[0])

    async def _take_stored(self, count: int) -> Chunk:
        def job() -> tuple[list[Any], int]:
            return self.store.peek(count, epoch_ms()), self.store.generation

        rows, generation = await self._in_thread(job)
        if not rows:
            await self._in_thread(lambda: self.store.remove((), generation))  # the file goes, if it is empty
            return Chunk(())
        return Chunk([row.record for row in rows], [row.seq for row in rows], generation)

    def settle(self, chunk: Chunk, done: Collection[int]) -> asyncio.Future[None]:
        """Forget those of a chunk that are done with, by their index; the others are at the front again. Takes effect
        also when nobody awaits the result, which tells that it is on disk, or raises `StoreError`."""
        if chunk.seqs is None:
            self._lent = ()
            left = [record for index, record in enumerate(chunk.records) if index not in done]
            self._memory.extendleft(reversed(left))
            self._bytes += sum(map(size_of, left))
            self._bound()
            if left:
                self._some.set()
            finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            finished.set_result(None)
            return finished
        seqs = [chunk.seqs[index] for index in done]
        future = self._in_thread(lambda: self.store.remove(seqs, chunk.generation))
        future.add_done_callback(self._removed)
        return future

    def _removed(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._note_empty()

    async def load(self) -> None:
        """Look at what an earlier run left on disk."""
        try:
            await self._in_thread(lambda: self.store.load(epoch_ms()))
        except StoreError as error:
            self._note_failure(error)
        self._stored.set()

    async def close(self) -> None:
        await self._in_thread(self.store.close)

    async def _write(self) -> None:
        self._urgent.clear()
        self._writing = batch = self._pop(COMMIT_RECORDS, COMMIT_BYTES)
        if not self._memory:
            self._some.clear()
        # Not given up half-way: whether the thread has stored them would be anybody's guess.
        job = self._in_thread(lambda: self.store.append(batch, epoch_ms()))
        try:
            await _outlast(job)
        finally:
            self._writing = ()
            error = job.exception() if job.done() and not job.cancelled() else None
            if error is not None:
                self._memory.extendleft(reversed(batch))
                self._bytes += sum(map(size_of, batch))
                self._some.set()
                self._bound()
                self._note_failure(error)
            elif self._failing:
                self._failing = False
                logger.warning("%s: samples wait on disk again", self.store.path)
            self._stored.set()
        self._note_dropped()
        if len(self._memory) >= COMMIT_RECORDS or self._bytes >= COMMIT_BYTES:
            self._urgent.set()

    def _note_failure(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            logger.error("%s; samples wait in memory, up to %d of them, until it can be used", error, MEMORY_RECORDS)

    def _note_dropped(self) -> None:
        """Logged once until the backlog has been empty again."""
        lost = sum(self.dropped.values()) - self._lost_before
        if lost and not self._losing:
            self._losing = True
            logger.warning("%s: the oldest samples are being lost: %s", self.store.path, self.dropped)

    def _note_empty(self) -> None:
        if self._losing and not self.waiting:
            self._losing = False
            lost, self._lost_before = sum(self.dropped.values()) - self._lost_before, sum(self.dropped.values())
            logger.warning("%s: %d samples were lost while the sink was away", self.store.path, lost)

    def _pop(self, count: int, max_bytes: int = MEMORY_BYTES) -> list[AnyRecord]:
        """The oldest in memory; at least one, if there is one."""
        batch: list[AnyRecord] = []
        while self._memory and len(batch) < count and (not batch or max_bytes > 0):
            record = self._memory.popleft()
            batch.append(record)
            self._bytes -= size_of(record)
            max_bytes -= size_of(record)
        return batch

    def _bound(self) -> None:
        while self._memory and (len(self._memory) > MEMORY_RECORDS or self._bytes > MEMORY_BYTES):
            self._bytes -= size_of(self._memory.popleft())
            self._dropped_memory += 1
            self._note_dropped()

    def _in_thread(self, job: Callable[[], _T]) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, job)


async def _outlast(future: asyncio.Future[None]) -> None:
    """Wait for it even when cancelled meanwhile; the cancellation follows."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
        except StoreError:
            break
    if cancelled is not None:
        raise cancelled
    future.result()
