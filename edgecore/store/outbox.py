"""What waits for the cloud and must not be lost: first in, first out, bounded in number and bytes.

A row stays until it has arrived. One under a key takes the place of the one that waits under it, but not its turn.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from msgspec import Struct

__all__ = ["KeptRow", "OutboxSize", "Put", "next_kept", "outbox_size", "put_kept", "recount", "remove_kept"]


class KeptRow(Struct, frozen=True):
    number: int
    """Grows with every row; the order in which they go."""
    body: bytes
    """The envelope as it goes over the wire."""


class OutboxSize(Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    """Of the bodies."""


class Put(Struct, frozen=True):
    """What became of one that was put in."""

    size: OutboxSize
    dropped: int
    """The oldest, for which there was no room."""


def put_kept(
    db: sqlite3.Connection, body: bytes, *, key: str = "", used: int = 0, max_messages: int, max_bytes: int
) -> Put:
    """Add a row behind all others and drop the oldest that are too many. The newest stays, whatever its size.

    `used`: the highest number that somebody remembers, of a row that may be gone; the new one's is higher.
    """
    (last,) = db.execute("SELECT coalesce(max(number), 0) FROM outbox").fetchone()
    if key:
        db.execute("DELETE FROM outbox WHERE key = ? AND key != ''", (key,))
    db.execute("INSERT INTO outbox (number, key, body) VALUES (?, ?, ?)", (max(last, used) + 1, key, body))
    dropped = 0
    while (size := outbox_size(db)).messages > 1 and (size.messages > max_messages or size.bytes > max_bytes):
        db.execute("DELETE FROM outbox WHERE number = (SELECT min(number) FROM outbox)")
        dropped += 1
    return Put(size, dropped)


def next_kept(db: sqlite3.Connection, *, after: int, limit: int, max_bytes: int) -> list[KeptRow]:
    """The first rows behind number `after`, `limit` at most, and no more than `max_bytes` except for the first."""
    rows: list[KeptRow] = []
    left = max_bytes
    query = "SELECT number, body FROM outbox WHERE number > ? ORDER BY number LIMIT ?"
    for number, body in db.execute(query, (after, limit)):
        left -= len(body)
        if rows and left < 0:
            break
        rows.append(KeptRow(number, body))
    return rows


def remove_kept(db: sqlite3.Connection, numbers: Iterable[int]) -> OutboxSize:
    """Those have arrived. Numbers that are not there any more are no error."""
    db.executemany("DELETE FROM outbox WHERE number = ?", [(number,) for number in numbers])
    return outbox_size(db)


def outbox_size(db: sqlite3.Connection) -> OutboxSize:
    """As the triggers have counted."""
    row = db.execute("SELECT messages, bytes FROM outbox_size").fetchone()
    return OutboxSize(*row) if row is not None else recount(db)


def recount(db: sqlite3.Connection) -> OutboxSize:
    """Count anew, once after the file was opened: it may have been edited, or damaged."""
    size = OutboxSize(*db.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM outbox").fetchone())
    if db.execute("SELECT messages, bytes FROM outbox_size").fetchone() != (size.messages, size.bytes):
        db.execute("INSERT OR REPLACE INTO outbox_size VALUES (1, ?, ?)", (size.messages, size.bytes))
    return size
