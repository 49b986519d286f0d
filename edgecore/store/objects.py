"""Kubernetes objects as the cloud sent them, by kind, namespace and name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from msgspec import Struct

__all__ = [
    "StoredObject",
    "delete_object",
    "get_object",
    "list_objects",
    "object_keys",
    "object_versions",
    "put_object",
]


class StoredObject(Struct, frozen=True):
    kind: str
    """Lower case, as in resource paths: `device`, `devicemodel`, `configmap`."""
    namespace: str
    """Empty: cluster-scoped."""
    name: str
    uid: str
    version: str
    """resourceVersion, as sent."""
    body: bytes
    """The object as JSON."""


_COLUMNS = "kind, namespace, name, uid, version, body"


def get_object(db: sqlite3.Connection, kind: str, namespace: str, name: str) -> StoredObject | None:
    row = db.execute(
        f"SELECT {_COLUMNS} FROM object WHERE kind = ? AND namespace = ? AND name = ?",  # noqa: S608 - constants
        (kind, namespace, name),
    ).fetchone()
    return None if row is None else StoredObject(*row)


def list_objects(db: sqlite3.Connection, kind: str) -> Iterator[StoredObject]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM object WHERE kind = ?", (kind,))  # noqa: S608 - constants
    return (StoredObject(*row) for row in rows)


def object_keys(db: sqlite3.Connection, kind: str) -> list[tuple[str, str]]:
    """(namespace, name) of every object of a kind."""
    return db.execute("SELECT namespace, name FROM object WHERE kind = ?", (kind,)).fetchall()


def object_versions(db: sqlite3.Connection, limit: int) -> list[tuple[str, str, str, str, str]]:
    """(kind, namespace, name, uid, version) of every object, up to `limit`; no body is read."""
    return db.execute("SELECT kind, namespace, name, uid, version FROM object LIMIT ?", (limit,)).fetchall()


def put_object(db: sqlite3.Connection, obj: StoredObject) -> None:
    db.execute(
        "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?)",
        (obj.kind, obj.namespace, obj.name, obj.uid, obj.version, obj.body),
    )


def delete_object(db: sqlite3.Connection, kind: str, namespace: str, name: str) -> bool:
    """Whether it was there."""
    cursor = db.execute("DELETE FROM object WHERE kind = ? AND namespace = ? AND name = ?", (kind, namespace, name))
    return cursor.rowcount > 0
