"""The ring on disk: one SQLite file of reported values, oldest out first. Used by one thread at a time; blocks.

A row's id grows with its arrival and is what "older" goes by, for the clock of a device may stand anywhere. WAL and
`synchronous=NORMAL`: only carrying the log over flushes, so that an SD card lasts; a power cut takes the last seconds.
Freed pages go back to the file system (`auto_vacuum=INCREMENTAL`).
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from dmi import DeviceId
from edgecore.history.points import Last, Point, digest

__all__ = ["HistoryFile", "is_damage"]

logger = logging.getLogger(__name__)

_VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE series (
        id INTEGER PRIMARY KEY, device TEXT NOT NULL, property TEXT NOT NULL, UNIQUE (device, property))""",
    """CREATE TABLE point (
        id INTEGER PRIMARY KEY, series INTEGER NOT NULL, at INTEGER NOT NULL,
        value TEXT NOT NULL, type TEXT NOT NULL, quality TEXT NOT NULL)""",
    "CREATE INDEX point_of ON point (series)",
    f"PRAGMA user_version = {_VERSION}",
)
_LOG_SHARE: Final = 8
"""The write-ahead log may have this part of the file's bytes before it is carried over, and again while it is."""
_USED_SHARE: Final = 5
"""Eighths for what is kept. The rest: the log, which one transaction may take beyond its share, and freed pages that
are not given back yet."""
_FULL_LOG_PAGES: Final = 1000
_PRUNE_ROWS: Final = 2000
_VACUUM_PAGES: Final = 256
"""At a time: moving them goes through the log too."""
_AHEAD_MS: Final = 24 * 3600 * 1000
"""A time so far ahead of now is of a clock that was wrong: it counts as old."""


class _Series(Struct):
    id: int
    rows: int


class HistoryFile:
    """
    Raises:
        sqlite3.Error, OSError, ValueError: It cannot be opened; `is_damage` says whether it is to be set aside.
    """

    def __init__(self, path: Path, *, max_values: int, max_age_ms: int, max_bytes: int) -> None:
        self.path = path
        self._max_values = max_values
        self._max_age_ms = max_age_ms
        self._max_bytes = max_bytes
        self._db = _connect(path, max_bytes)
        try:
            (self._page,) = self._db.execute("PRAGMA page_size").fetchone()
            self._series = self._read_series()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    def last_points(self) -> dict[DeviceId, dict[str, Last]]:
        """The newest of every property."""
        found: dict[DeviceId, dict[str, Last]] = {}
        for device, name, value, quality, at in self._db.execute(
            "SELECT s.device, s.property, p.value, p.quality, p.at FROM series AS s JOIN point AS p"
            " ON p.id = (SELECT max(id) FROM point WHERE series = s.id)"
        ):
            found.setdefault(DeviceId(device), {})[name] = Last(digest(value, quality), at)
        return found

    def size_bytes(self) -> int:
        """What it takes on disk, the log included."""
        total = 0
        for file in (self.path, self.path.with_name(self.path.name + "-wal")):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def append(self, points: Iterable[Point], *, now_ms: int) -> None:
        """Store these and let go of what is too much or too old, in one transaction.

        Raises:
            sqlite3.Error: Nothing of it happened.
        """
        try:
            with self._transaction():
                for point in points:
                    self._add(point)
                self._drop_old(now_ms)
                self._drop_excess()
            self._give_back()
        except Exception:
            self._series = self._read_series()  # it may have noted what was rolled back
            raise

    def keep_only(self, declared: Mapping[DeviceId, Collection[str] | None]) -> None:
        """Drop what is of no device here, or of a property it no longer has; None: that is not known."""
        kept = {device: names for device, names in declared.items() if names is not None}
        gone = [key for key in self._series if key[0] not in declared or key[1] not in kept.get(key[0], (key[1],))]
        self._drop_series(gone)

    def keep_properties(self, kept: Mapping[DeviceId, Collection[str]]) -> None:
        """Of these devices. Many may go at once, so this goes through the series once."""
        if kept:
            self._drop_series([key for key in self._series if key[1] not in kept.get(key[0], (key[1],))])

    def newest_first(self, device: DeviceId, name: str, *, since_ms: int) -> Iterator[Point]:
        """Read as it is asked for; `name` empty: of all properties."""
        series = [(key[1], self._series[key].id) for key in self._series if key[0] == device and name in ("", key[1])]
        rings = [self._ring(id_, property_name, since_ms) for property_name, id_ in series]
        for _, property_name, (value, type_, at, quality) in heapq.merge(*rings, key=lambda row: -row[0]):
            yield Point(device, property_name, value, type_, at, quality)

    def _ring(self, series: int, name: str, since_ms: int) -> Iterator[tuple[int, str, tuple[str, str, int, str]]]:
        rows = self._db.execute(
            "SELECT id, value, type, at, quality FROM point WHERE series = ? AND at >= ? ORDER BY id DESC",
            (series, since_ms),
        )
        return ((id_, name, rest) for id_, *rest in rows)

    def _add(self, point: Point) -> None:
        key = (point.device, point.name)
        series = self._series.get(key)
        if series is None:
            cursor = self._db.execute("INSERT INTO series (device, property) VALUES (?, ?)", key)
            assert cursor.lastrowid is not None  # noqa: S101 - it was an INSERT
            series = self._series[key] = _Series(cursor.lastrowid, 0)
        self._db.execute(
            "INSERT INTO point (series, at, value, type, quality) VALUES (?, ?, ?, ?, ?)",
            (series.id, point.collected_ms, point.value, point.type, point.quality),
        )
        series.rows += 1
        if (over := series.rows - self._max_values) > 0:
            self._db.execute(
                "DELETE FROM point WHERE id IN (SELECT id FROM point WHERE series = ? ORDER BY id LIMIT ?)",
                (series.id, over),
            )
            series.rows -= over

    def _drop_old(self, now_ms: int) -> None:
        """The oldest rows as far as they are too old, a bounded number at a time."""
        since_ms = now_ms - self._max_age_ms
        rows = self._db.execute("SELECT id, at FROM point ORDER BY id LIMIT ?", (_PRUNE_ROWS,)).fetchall()
        last = 0
        for id_, at in rows:
            if since_ms <= at <= now_ms + _AHEAD_MS:
                break
            last = id_
        if last:
            self._drop_up_to(last)

    def _drop_excess(self) -> None:
        """The oldest rows, until what is used fits into the file's share."""
        share = self._max_bytes * _USED_SHARE // _LOG_SHARE
        while self._used_bytes() > share:
            (last,) = self._db.execute(
                "SELECT max(id) FROM (SELECT id FROM point ORDER BY id LIMIT (SELECT 1 + count(*) / 16 FROM point))"
            ).fetchone()
            if last is None:
                return
            self._drop_up_to(last)

    def _drop_up_to(self, last: int) -> None:
        counts = self._db.execute(
            "SELECT series, count(*) FROM point WHERE id <= ? GROUP BY series", (last,)
        ).fetchall()
        self._db.execute("DELETE FROM point WHERE id <= ?", (last,))
        by_id = {series.id: series for series in self._series.values()} if counts else {}
        for id_, count in counts:
            if (series := by_id.get(id_)) is not None:
                series.rows -= count

    def _drop_series(self, keys: Sequence[tuple[DeviceId, str]]) -> None:
        if not keys:
            return
        with self._transaction():
            ids = [(self._series[key].id,) for key in keys]
            self._db.executemany("DELETE FROM point WHERE series = ?", ids)
            self._db.executemany("DELETE FROM series WHERE id = ?", ids)
        for key in keys:
            del self._series[key]
        self._give_back()

    def _used_bytes(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return int((pages - free) * self._page)

    def _give_back(self) -> None:
        """Freed pages to the file system, once there are enough to be worth the writing."""
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        if free * self._page * 2 * _LOG_SHARE > self._max_bytes:
            # As a script, for `execute` would end after the first page.
            self._db.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _read_series(self) -> dict[tuple[DeviceId, str], _Series]:
        rows = self._db.execute(
            "SELECT s.device, s.property, s.id, count(p.id) FROM series AS s"
            " LEFT JOIN point AS p ON p.series = s.id GROUP BY s.id"
        )
        return {(DeviceId(device), name): _Series(id_, count) for device, name, id_, count in rows}

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise


def is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "SQLITE_CORRUPT").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _connect(path: Path, max_bytes: int) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the mode must be right before the first byte
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts before the first table
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -512")
        share = max_bytes // _LOG_SHARE
        (page,) = db.execute("PRAGMA page_size").fetchone()
        db.execute(f"PRAGMA journal_size_limit = {share}")
        db.execute(f"PRAGMA wal_autocheckpoint = {max(min(share // page, _FULL_LOG_PAGES), 4)}")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise ValueError(f"it is of version {version}, and this edgecore knows versions up to {_VERSION}")
        if version < _VERSION:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db
