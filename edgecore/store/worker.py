"""The store's thread: takes jobs from a queue, and does them in batches, each one transaction.

An idle database commits at once; under load, which is when several jobs share a transaction anyway, there is one
transaction every `BATCH_EVERY_S`, or after `SOONEST_S` when nobody comes any more: those who report wait for their
answers then, and 32 of them could make 1,600 reports a second and no more. A job that fails takes no other with it: the
batch is done again with a savepoint for each. So a job may be run more than once, of which only the last time counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from edgecore.store.medium import Medium, StoreError

__all__ = ["Batch", "Job", "Worker"]

logger = logging.getLogger(__name__)

BATCH_JOBS: Final = 512
BATCH_EVERY_S: Final = 0.02
SOONEST_S: Final = 0.015
QUIET_S: Final = 0.001
"""Nothing came for so long: nobody comes any more."""
LOAD_JOBS: Final = 4.0
"""More jobs than this in a transaction, on the average of the last few, is load."""
FLUSH_AFTER_S: Final = 1.0
PROBE_EVERY_S: Final = 2.0
"""How often a disk that took nothing is tried again."""
_TRIES: Final = 3
"""Of a transaction: a disk may be full right after a damaged file was replaced."""


class Job(Struct, eq=False):
    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any] | None
    then: Callable[[Any], None] | None
    sync: bool
    otherwise: Callable[[], None] | None = None
    result: Any = None
    error: Exception | None = None


class Batch(Struct, eq=False):
    """What became of one, for those who wait and for the metrics."""

    jobs: list[Job]
    seconds: float = 0.0
    wrote: bool = False
    rebuilt: bool = False
    """The file was found damaged, and another one took its place."""


class Worker:
    """`done` is called in the thread with each batch, and `ended` at the very end."""

    def __init__(self, medium: Medium, *, done: Callable[[Batch], None], ended: Callable[[], None]) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        """None: do what is before it, and end."""
        self.thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._medium = medium
        self._done = done
        self._ended = ended
        self._unflushed_since: float | None = None
        self._full_sync: bool | None = None
        self._failing = False
        self._load = 0.0
        self._began_at = float("-inf")
        self._probe_at = 0.0

    def _work(self) -> None:
        try:
            while self._work_once():
                pass
        finally:
            self._medium.close()
            self._ended()

    def _work_once(self) -> bool:
        try:
            first = self.jobs.get(timeout=self._wake_in())
        except queue.Empty:
            self._flush()
            self._probe()
            return True
        self._gather()
        jobs, go_on = self._collect(first)
        if jobs:
            batch = self._do(jobs)
            self._load = (self._load + len(jobs)) / 2
            self._done(batch)
            self._probe()
        return go_on

    def _gather(self) -> None:
        """Under load, wait for what comes until the next transaction is due."""
        if self._load < LOAD_JOBS:
            return
        _sleep_until(self._began_at + SOONEST_S - QUIET_S)
        there = -1
        while (size := self.jobs.qsize()) > there and (left_s := self._began_at + BATCH_EVERY_S - time.monotonic()) > 0:
            there = size
            time.sleep(min(left_s, QUIET_S))

    def _collect(self, first: Job | None) -> tuple[list[Job], bool]:
        batch: list[Job] = []
        job = first
        while job is not None:
            batch.append(job)
            if len(batch) >= BATCH_JOBS:
                return batch, True
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _do(self, jobs: list[Job]) -> Batch:
        """Every job's result or error, and the former committed."""
        start = self._began_at = time.monotonic()
        rebuilt = self._medium.rebuilt
        batch = Batch(jobs)
        for left in reversed(range(_TRIES)):
            try:
                batch.wrote = self._commit(jobs)
            except (sqlite3.Error, StoreError) as error:
                with contextlib.suppress(sqlite3.Error, StoreError):
                    self._medium.db.execute("ROLLBACK")
                if left and isinstance(error, sqlite3.Error) and self._mend(error):
                    self._full_sync = None  # it is another connection
                    continue
                self._note_failed(jobs, error)
            else:
                self._note_done()
            break
        batch.seconds = time.monotonic() - start
        batch.rebuilt = self._medium.rebuilt != rebuilt
        return batch

    def _mend(self, error: sqlite3.Error) -> bool:
        try:
            return self._medium.mend(error)
        except (sqlite3.Error, StoreError, OSError) as worse:  # this thread is the only one, and all wait for it
            logger.error("%s: not mended after %s: %s", self._medium.path, error, worse)
            return False

    def _commit(self, jobs: list[Job]) -> bool:
        """All in one transaction; returns whether anything was written."""
        db = self._medium.db
        self._set_sync(any(job.sync for job in jobs))
        changes = db.total_changes
        if not self._attempt_all(db, jobs):
            self._attempt_each(db, jobs)
        wrote = db.total_changes != changes
        db.execute("COMMIT")
        if wrote:
            self._note_commit()
        return wrote

    def _attempt_all(self, db: sqlite3.Connection, jobs: list[Job]) -> bool:
        """The jobs without savepoints; False, and nothing done, if one fails of itself."""
        db.execute("BEGIN")
        try:
            for job in jobs:
                job.error = None
                job.result = job.run(db)
        except sqlite3.Error as error:
            if not _is_the_jobs_own(error):
                raise
        except Exception as error:  # noqa: BLE001 - it comes again, with a savepoint, and goes to the caller
            logger.debug("a job failed: %r", error)
        else:
            return True
        db.execute("ROLLBACK")
        return False

    def _attempt_each(self, db: sqlite3.Connection, jobs: list[Job]) -> None:
        db.execute("BEGIN")
        for job in jobs:
            job.error = None
            db.execute("SAVEPOINT job")
            try:
                job.result = job.run(db)
            except sqlite3.Error as error:
                if not _is_the_jobs_own(error):
                    raise
                job.error = StoreError(f"{self._medium.path}: not stored: {error}")
            except Exception as error:  # noqa: BLE001 - handed to the caller
                job.error = error
            if job.error is not None:
                db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")

    def _note_failed(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            job.error = StoreError(f"{self._medium.path}: not stored: {error}")
            job.error.__cause__ = error
        if not self._failing:
            self._failing = True
            logger.error("%s: not stored: %s; reports are refused until it can be written", self._medium.path, error)

    def _note_done(self) -> None:
        if self._failing:
            self._failing = False
            logger.warning("%s: reports are stored again", self._medium.path)

    def _set_sync(self, full: bool) -> None:
        if full != self._full_sync:
            self._medium.db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full_sync = full

    def _note_commit(self) -> None:
        now = time.monotonic()
        if self._full_sync or not self._medium.on_disk:
            self._unflushed_since = None
        elif self._unflushed_since is None:
            self._unflushed_since = now
        elif now - self._unflushed_since >= FLUSH_AFTER_S:
            self._flush()

    def _wake_in(self) -> float | None:
        if not self._medium.on_disk:
            return max(self._probe_at - time.monotonic(), 0.0)
        if self._unflushed_since is None:
            return None
        return max(self._unflushed_since + FLUSH_AFTER_S - time.monotonic(), 0.0)

    def _probe(self) -> None:
        """See whether the disk takes what is in memory, not too often."""
        if self._medium.on_disk or time.monotonic() < self._probe_at:
            return
        if self._probe_at and self._medium.write_back():
            self._full_sync, self._probe_at = True, 0.0
        else:
            self._probe_at = time.monotonic() + PROBE_EVERY_S

    def _flush(self) -> None:
        """Put what `NORMAL` commits left in the page cache onto the medium."""
        if self._unflushed_since is None:
            return
        self._unflushed_since = None
        if not self._medium.on_disk:
            return
        try:
            descriptor = os.open(f"{self._medium.path}-wal", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("%s-wal cannot be flushed: %s", self._medium.path, error)


def _sleep_until(when: float) -> None:
    """`when` is a time of the monotonic clock."""
    if (left_s := when - time.monotonic()) > 0:
        time.sleep(left_s)


def _is_the_jobs_own(error: sqlite3.Error) -> bool:
    """Whether the job asked for something impossible; else it is about the file, and so about all jobs.

    What the module itself raises has no code: of those, only text that cannot be decoded is about the file.
    """
    if isinstance(error, sqlite3.IntegrityError):
        return True
    return not hasattr(error, "sqlite_errorname") and not isinstance(error, sqlite3.OperationalError)
