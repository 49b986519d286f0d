"""Objects on disk: one SQLite log, written by one thread, whose newest row per object is the object.

Every write appends one row: its resourceVersion, the object's key, and the JSON as it is served. Rows that are
neither an object's newest nor needed by the event history are deleted by the very transaction that made them so; no
compaction job runs. A resource's `compacted` mark is the resourceVersion up to which its history is gone.

Writes that arrive together share a transaction. WAL with `synchronous=NORMAL`: an answered write survives `kill -9` of
the process; after a power cut the newest transactions may be missing, but the file is never inconsistent. FULL would
cost an fsync for each transaction, on an SD card some 10 to 100 ms, and all objects here are either declared again
by their owner or reported again by the edge.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SCHEMA_VERSION = 1
_LOCK_WAIT_S = 2.0  # for a server that is just ending on the same file
MAX_BATCH = 512  # rows a transaction takes at most, so that no answer waits long for its neighbours


class Row(NamedTuple):
    """One write. `previous` is the resourceVersion of the object's row before it, 0 for a creation."""

    version: int
    resource: str
    namespace: str
    name: str
    deleted: bool
    previous: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """A row to append, and what the history let go since the last write."""

    row: Row
    forget: tuple[int, ...]  # versions of rows nobody needs any more
    compacted: tuple[tuple[str, int], ...]  # (resource, version) marks to move
    epoch: int


class StorageError(OSError):
    """The data directory cannot be used or written; the text says which file and why."""


class Storage:
    """The SQLite file and its writer thread. `on_done(writes, error)` is called in that thread, in write order."""

    def __init__(self, path: Path, on_done: Callable[[list[Write], Exception | None], None]) -> None:
        self._path = path
        self._on_done = on_done
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="apiserver-writer", daemon=True)
        self._failed_epoch = -1
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_LOCK_WAIT_S)
        except sqlite3.Error as exc:
            raise StorageError(f"cannot open {path}: {exc}") from exc
        try:
            path.chmod(0o600)
            self._migrate()
        except (sqlite3.Error, OSError) as exc:
            self._db.close()
            raise StorageError(f"cannot open {path}: {exc}") from exc

    def _migrate(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        # One process owns the file: a second server on the same data directory must fail at once, not corrupt order.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            db.close()
            raise StorageError(f"{self._path} was written by a newer release (schema {version})")
        if version < 1:
            db.execute(
                "CREATE TABLE log (version INTEGER PRIMARY KEY, resource TEXT NOT NULL, namespace TEXT NOT NULL,"
                " name TEXT NOT NULL, deleted INTEGER NOT NULL, previous INTEGER NOT NULL, data BLOB NOT NULL)"
            )
            db.execute("CREATE TABLE compacted (resource TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")

    def load(self) -> tuple[list[Row], dict[str, int]]:
        """Every row in write order, and the compaction marks by resource. Call before `start`."""
        rows = [
            Row(version, resource, namespace, name, bool(deleted), previous, data)
            for version, resource, namespace, name, deleted, previous, data in self._db.execute(
                "SELECT version, resource, namespace, name, deleted, previous, data FROM log ORDER BY version"
            )
        ]
        return rows, dict(self._db.execute("SELECT resource, version FROM compacted"))

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def submit(self, write: Write) -> None:
        """Queue a write. Its outcome comes through `on_done`."""
        self._queue.put(write)

    def close(self) -> None:
        """Write what is queued, then close the file."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, stop = [first], False
            with contextlib.suppress(queue.Empty):
                while len(batch) < MAX_BATCH:
                    item = self._queue.get_nowait()
                    if item is None:
                        stop = True
                        break
                    batch.append(item)
            # A write computed on top of one that failed must fail too; its epoch says so.
            stale = [write for write in batch if write.epoch <= self._failed_epoch]
            if stale:
                self._on_done(stale, StorageError("an earlier write failed"))
                batch = batch[len(stale) :]
            if batch:
                self._on_done(batch, self._commit(batch))
            if stop:
                return

    def _commit(self, batch: list[Write]) -> Exception | None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", [write.row for write in batch])
            forget = [(version,) for write in batch for version in write.forget]
            if forget:
                db.executemany("DELETE FROM log WHERE version = ?", forget)
                marks = [mark for write in batch for mark in write.compacted]
                db.executemany("INSERT OR REPLACE INTO compacted VALUES (?, ?)", marks)
            db.execute("COMMIT")
        except sqlite3.Error as exc:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            self._failed_epoch = batch[-1].epoch
            return exc
        return None
