"""One row per device and property: the twin document, its version, and the version the cloud confirmed."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import Final, cast, get_args

from msgspec import Struct

from dmi import Desired, DeviceId, Reported, Twin
from dmi.twins import Quality, WriteState

__all__ = [
    "TwinRow",
    "acknowledge_twins",
    "delete_device",
    "delete_orphans",
    "dirty_devices",
    "get_twins",
    "keep_properties",
    "put_twins",
]

_QUALITIES: Final[frozenset[str]] = frozenset(get_args(Quality))
_WRITE_STATES: Final[frozenset[str]] = frozenset(get_args(WriteState))
_NOTHING_DESIRED: Final = Desired()


class TwinRow(Struct, frozen=True, gc=False):
    """The versions of the two sides are upstream's document model (device contract 3.3). `version` is not derived from
    them: it says whether the cloud is to be told.
    """

    twin: Twin
    version: int
    """Counts what the cloud is to hear, from 1."""
    acked: int = 0
    """The last version that the cloud has."""
    optional: bool = True
    """May be deleted. Becomes false, never true again."""
    deleted: bool = False
    """A tombstone: `twin` has the time of the deletion on both sides and no value, except a mapper's order, which
    nobody is shown. A later write revives it."""
    reported_edge: int = 0
    """With the next one the version of the reported side: changes made here, and the last that came from the cloud."""
    reported_cloud: int = 0
    desired_edge: int = 0
    desired_cloud: int = 0
    desired_by_app: bool = False
    """The desired value is the wish of an app, or of a cloud's sync, not the order that the mapper has."""

    @property
    def dirty(self) -> bool:
        return self.version > self.acked


_COLUMNS = (
    "property, reported, reported_type, reported_ms, quality, reported_reason,"
    " desired, desired_type, desired_ms, write, desired_reason, version, acked,"
    " optional, deleted, reported_edge, reported_cloud, desired_edge, desired_cloud, desired_by_app"
)
_PUT = f"INSERT OR REPLACE INTO twin (device, {_COLUMNS}) VALUES "  # noqa: S608 - constants
_MARKS = f"({', '.join('?' * (_COLUMNS.count(',') + 2))})"
_PUT_AT_ONCE: Final = 64
"""Rows a statement; SQLite takes 32,766 values."""


def get_twins(db: sqlite3.Connection, device: DeviceId, *, dirty: bool = False) -> dict[str, TwinRow]:
    """By property; with `dirty` only what the cloud does not know yet."""
    where = "device = ? AND version > acked" if dirty else "device = ?"
    rows = db.execute(f"SELECT {_COLUMNS} FROM twin WHERE {where}", (device,))  # noqa: S608 - constants
    return {row[0]: _row(*row) for row in rows}


def put_twins(db: sqlite3.Connection, device: DeviceId, rows: Iterable[TwinRow]) -> None:
    # One statement for many rows: between two statements another thread may take the interpreter, for milliseconds.
    left = list(rows)
    while left:
        some, left = left[:_PUT_AT_ONCE], left[_PUT_AT_ONCE:]
        values = [value for row in some for value in (device, *_values(row))]
        db.execute(_PUT + ", ".join([_MARKS] * len(some)), values)


def acknowledge_twins(db: sqlite3.Connection, device: DeviceId, versions: Mapping[str, int]) -> None:
    """The cloud has exactly these versions. A row that moved on since stays dirty."""
    db.executemany(
        "UPDATE twin SET acked = ? WHERE device = ? AND property = ? AND acked < ? AND version >= ?",
        [(version, device, name, version, version) for name, version in versions.items()],
    )


def dirty_devices(db: sqlite3.Connection) -> list[DeviceId]:
    return [DeviceId(device) for (device,) in db.execute("SELECT DISTINCT device FROM twin WHERE version > acked")]


def keep_properties(db: sqlite3.Connection, device: DeviceId, names: Collection[str]) -> None:
    """Drop the twins of properties that the device no longer has."""
    stored = {name for (name,) in db.execute("SELECT property FROM twin WHERE device = ?", (device,))}
    db.executemany(
        "DELETE FROM twin WHERE device = ? AND property = ?", [(device, name) for name in stored.difference(names)]
    )


def delete_device(db: sqlite3.Connection, device: DeviceId) -> None:
    """Twins and state of a device that is gone."""
    db.execute("DELETE FROM twin WHERE device = ?", (device,))
    db.execute("DELETE FROM device_state WHERE device = ?", (device,))


def delete_orphans(db: sqlite3.Connection) -> None:
    """Twins and states whose device went in a transaction before a crash."""
    for table in ("twin", "device_state"):
        db.execute(
            f"DELETE FROM {table} WHERE device NOT IN"  # noqa: S608 - constants
            " (SELECT namespace || '/' || name FROM object WHERE kind = 'device')"
        )


def _row(
    name: str,
    reported: str,
    reported_type: str,
    reported_ms: int,
    quality: str,
    reported_reason: str,
    desired: str,
    desired_type: str,
    desired_ms: int,
    write: str,
    desired_reason: str,
    version: int,
    acked: int,
    optional: int,
    deleted: int,
    reported_edge: int,
    reported_cloud: int,
    desired_edge: int,
    desired_cloud: int,
    desired_by_app: int,
) -> TwinRow:
    # Values somebody edited by hand count as absent; of a wrong type there are none (`edgecore.store.salvage`).
    twin = Twin(
        name,
        Reported(
            reported,
            reported_type,
            reported_ms,
            cast(Quality, quality) if quality in _QUALITIES else "good",
            reported_reason,
        ),
        Desired(
            desired,
            desired_type,
            desired_ms,
            cast(WriteState, write) if write in _WRITE_STATES else "",
            desired_reason,
        )
        if desired_ms or desired or write
        else _NOTHING_DESIRED,
    )
    return TwinRow(
        twin,
        version,
        acked,
        bool(optional),
        bool(deleted),
        reported_edge,
        reported_cloud,
        desired_edge,
        desired_cloud,
        bool(desired_by_app),
    )


def _values(row: TwinRow) -> tuple[str | int, ...]:
    reported, desired = row.twin.reported, row.twin.desired
    return (
        row.twin.property_name,
        reported.value,
        reported.type,
        reported.collected_ms,
        reported.quality,
        reported.reason,
        desired.value,
        desired.type,
        desired.updated_ms,
        desired.write,
        desired.reason,
        row.version,
        row.acked,
        row.optional,
        row.deleted,
        row.reported_edge,
        row.reported_cloud,
        row.desired_edge,
        row.desired_cloud,
        row.desired_by_app,
    )
