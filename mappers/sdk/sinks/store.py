"""The file in which the records of one sink wait: SQLite, oldest dropped first past a size or an age. Blocking; used
from one thread at a time.

It exists only while something waits. A commit is on the medium when `append` returns (WAL, `synchronous=FULL`), so what
was accepted survives a crash and a power cut; a removal may be forgotten by one, and its records are sent twice.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dmi.types import DeviceId
from mappers.sdk.samples import Sample
from mappers.sdk.sinks.record import AnyRecord, AnyTarget, Record, Route
from mappers.sdk.sinks.storefile import (
    NotOurs,
    StoreError,
    create_file,
    delete_file,
    failure_of,
    open_file,
    transaction,
    used_bytes,
)

__all__ = ["Limits", "Store", "StoreError", "Stored"]

logger = logging.getLogger(__name__)

PEEK_BYTES: Final = 1_000_000
"""Of values, in one `peek`: fewer records come if they are large."""
RESERVE_BYTES: Final = 600_000
"""Of the size, for the write-ahead log."""
CLOCK_SET_MS: Final = 1_577_836_800_000
"""2020. What was stored before that was stored by a clock that was not set, and has no age."""


class Limits(Struct, frozen=True):
    max_bytes: int
    max_age_s: float


class Stored(Struct, frozen=True):
    """A record and its place in the file."""

    seq: int
    record: AnyRecord


class _Origin(Struct, frozen=True, array_like=True):
    """All of a record that repeats."""

    device: str
    property_name: str
    type: str
    route: msgspec.Raw


class Store:
    """Counts are of the last call that touched the file."""

    def __init__(self, path: Path, target: AnyTarget, limits: Limits, set_aside: list[Path] | None = None) -> None:
        """`set_aside` gets the new name of a file that cannot be used."""
        self.path = path
        self._set_aside = set_aside if set_aside is not None else []
        self.waiting = 0
        self.oldest_ms = 0
        """When the oldest was collected; 0: none waits."""
        self.dropped: dict[str, int] = {"size": 0, "age": 0, "damaged": 0}
        self.generation = 0
        """Grows when the file is replaced by a new one: a `seq` of the old means nothing in the new."""
        self._target = target
        self._limits = limits
        self._db: sqlite3.Connection | None = None
        self._origins: dict[bytes, int] = {}
        self._sources: dict[int, tuple[_Origin, Route]] = {}

    def load(self, now_ms: int) -> None:
        """Look at what an earlier run left.

        Raises:
            StoreError: There is something, and it cannot be opened now.
        """
        with self._guard():
            db = self._existing()
            if db is not None:
                self._drop_old(db, now_ms)

    def append(self, records: Sequence[AnyRecord], now_ms: int) -> None:
        """Keep at the end; past the limits the oldest are dropped.

        Raises:
            StoreError: None of them is stored.
        """
        with self._guard():
            db = self._existing() or self._create()
            self._drop_old(db, now_ms)
            fresh: dict[bytes, int] = {}
            with transaction(db):
                most = self._limits.max_bytes // 4
                fit = [r for r in records if len(r.sample.value) <= most]
                incoming = sum(len(r.sample.value) + 40 for r in fit)
                excess = len(records) - len(fit) + self._drop_excess(db, self.waiting, incoming)
                rows = [(self._origin(db, r, fresh), r.sample.collected_ms, now_ms, r.sample.value) for r in fit]
                db.executemany("INSERT INTO records (origin, collected_ms, stored_ms, value) VALUES (?, ?, ?, ?)", rows)
                excess += self._drop_excess(db, self.waiting + len(records) - excess)
            self._origins.update(fresh)
            self.dropped["size"] += excess
            self._note(db, self.waiting + len(records) - excess)

    def peek(self, count: int, now_ms: int) -> list[Stored]:
        """The oldest records, which stay. Those past their age are dropped first.

        Raises:
            StoreError: They cannot be read now.
        """
        with self._guard():
            db = self._existing()
            if db is None:  # somebody deleted it
                self.dropped["damaged"] += self.waiting
                self.waiting = self.oldest_ms = 0
                return []
            self._drop_old(db, now_ms)
            stored: list[Stored] = []
            room = PEEK_BYTES
            select = "SELECT seq, origin, collected_ms, value FROM records ORDER BY seq LIMIT ?"
            with contextlib.closing(db.execute(select, (count,))) as rows:
                for seq, origin, collected_ms, value in rows:
                    stored.append(Stored(seq, self._record(db, origin, collected_ms, value)))
                    room -= len(value)
                    if room <= 0:
                        break
            return stored

    def remove(self, seqs: Sequence[int], generation: int) -> None:
        """Forget what was sent; the file goes with its last record.

        Raises:
            StoreError: They are still there, and will be sent again.
        """
        with self._guard():
            db = self._existing()
            if db is None or generation != self.generation:
                return
            with transaction(db):
                removed = db.executemany("DELETE FROM records WHERE seq = ?", [(seq,) for seq in seqs]).rowcount
            self._note(db, self.waiting - removed)
            if not self.waiting:
                self._discard()

    def close(self) -> None:
        """Let go of the file; it stays if something waits."""
        with contextlib.suppress(StoreError), self._guard():
            if self._db is not None and not self.waiting:
                self._discard()
        self._disconnect()

    # Records and what repeats of them.

    def _origin(self, db: sqlite3.Connection, record: AnyRecord, fresh: dict[bytes, int]) -> int:
        sample = record.sample
        route = msgspec.Raw(msgspec.json.encode(record.route))
        body = msgspec.json.encode(_Origin(sample.device, sample.property_name, sample.type, route))
        known = self._origins.get(body) or fresh.get(body)
        if known is None:
            db.execute("INSERT OR IGNORE INTO origins (body) VALUES (?)", (body,))
            ((known,),) = db.execute("SELECT id FROM origins WHERE body = ?", (body,))
            fresh[body] = int(known)
        return int(known)

    def _record(self, db: sqlite3.Connection, origin: int, collected_ms: int, value: str) -> AnyRecord:
        source = self._sources.get(origin)
        if source is None:
            ((body,),) = db.execute("SELECT body FROM origins WHERE id = ?", (origin,))
            about = msgspec.json.decode(body, type=_Origin)
            source = self._sources[origin] = about, msgspec.json.decode(about.route, type=self._target.route_type)
        about, route = source
        return Record(Sample(DeviceId(about.device), about.property_name, value, about.type, collected_ms), route)

    # Limits.

    def _note(self, db: sqlite3.Connection, waiting: int) -> None:
        oldest = db.execute("SELECT collected_ms FROM records ORDER BY seq LIMIT 1").fetchone()
        self.waiting, self.oldest_ms = (waiting, oldest[0]) if oldest else (0, 0)

    def _drop_excess(self, db: sqlite3.Connection, waiting: int, incoming_bytes: int = 0) -> int:
        dropped = 0
        while waiting > dropped and used_bytes(db) + incoming_bytes > self._limits.max_bytes - RESERVE_BYTES:
            part = max((waiting - dropped) // 50, 1)
            dropped += db.execute(
                "DELETE FROM records WHERE seq IN (SELECT seq FROM records ORDER BY seq LIMIT ?)", (part,)
            ).rowcount
        return dropped

    def _drop_old(self, db: sqlite3.Connection, now_ms: int) -> None:
        limit_ms = now_ms - int(self._limits.max_age_s * 1000)
        oldest = db.execute("SELECT stored_ms FROM records ORDER BY seq LIMIT 1").fetchone()
        if oldest is None or not CLOCK_SET_MS <= oldest[0] < limit_ms:
            return
        with transaction(db):
            young = "SELECT min(seq) FROM records WHERE stored_ms >= ? OR stored_ms < ?"
            ((first,),) = db.execute(young, (limit_ms, CLOCK_SET_MS))
            if first is None:
                dropped = db.execute("DELETE FROM records").rowcount
            else:
                dropped = db.execute("DELETE FROM records WHERE seq < ?", (first,)).rowcount
        self.dropped["age"] += dropped
        self._note(db, self.waiting - dropped)

    # The file.

    def _existing(self) -> sqlite3.Connection | None:
        if self._db is None:
            self._db = open_file(self.path, self._target)
            if self._db is not None:
                self._note(self._db, self._db.execute("SELECT count(*) FROM records").fetchone()[0])
        return self._db

    def _create(self) -> sqlite3.Connection:
        self._db = create_file(self.path, self._target)
        return self._db

    def _discard(self) -> None:
        self._disconnect()
        delete_file(self.path)

    def _disconnect(self) -> None:
        self._origins.clear()
        self._sources.clear()
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(sqlite3.Error):
                db.close()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what goes wrong with the file into `StoreError`. The next call opens it anew, or makes a new one."""
        try:
            yield
        except (NotOurs, msgspec.DecodeError, sqlite3.DatabaseError, OSError) as error:
            self._disconnect()
            failure = failure_of(self.path, error)
            if failure.set_aside is not None:
                logger.error("%s", failure)
                self._set_aside.append(failure.set_aside)
                self.dropped["damaged"] += self.waiting
                self.waiting = self.oldest_ms = 0
                self.generation += 1
            raise failure from error
