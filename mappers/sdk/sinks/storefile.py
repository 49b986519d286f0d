"""The SQLite file of waiting records as a file: made, opened, checked, set aside when it cannot be used."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from mappers.sdk.sinks.kinds import AnyKind
from mappers.sdk.sinks.record import AnyTarget

__all__ = [
    "NotOurs", "StoreError", "create_file", "delete_file", "failure_of", "open_file", "read_target", "transaction",
    "used_bytes",
]  # fmt: skip

APPLICATION_ID: Final = 0x6B747773
VERSION: Final = 1
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA: Final = (
    "CREATE TABLE target (body TEXT NOT NULL)",
    "CREATE TABLE origins (id INTEGER PRIMARY KEY, body BLOB NOT NULL UNIQUE)",
    """CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, origin INTEGER NOT NULL,
       collected_ms INTEGER NOT NULL, stored_ms INTEGER NOT NULL, value TEXT NOT NULL)""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


class StoreError(Exception):
    """The file could not be written or read. Nothing of the call is stored.

    `set_aside`: it never will be, and has this name now.
    """

    def __init__(self, problem: str, set_aside: Path | None = None) -> None:
        super().__init__(problem)
        self.set_aside = set_aside


class NotOurs(Exception):
    """A file that this module did not make, or not for this target."""


def open_file(path: Path, target: AnyTarget) -> sqlite3.Connection | None:
    """The file of that target; None: there is none.

    Raises:
        NotOurs, sqlite3.Error: It cannot be used.
    """
    if not _has_content(path):
        return None
    db = _connect(path)
    try:
        if _check(db, path) != _body(target):
            raise NotOurs(f"{path} belongs to another target")
        _set_up(db)
    except BaseException:
        db.close()
        raise
    return db


def create_file(path: Path, target: AnyTarget) -> sqlite3.Connection:
    """A new file, mode 0600, in a folder that is made with mode 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an empty one, of a run that ended here
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
    db = _connect(path)
    try:
        _set_up(db)
        with transaction(db):
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO target (body) VALUES (?)", (_body(target),))
    except BaseException:
        db.close()
        raise
    return db


def delete_file(path: Path) -> None:
    for file in _files(path):
        file.unlink(missing_ok=True)


def read_target(path: Path) -> AnyTarget:
    """Whose records wait in a file.

    Raises:
        StoreError: It is not ours, damaged, or cannot be read now.
    """
    try:
        with contextlib.closing(_connect(path)) as db:
            target: AnyTarget = msgspec.json.decode(_check(db, path), type=AnyKind)
            return target
    except (NotOurs, msgspec.DecodeError, sqlite3.DatabaseError, OSError) as error:
        raise failure_of(path, error) from error


def failure_of(path: Path, error: Exception) -> StoreError:
    """What to raise; a file that never will be of use is set aside."""
    if not _is_damaged(error):
        return StoreError(f"{path}: {error}")
    try:
        aside = _set_aside(path)
    except OSError as failed:
        return StoreError(f"{path}: {error}, and it cannot be renamed: {failed}")
    return StoreError(f"{path} cannot be used ({error}); it is kept as {aside}", aside)


def _set_aside(path: Path) -> Path:
    """Rename a file that cannot be used, and its log, to a name that is free."""
    number = next(n for n in range(1, 10_000) if not path.with_suffix(f".damaged-{n}").exists())
    aside = path.with_suffix(f".damaged-{number}")
    path.rename(aside)
    for other in _files(path)[1:]:
        other.unlink(missing_ok=True)
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    # Used by one thread at a time, which need not be the same for ever.
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _is_damaged(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, (NotOurs, msgspec.DecodeError)):
        return True
    # Its primary code is the low byte. A missing table or a value of the wrong type: SQLITE_ERROR, someone meddled.
    return isinstance(code, int) and code & 0xFF in (*_DAMAGED, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT)


def _body(target: AnyTarget) -> str:
    return msgspec.json.encode(target).decode()


def _check(db: sqlite3.Connection, path: Path) -> str:
    """The target of a file that is ours and whole."""
    ((application,),), ((version,),) = (
        db.execute(f"PRAGMA {p}").fetchall() for p in ("application_id", "user_version")
    )
    if (application, version) != (APPLICATION_ID, VERSION):
        raise NotOurs(f"{path} holds no waiting samples, or those of another version")
    ((result,),) = db.execute("PRAGMA quick_check(1)").fetchall()
    if result != "ok":
        raise NotOurs(f"{path} is damaged: {result}")
    rows = db.execute("SELECT body FROM target").fetchall()
    if len(rows) != 1 or not isinstance(rows[0][0], str):
        raise NotOurs(f"{path} names no target")
    return rows[0][0]


def _set_up(db: sqlite3.Connection) -> None:
    # Exclusive: no shared-memory file, and a second process is told at once that the file is in use.
    for pragma in (
        "locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 50",
        "journal_size_limit = 262144", "cache_size = -256",
    ):  # fmt: skip
        db.execute(f"PRAGMA {pragma}")


def used_bytes(db: sqlite3.Connection) -> int:
    pages, free, size = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def _files(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
