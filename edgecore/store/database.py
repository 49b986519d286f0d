"""The SQLite file and the one thread that touches it.

Jobs are functions of the connection. What arrives while a transaction commits goes into the next one together, each job
under a savepoint of its own, so that a job that fails takes no other with it; an idle database commits at once.

Durability: WAL survives a kill -9 with every commit. A job with `sync` (objects and mappers, which are acknowledged to
somebody who will not say them again) is on the medium before it returns (`synchronous=FULL`). Twins and states are
written with `NORMAL` and flushed at most a second later: a power cut also restarts the mapper, which reads its devices
anew, and a flush for every report would wear out an SD card.
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
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from edgecore.store.migrations import migrate

__all__ = ["Database", "StoreError", "open_database"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

BATCH_JOBS: Final = 512
FLUSH_AFTER_S: Final = 1.0
_BUSY_TIMEOUT_S: Final = 5.0
"""An edge core that is just stopping still holds the file for up to three seconds."""


class StoreError(Exception):
    """The file cannot be opened, or a transaction was not stored. Nothing of it is."""


class _Job(Struct, eq=False):
    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any] | None
    then: Callable[[Any], None] | None
    sync: bool
    result: Any = None
    error: Exception | None = None


class Database:
    """Made by `open_database`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._unflushed_since: float | None = None
        self._full_sync = True
        self._failing = False

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
            StoreError: The transaction failed (disk full, damaged file); nothing of the job is stored.
        """
        future: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put(_Job(run=job, future=future, then=then, sync=sync))
        return await future

    def post(self, job: Callable[[sqlite3.Connection], _T], *, then: Callable[[_T], None] | None = None) -> None:
        """As `run`, for what nobody waits for. A failure is logged; what it would have stored is found out again."""
        self._jobs.put(_Job(run=job, future=None, then=then, sync=False))

    async def close(self) -> None:
        """Do what is queued, then close the file."""
        if self._thread.is_alive():
            self._jobs.put(None)
            await self._closed
            self._thread.join()

    def start(self) -> None:
        self._thread.start()

    # Below runs in the thread, except `_settle`.

    def _work(self) -> None:
        try:
            while self._work_once():
                pass
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                self._loop.call_soon_threadsafe(self._set_closed)

    def _work_once(self) -> bool:
        try:
            first = self._jobs.get(timeout=self._flush_in())
        except queue.Empty:
            self._flush()
            return True
        batch, go_on = self._collect(first)
        if batch:
            self._commit(batch)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, batch)
        return go_on

    def _collect(self, first: _Job | None) -> tuple[list[_Job], bool]:
        batch: list[_Job] = []
        job = first
        while job is not None:
            batch.append(job)
            if len(batch) >= BATCH_JOBS:
                return batch, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self._set_sync(any(job.sync for job in batch))
            self._db.execute("BEGIN")
            changes = self._db.total_changes
            for job in batch:
                self._attempt(job)
            self._db.execute("COMMIT")
            if self._db.total_changes != changes:
                self._note_commit()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            for job in batch:
                job.error = StoreError(f"{self.path}: not stored: {error}")
                job.error.__cause__ = error
            if not self._failing:
                self._failing = True
                logger.error("%s cannot be written: %s; reports are refused until it can", self.path, error)
        else:
            if self._failing:
                self._failing = False
                logger.warning("%s can be written again", self.path)

    def _attempt(self, job: _Job) -> None:
        """One job under a savepoint. Its own failure stays its own; one of SQLite ends the batch."""
        self._db.execute("SAVEPOINT job")
        try:
            job.result = job.run(self._db)
        except sqlite3.IntegrityError as error:
            job.error = StoreError(f"{self.path}: not stored: {error}")
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller
            job.error = error
        if job.error is not None:
            self._db.execute("ROLLBACK TO job")
        self._db.execute("RELEASE job")

    def _set_sync(self, full: bool) -> None:
        if full != self._full_sync:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full_sync = full

    def _note_commit(self) -> None:
        if self._full_sync:
            self._unflushed_since = None
        elif self._unflushed_since is None:
            self._unflushed_since = time.monotonic()
        elif time.monotonic() - self._unflushed_since >= FLUSH_AFTER_S:
            self._flush()

    def _flush_in(self) -> float | None:
        if self._unflushed_since is None:
            return None
        return max(self._unflushed_since + FLUSH_AFTER_S - time.monotonic(), 0.0)

    def _flush(self) -> None:
        """Put what `NORMAL` commits left in the page cache onto the medium."""
        self._unflushed_since = None
        try:
            descriptor = os.open(f"{self.path}-wal", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("%s-wal cannot be flushed: %s", self.path, error)

    def _set_closed(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    @staticmethod
    def _settle(batch: list[_Job]) -> None:
        for job in batch:
            waiter = job.future if job.future is not None and not job.future.done() else None
            if job.error is not None:
                if waiter is not None:
                    waiter.set_exception(job.error)
                elif job.future is None:
                    logger.error("%s", job.error)
                continue
            if job.then is not None:
                try:
                    job.then(job.result)
                except Exception:
                    logger.exception("what follows a commit failed")
            if waiter is not None:
                waiter.set_result(job.result)


@contextlib.asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Open or make the file, bring its schema up to date, and run its thread while the block runs.

    A damaged file is set aside under another name, named in the log, and replaced by an empty one, which the cloud and
    the mappers fill again.

    Raises:
        StoreError: No such directory, no permission, in use by another process, or of a later version.
    """
    database = Database(path, _open(path))
    database.start()
    try:
        yield database
    finally:
        await database.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise StoreError(f"{path}: {error}{_advice(error)}") from error
        aside = _set_aside(path)
        logger.error("%s is damaged (%s): set aside as %s, starting with an empty one", path, error, aside)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    try:
        return _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the mode must be right before the first byte
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        # One process at a time, held by the kernel, and no shared-memory file beside it.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        db.execute("PRAGMA cache_size = -1024")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # An error of our own check, SQLITE_CORRUPT, SQLITE_NOTADB; not busy, full, read-only or no permission.
    return getattr(error, "sqlite_errorname", "SQLITE_CORRUPT").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _advice(error: sqlite3.DatabaseError) -> str:
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        return ": another edgecore uses it; stop that one, or choose another database.dataSource"
    return ""


def _set_aside(path: Path) -> Path:
    """Rename the file and its log, and return the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    return aside
