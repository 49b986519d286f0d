"""Where rows are kept: the SQLite file, or, while the disk takes nothing, a copy of it in memory.

A full, read-only or failing disk: everything goes on in memory, up to `MEMORY_CAP_BYTES`, and is written back in one
transaction as soon as the disk takes it. Until then a power cut or a kill loses what changed; the file stays as it was
when the trouble began, and stays locked. A damaged file: set aside under another name and replaced by a new one with
the objects, mappers and kept messages that can still be read; the cloud is asked for the rest, and mappers report
twins and states anew. Of one that is found damaged at the start only the kept messages are read.

Everything here runs in the store's thread, except `open_medium`, which runs before there is one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from edgecore.store.migrations import migrate
from edgecore.store.salvage import copy_readable, drop_nonsense

__all__ = ["MEMORY_CAP_BYTES", "Medium", "StoreError", "open_medium"]

logger = logging.getLogger(__name__)

MEMORY_CAP_BYTES: Final = 64 * 1024 * 1024
"""Of the copy in memory; 5,000 devices of ten properties take 15 MB. What is over is refused."""
_SPARE_BYTES: Final = 1024 * 1024
"""Free space that a disk must have beside what is to be written back."""
_CACHE_KIB: Final = 1024
_BUSY_TIMEOUT_S: Final = 5.0
"""An edge core that is just stopping still holds the file for up to three seconds."""

_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_DISK: Final = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")


class StoreError(Exception):
    """The file cannot be opened, or a transaction was not stored. Nothing of it is."""


class Medium:
    """Made by `open_medium`."""

    def __init__(self, path: Path, file: sqlite3.Connection) -> None:
        self.path = path
        self.trouble = ""
        """Why nothing is written to disk; empty: it is."""
        self.trouble_since_ms = 0
        self.rebuilt = 0
        """How often the file was found damaged and replaced."""
        self.dropped_rows = drop_nonsense(file)
        """Rows that made no sense, and are gone."""
        self._file: sqlite3.Connection | None = file
        self._memory: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        db = self._memory or self._file
        if db is None:
            raise StoreError(f"{self.path}: closed")
        return db

    @property
    def on_disk(self) -> bool:
        return self._memory is None

    def mend(self, error: sqlite3.Error) -> bool:
        """After a transaction failed and was rolled back: whether there is a point in doing it again."""
        name = getattr(error, "sqlite_errorname", None)
        if name is None:  # of the module itself: text that is no UTF-8
            dropped = drop_nonsense(self.db, undecodable=True)
            self.dropped_rows += dropped
            return dropped > 0
        if not self.on_disk:
            return False
        if name.startswith(_DAMAGED):
            return self._replace(error)
        return name.startswith(_DISK) and self._go_to_memory(error)

    def write_back(self) -> bool:
        """Back to the disk, if it takes everything there is in memory."""
        memory = self._memory
        if memory is None or _free_bytes(self.path) < _size(memory) + _SPARE_BYTES:
            return memory is None
        try:
            if self._file is None:
                self._file = _connect(self.path)
            self._file.execute("PRAGMA synchronous = FULL")
            memory.backup(self._file)
        except (sqlite3.Error, OSError) as error:
            logger.debug("%s still cannot be written: %s", self.path, error)
            return False
        self._memory = None
        memory.close()
        logger.warning("%s can be written again: what was kept in memory is there now", self.path)
        self.trouble, self.trouble_since_ms = "", 0
        return True

    def close(self) -> None:
        if not self.write_back():
            logger.critical("%s: %s; what changed since is lost", self.path, self.trouble)
        for db in (self._memory, self._file):
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
        self._memory = self._file = None

    def _go_to_memory(self, error: sqlite3.Error) -> bool:
        if self._file is None:
            return False
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            if _size(self._file) > MEMORY_CAP_BYTES:
                memory.close()
                return False
            self._file.backup(memory)
            _bound(memory)
        except sqlite3.Error as unreadable:
            memory.close()
            logger.error("%s cannot be copied into memory either: %s", self.path, unreadable)
            return False
        self._memory = memory
        self._note_trouble(f"{self.path} cannot be written: {error}; all is kept in memory until it can")
        return True

    def _replace(self, error: sqlite3.Error) -> bool:
        """An empty file instead of a damaged one; in memory, if the disk does not take that either."""
        damaged = self._file
        self._file = None
        self.rebuilt += 1
        try:
            aside = _set_aside(self.path)
            self._file = new = _connect(self.path)
            logger.error("%s is damaged (%s): set aside as %s, starting anew", self.path, error, aside)
        except (sqlite3.Error, OSError) as refused:
            new = self._begin_in_memory(f"is damaged ({error}) and cannot be replaced: {refused}")
        if damaged is not None:
            try:
                copy_readable(damaged, new)
            except sqlite3.Error as refused:  # full as well; it is written back when there is room
                if new is not self._memory:
                    new = self._begin_in_memory(f"is damaged ({error}) and its rows cannot be saved: {refused}")
                    copy_readable(damaged, new)
            finally:
                with contextlib.suppress(sqlite3.Error):
                    damaged.close()
        return True

    def _begin_in_memory(self, trouble: str) -> sqlite3.Connection:
        self._memory = memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        migrate(memory)
        _bound(memory)
        self._note_trouble(f"{self.path} {trouble}; all is in memory")
        return memory

    def _note_trouble(self, trouble: str) -> None:
        logger.error("%s", trouble)
        self.trouble, self.trouble_since_ms = trouble, time.time_ns() // 1_000_000


def open_medium(path: Path) -> Medium:
    """Open or make the file, with its schema up to date; a damaged one is set aside first.

    Raises:
        StoreError: No such directory, no permission, in use by another process, or of a later version.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Medium(path, _connect(path))
    except sqlite3.DatabaseError as error:
        # An error of our own check has no name; else it must not be busy, full, read-only or no permission.
        if not getattr(error, "sqlite_errorname", _DAMAGED[0]).startswith(_DAMAGED):
            raise StoreError(f"{path}: {error}{_advice(error)}") from error
        aside = _set_aside(path)
        logger.error("%s is damaged (%s): set aside as %s, starting with a new one", path, error, aside)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    try:
        medium = Medium(path, _connect(path))
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: {error}") from error
    medium.rebuilt = 1
    # The cloud and the mappers fill it; nobody but us has what is kept for the cloud.
    try:
        with contextlib.closing(sqlite3.connect(aside)) as damaged:
            copy_readable(damaged, medium.db, tables=("outbox",))
    except sqlite3.Error as error:
        logger.warning("%s: messages for the cloud that may be in there are lost: %s", aside, error)
    return medium


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the mode must be right before the first byte
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        # One process at a time, held by the kernel, and no shared-memory file beside it.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))  # it has several lines
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _advice(error: sqlite3.DatabaseError) -> str:
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        return ": another edgecore uses it; stop that one, or choose another database.dataSource"
    return ""


def _set_aside(path: Path) -> Path:
    """Rename the file and its log, and return the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for number in range(1, 100):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    return aside


def _size(db: sqlite3.Connection) -> int:
    (pages,), (page_bytes,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(page_bytes)


def _bound(memory: sqlite3.Connection) -> None:
    (page_bytes,) = memory.execute("PRAGMA page_size").fetchone()
    memory.execute(f"PRAGMA max_page_count = {MEMORY_CAP_BYTES // int(page_bytes)}")


def _free_bytes(path: Path) -> int:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return 0
    return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
