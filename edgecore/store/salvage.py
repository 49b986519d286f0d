"""What to do with rows that are not what the schema says: files get damaged, and edited by hand.

SQLite stores any value in any column. A row with a value of the wrong type, or with text that is no UTF-8, would fail
every transaction that reads it; so it is named in the log and dropped, and the rest of the file is kept.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator
from typing import Any, Final

import msgspec

from dmi.twins import LAST_MS

__all__ = ["copy_readable", "drop_nonsense"]

logger = logging.getLogger(__name__)

KEPT: Final = ("object", "mapper", "handed", "mqtt_topic", "outbox")
"""Tables that are worth reading from a damaged file. Twins and states are not among them: mappers report them anew."""


MAX_TEXT_CHARS: Final = 64 * 1024


class _Table:
    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self.name = name
        columns = db.execute(f"PRAGMA table_info({name})").fetchall()
        self.types = {str(column[1]): str(column[2]) for column in columns}
        self.key = [str(column[1]) for column in sorted(columns, key=lambda c: int(c[5])) if column[5]]


def drop_nonsense(db: sqlite3.Connection, *, undecodable: bool = False) -> int:
    """Delete rows with values of another type than their column's, and with `undecodable` those whose text is no UTF-8,
    which takes a look at every value. Returns how many.
    """
    dropped = 0
    for table in _tables(db):
        wrong = _mistyped(db, table)
        if undecodable:
            wrong += _undecodable(db, table)
        for key in wrong:
            logger.error("a row of table %s made no sense and is dropped: %s", table.name, _show(key))
            match = " AND ".join(f"CAST({column} AS BLOB) = ?" for column in table.key)
            db.execute(f"DELETE FROM {table.name} WHERE {match}", key)  # noqa: S608 - names of our own schema
            dropped += 1
    return dropped


def copy_readable(damaged: sqlite3.Connection, new: sqlite3.Connection, *, tables: Collection[str] = KEPT) -> None:
    """Whatever can be read of the tables, in one transaction.

    Raises:
        sqlite3.Error: The new one does not take it; nothing of it is there.
    """
    new.execute("BEGIN")
    try:
        for table in _tables(new):
            if table.name not in tables:
                continue
            columns, marks = ", ".join(table.types), ", ".join("?" * len(table.types))
            count = 0
            for row in _readable(damaged, table, columns):
                new.execute(f"INSERT OR REPLACE INTO {table.name} ({columns}) VALUES ({marks})", row)  # noqa: S608
                count += 1
            logger.info("%d rows of table %s are saved from the damaged file", count, table.name)
        new.execute("COMMIT")
    except sqlite3.Error:
        if new.in_transaction:
            new.execute("ROLLBACK")
        raise


def _readable(damaged: sqlite3.Connection, table: _Table, columns: str) -> Iterator[tuple[Any, ...]]:
    try:
        rows = damaged.execute(f"SELECT {columns} FROM {table.name}")  # noqa: S608
        while (row := rows.fetchone()) is not None:
            if _is_whole(table, row):
                yield row
    except sqlite3.Error as error:
        logger.warning("table %s can be read no further: %s", table.name, error)


def _tables(db: sqlite3.Connection) -> Iterator[_Table]:
    names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall()
    return (_Table(db, name) for (name,) in names)


def _mistyped(db: sqlite3.Connection, table: _Table) -> list[tuple[bytes, ...]]:
    """Their keys, as bytes. What is of the right type and cannot be meant counts too: numbers that are no time, where
    all are times, versions and truth values; texts longer than any value; names that are none.
    """
    checks = [f"typeof({column}) != '{type_.lower()}'" for column, type_ in table.types.items()]
    checks += [f"{column} NOT BETWEEN 0 AND {LAST_MS}" for column, type_ in table.types.items() if type_ == "INTEGER"]
    checks += [f"length({column}) > {MAX_TEXT_CHARS}" for column, type_ in table.types.items() if type_ == "TEXT"]
    if "device" in table.types:
        checks.append("device NOT LIKE '_%/_%' OR device LIKE '%/%/%'")
    if table.name == "object":
        checks.append("name = '' OR instr(namespace || name, '/') OR namespace = '' AND kind LIKE 'device%'")
    wrong = " OR ".join(checks)
    rows = db.execute(f"SELECT {_blobs(table.key)} FROM {table.name} WHERE {wrong}")  # noqa: S608
    return rows.fetchall()


def _undecodable(db: sqlite3.Connection, table: _Table) -> list[tuple[bytes, ...]]:
    texts = [column for column, type_ in table.types.items() if type_ == "TEXT"]
    if not texts:
        return []
    rows = db.execute(f"SELECT {_blobs(texts)}, {_blobs(table.key)} FROM {table.name}")  # noqa: S608
    return [row[len(texts) :] for row in rows if not all(map(_is_text, row[: len(texts)]))]


def _blobs(columns: list[str]) -> str:
    return ", ".join(f"CAST({column} AS BLOB)" for column in columns)


def _is_text(value: Any) -> bool:
    try:
        bytes(value).decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_whole(table: _Table, row: tuple[Any, ...]) -> bool:
    kinds = {"TEXT": str, "INTEGER": int, "BLOB": bytes}
    if not all(isinstance(v, kinds[type_]) for v, type_ in zip(row, table.types.values(), strict=True)):
        return False
    if table.name != "object":
        return True
    try:
        msgspec.json.decode(row[list(table.types).index("body")])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _show(key: tuple[bytes, ...]) -> str:
    return " ".join(bytes(part)[:128].decode(errors="replace") for part in key)
