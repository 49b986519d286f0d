"""The event loop's side of the store: jobs, functions of the connection, are handed to its thread, results come back.

What arrives while a transaction commits goes into the next one together (`edgecore.store.worker`).

Durability: WAL survives a kill -9 with every commit. A job with `sync` (objects and mappers, which are acknowledged to
somebody who will not say them again) is on the medium before it returns (`synchronous=FULL`). Twins and states are
written with `NORMAL` and flushed at most a second later: a power cut also restarts the mapper, which reads its devices
anew, and a flush for every report would wear out an SD card. While there is `trouble`, nothing is on a disk
(`edgecore.store.medium`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar

from dmi.metrics import Metrics
from edgecore.store.medium import Medium, StoreError, open_medium
from edgecore.store.worker import Batch, Job, Worker

__all__ = ["MAX_BACKLOG", "Database", "StoreError", "open_database"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

MAX_BACKLOG: Final = 4096
"""Jobs at once. Who asks for more waits; who cannot wait looks at `backlog` first."""
ALONG_S: Final = 0.02


class Database:
    """Made by `open_database`."""

    def __init__(self, medium: Medium, metrics: Metrics | None = None) -> None:
        self.path = medium.path
        self.rebuilt: list[Callable[[], None]] = []
        """Called on the event loop when the file was damaged and another one, mostly empty, took its place."""
        self.backlog = 0
        """Jobs that are queued or being done."""
        self._medium = medium
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(medium, done=self._settle_soon, ended=self._ended)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._along: list[Job] = []
        self._along_timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._counts = _Counts(metrics or Metrics(), self, rebuilt=medium.rebuilt)

    @property
    def trouble(self) -> str:
        """Why nothing is written to disk, for people; empty: it is."""
        return self._medium.trouble

    @property
    def trouble_since_ms(self) -> int:
        """Epoch milliseconds; 0: there is none."""
        return self._medium.trouble_since_ms

    @property
    def dropped_rows(self) -> int:
        """Stored rows that made no sense and were dropped."""
        return self._medium.dropped_rows

    async def run(
        self,
        job: Callable[[sqlite3.Connection], _T],
        *,
        then: Callable[[_T], None] | None = None,
        sync: bool = False,
    ) -> _T:
        """The job's result, once its transaction is committed. Jobs run in the order of the calls.

        `then` gets the result on the event loop after the commit, in the order of the jobs, also when the caller has
        been cancelled meanwhile: what follows from a commit must not get lost with the one who asked for it.

        Raises:
            StoreError: The transaction failed (no memory left either, damaged beyond repair); nothing of the job is
                stored.
        """
        if self._waiting or self.backlog >= MAX_BACKLOG:
            await self._place()
        else:
            self.backlog += 1
        future: asyncio.Future[_T] = self._loop.create_future()
        if self._along:
            self._send_along()
        self._worker.jobs.put(Job(run=job, future=future, then=then, sync=sync))
        return await future

    def post(
        self,
        job: Callable[[sqlite3.Connection], _T],
        *,
        then: Callable[[_T], None] | None = None,
        otherwise: Callable[[], None] | None = None,
    ) -> None:
        """As `run`, for what nobody waits for. A failure is logged, or, when it is the store's, which is logged once,
        `otherwise` called. Without that, what would have been stored is found out again.
        """
        self._put(Job(run=job, future=None, then=then, sync=False, otherwise=otherwise))

    def post_along(self, job: Callable[[sqlite3.Connection], object]) -> None:
        """As `post`, in the transaction of the next other job, or in `ALONG_S` if there is none: what would only cost
        one. Later jobs see it done."""
        self._along.append(Job(run=job, future=None, then=None, sync=False))
        if self._along_timer is None:
            self._along_timer = self._loop.call_later(ALONG_S, self._send_along)

    async def close(self) -> None:
        """Do what is queued, then close the file."""
        self._send_along()
        if self._worker.thread.is_alive():
            self._worker.jobs.put(None)
            await self._closed
            self._worker.thread.join()

    def start(self) -> None:
        self._worker.thread.start()

    def _put(self, job: Job) -> None:
        if self._along:
            self._send_along()
        self.backlog += 1
        self._worker.jobs.put(job)

    def _send_along(self) -> None:
        if self._along_timer is not None:
            self._along_timer.cancel()
            self._along_timer = None
        jobs, self._along = self._along, []
        self.backlog += len(jobs)
        for job in jobs:
            self._worker.jobs.put(job)

    async def _place(self) -> None:
        """Wait for one of the places in the backlog; who has waited longest gets the next."""
        place = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave(1)
            raise

    def _leave(self, jobs: int) -> None:
        self.backlog -= jobs
        while self._waiting and self.backlog < MAX_BACKLOG:
            place = self._waiting.popleft()
            if not place.done():
                self.backlog += 1
                place.set_result(None)

    def _settle_soon(self, batch: Batch) -> None:
        """In the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
            self._loop.call_soon_threadsafe(self._settle, batch)

    def _ended(self) -> None:
        """In the worker's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_closed)

    def _set_closed(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _settle(self, batch: Batch) -> None:
        self._counts.note(batch)
        if batch.rebuilt:
            for listener in self.rebuilt:
                listener()
        for job in batch.jobs:
            _settle(job)
        self._leave(len(batch.jobs))


def _settle(job: Job) -> None:
    waiter = job.future if job.future is not None and not job.future.done() else None
    if job.error is not None:
        if waiter is not None:
            waiter.set_exception(job.error)
        elif job.future is None:
            if job.otherwise is None or not isinstance(job.error, StoreError):
                logger.error("%s", job.error)
            if job.otherwise is not None:
                job.otherwise()
        return
    if job.then is not None:
        try:
            job.then(job.result)
        except Exception:
            logger.exception("what follows a commit failed")
    if waiter is not None:
        waiter.set_result(job.result)


class _Counts:
    """What the store shows of itself."""

    def __init__(self, metrics: Metrics, database: Database, *, rebuilt: int) -> None:
        name = "kubetwin_edgecore_store_"
        self._jobs = metrics.counter(f"{name}jobs_total", "Jobs done in transactions.", "result")
        self._transactions = metrics.counter(f"{name}transactions_total", "Transactions that wrote something.")
        self._seconds = metrics.counter(f"{name}transaction_seconds_total", "Time spent in transactions.")
        self._rebuilt = metrics.counter(f"{name}rebuilt_total", "Times the file was damaged and replaced.")
        self._rebuilt.add(amount=rebuilt)  # as it was opened
        self._largest = 0
        metrics.gauge(
            f"{name}largest_batch_jobs", "The most jobs in one transaction.", read=lambda: {(): float(self._largest)}
        )
        metrics.gauge(f"{name}backlog_jobs", "Jobs that wait.", read=lambda: {(): float(database.backlog)})
        metrics.gauge(
            f"{name}in_memory", "1 while the disk takes nothing.", read=lambda: {(): float(bool(database.trouble))}
        )
        metrics.gauge(
            f"{name}dropped_rows",
            "Stored rows that made no sense and were dropped.",
            read=lambda: {(): float(database.dropped_rows)},
        )

    def note(self, batch: Batch) -> None:
        failed = sum(job.error is not None for job in batch.jobs)
        self._jobs.add("done", amount=len(batch.jobs) - failed)
        if failed:
            self._jobs.add("failed", amount=failed)
        self._transactions.add(amount=batch.wrote)
        self._seconds.add(amount=batch.seconds)
        self._rebuilt.add(amount=batch.rebuilt)
        self._largest = max(self._largest, len(batch.jobs))


@contextlib.asynccontextmanager
async def open_database(path: Path, *, metrics: Metrics | None = None) -> AsyncIterator[Database]:
    """Open or make the file, bring its schema up to date, and run its thread while the block runs.

    A damaged file is set aside under another name, named in the log, and replaced by an empty one, which the cloud and
    the mappers fill again.

    Raises:
        StoreError: No such directory, no permission, in use by another process, or of a later version.
    """
    database = Database(open_medium(path), metrics)
    database.start()
    try:
        yield database
    finally:
        await database.close()
