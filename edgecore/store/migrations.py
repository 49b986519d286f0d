"""The schema, as numbered steps forward. A released step is never edited; a change is a new one.

The number of the last step done is SQLite's `user_version`. `tests/data/edgecore` keeps a saved file of every version.
"""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["VERSION", "migrate"]

_STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        # Kubernetes objects as the cloud sent them. Cluster-scoped ones have an empty namespace.
        """CREATE TABLE object (
            kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
            uid TEXT NOT NULL, version TEXT NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (kind, namespace, name))""",
        # Mappers that registered. `name` is in the key, so that several of one protocol need no new table.
        """CREATE TABLE mapper (
            protocol TEXT NOT NULL, name TEXT NOT NULL, address TEXT NOT NULL,
            version TEXT NOT NULL, api_version TEXT NOT NULL, state TEXT NOT NULL,
            PRIMARY KEY (protocol, name)) WITHOUT ROWID""",
        # What a mapper has, or may have: an empty digest means that a call was begun and its end is not known.
        """CREATE TABLE handed (
            protocol TEXT NOT NULL, device TEXT NOT NULL, digest BLOB NOT NULL,
            PRIMARY KEY (protocol, device)) WITHOUT ROWID""",
        # A device's state: what its mapper said, and over it the fault that edge core sees, if any.
        """CREATE TABLE device_state (
            device TEXT PRIMARY KEY,
            state TEXT NOT NULL, reason TEXT NOT NULL, fault_state TEXT NOT NULL, fault_reason TEXT NOT NULL,
            last_online_ms INTEGER NOT NULL, version INTEGER NOT NULL, acked INTEGER NOT NULL) WITHOUT ROWID""",
        # Twins. A row is dirty, that is unknown to the cloud, while version > acked.
        """CREATE TABLE twin (
            device TEXT NOT NULL, property TEXT NOT NULL,
            reported TEXT NOT NULL, reported_type TEXT NOT NULL, reported_ms INTEGER NOT NULL,
            quality TEXT NOT NULL, reported_reason TEXT NOT NULL,
            desired TEXT NOT NULL, desired_type TEXT NOT NULL, desired_ms INTEGER NOT NULL,
            write TEXT NOT NULL, desired_reason TEXT NOT NULL,
            version INTEGER NOT NULL, acked INTEGER NOT NULL,
            PRIMARY KEY (device, property)) WITHOUT ROWID""",
    ),
    (
        # Several mappers of one protocol: what was handed is known by mapper. Before, a protocol had one at most.
        "ALTER TABLE handed RENAME TO handed_before",
        """CREATE TABLE handed (
            protocol TEXT NOT NULL, mapper TEXT NOT NULL, device TEXT NOT NULL, digest BLOB NOT NULL,
            PRIMARY KEY (protocol, mapper, device)) WITHOUT ROWID""",
        """INSERT INTO handed SELECT h.protocol, m.name, h.device, h.digest
            FROM handed_before AS h JOIN mapper AS m ON m.protocol = h.protocol""",
        "DROP TABLE handed_before",
    ),
    (
        # The twin document of the MQTT topics: may an app delete the twin, has one, and each side's own versions.
        "ALTER TABLE twin ADD COLUMN optional INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE twin ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE twin ADD COLUMN reported_edge INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE twin ADD COLUMN reported_cloud INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE twin ADD COLUMN desired_edge INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE twin ADD COLUMN desired_cloud INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE twin ADD COLUMN desired_by_app INTEGER NOT NULL DEFAULT 0",
        "UPDATE twin SET reported_edge = version WHERE reported_ms > 0",
        "UPDATE twin SET desired_edge = version WHERE desired_ms > 0",
        # Since when a device is in the state that is shown; 0: not known.
        "ALTER TABLE device_state ADD COLUMN since_ms INTEGER NOT NULL DEFAULT 0",
        # Topics that rules in the cloud subscribed to, upstream's `sub_topics`.
        "CREATE TABLE mqtt_topic (topic TEXT PRIMARY KEY) WITHOUT ROWID",
    ),
    (
        # Messages for the cloud that must not be lost, in the order they go in. `body` is the whole envelope.
        """CREATE TABLE outbox (
            number INTEGER PRIMARY KEY, key TEXT NOT NULL, body BLOB NOT NULL)""",
        "CREATE INDEX outbox_key ON outbox (key) WHERE key != ''",
        # How many there are, kept by the two triggers: counting thousands for each that comes would take longer.
        """CREATE TABLE outbox_size (
            one INTEGER PRIMARY KEY, messages INTEGER NOT NULL, bytes INTEGER NOT NULL)""",
        "INSERT INTO outbox_size (one, messages, bytes) VALUES (1, 0, 0)",
        """CREATE TRIGGER outbox_grows AFTER INSERT ON outbox BEGIN
            UPDATE outbox_size SET messages = messages + 1, bytes = bytes + length(NEW.body); END""",
        """CREATE TRIGGER outbox_shrinks AFTER DELETE ON outbox BEGIN
            UPDATE outbox_size SET messages = messages - 1, bytes = bytes - length(OLD.body); END""",
    ),
)

VERSION: Final = len(_STEPS)


def migrate(db: sqlite3.Connection) -> None:
    """Bring a file of any older version, or a new one, to `VERSION`; each step is one transaction.

    Raises:
        ValueError: The file is of a later version than this program knows.
        sqlite3.Error: A step failed; the file is as it was before that step.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise ValueError(f"it is of version {version}, and this edgecore knows versions up to {VERSION}")
    for number, statements in enumerate(_STEPS[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
