"""One row per device and property: the twin, its version, and the version the cloud confirmed."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from dmi import Desired, DeviceId, Reported, Twin

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


class TwinRow(Struct, frozen=True):
    twin: Twin
    version: int
    """Counts changes of either side, from 1."""
    acked: int = 0

    @property
    def dirty(self) -> bool:
        return self.version > self.acked


_COLUMNS = (
    "property, reported, reported_type, reported_ms, quality, reported_reason,"
    " desired, desired_type, desired_ms, write, desired_reason, version, acked"
)


def get_twins(db: sqlite3.Connection, device: DeviceId, *, dirty: bool = False) -> dict[str, TwinRow]:
    """By property; with `dirty` only what the cloud does not know yet."""
    where = "device = ? AND version > acked" if dirty else "device = ?"
    rows = db.execute(f"SELECT {_COLUMNS} FROM twin WHERE {where}", (device,))  # noqa: S608 - constants
    return {row[0]: _row(*row) for row in rows}


def put_twins(db: sqlite3.Connection, device: DeviceId, rows: Iterable[TwinRow]) -> None:
    db.executemany(
        f"INSERT OR REPLACE INTO twin (device, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        [(device, *_values(row)) for row in rows],
    )


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
) -> TwinRow:
    # Through `from_metadata`, which also makes sense of a row that somebody edited by hand.
    twin = Twin(
        property_name=name,
        reported=Reported.from_metadata(
            reported,
            {"type": reported_type, "timestamp": reported_ms, "quality": quality, "reason": reported_reason},
        ),
        desired=Desired.from_metadata(
            desired, {"type": desired_type, "timestamp": desired_ms, "write": write, "reason": desired_reason}
        ),
    )
    return TwinRow(twin=twin, version=version, acked=acked)


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
    )
