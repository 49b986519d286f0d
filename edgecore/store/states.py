"""One row per device: its state, why, and whether the cloud knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from dmi import DeviceId

__all__ = [
    "StateRow",
    "acknowledge_state",
    "faulty_devices",
    "get_state",
    "list_states",
    "put_state",
    "shown_state",
    "stated_devices",
    "update_state",
    "why_old",
]


_THERE: Final = ("online", "ok", "unhealthy")


class StateRow(Struct, frozen=True):
    state: str = ""
    """What the mapper said last; empty: nothing yet."""
    reason: str = ""
    fault_state: str = ""
    """What edge core itself sees to be wrong; empty: nothing. While there is a fault, it is what counts."""
    fault_reason: str = ""
    last_online_ms: int = 0
    """Epoch milliseconds; 0: never."""
    version: int = 0
    acked: int = 0
    """The last version that the cloud confirmed."""
    since_ms: int = 0
    """Since when the state that is shown is what it is, epoch milliseconds; 0: not known."""


def shown_state(row: StateRow) -> tuple[str, str]:
    """State and reason as they are shown."""
    if row.fault_state:
        return row.fault_state, row.fault_reason
    if not row.state and row.version:  # a fault is over, and the mapper has not said anything
        return "unknown", "the mapper has not reported a state"
    return row.state, row.reason


def why_old(row: StateRow | None) -> str:
    """Why what the device reported is of before, not of now; empty: nothing is known that speaks against it."""
    state, reason = shown_state(row) if row else ("", "")
    if not state or state in _THERE:
        return ""
    return f"the device is {state}: {reason}" if reason else f"the device is {state}"


_COLUMNS = "state, reason, fault_state, fault_reason, last_online_ms, version, acked, since_ms"


def get_state(db: sqlite3.Connection, device: DeviceId) -> StateRow | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM device_state WHERE device = ?", (device,)).fetchone()  # noqa: S608
    return None if row is None else StateRow(*row)


def put_state(db: sqlite3.Connection, device: DeviceId, row: StateRow) -> None:
    db.execute(
        f"INSERT OR REPLACE INTO device_state (device, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (device, *_values(row)),
    )


def update_state(
    db: sqlite3.Connection, device: DeviceId, change: Callable[[StateRow | None], StateRow | None]
) -> bool:
    """Store what `change` makes of a row, None meaning no change; returns whether the cloud is to be told."""
    before = get_state(db, device)
    row = change(before)
    if row is None:
        return False
    put_state(db, device, row)
    return before is None or row.version != before.version


def acknowledge_state(db: sqlite3.Connection, device: DeviceId, version: int) -> None:
    db.execute(
        "UPDATE device_state SET acked = ? WHERE device = ? AND acked < ? AND version >= ?",
        (version, device, version, version),
    )


def stated_devices(db: sqlite3.Connection) -> list[DeviceId]:
    """Devices whose state there is something to say of."""
    return [DeviceId(device) for (device,) in db.execute("SELECT device FROM device_state WHERE version > 0")]


def list_states(db: sqlite3.Connection) -> dict[DeviceId, StateRow]:
    rows = db.execute(f"SELECT device, {_COLUMNS} FROM device_state")  # noqa: S608 - constants
    return {DeviceId(row[0]): StateRow(*row[1:]) for row in rows}


def faulty_devices(db: sqlite3.Connection) -> dict[DeviceId, StateRow]:
    """Those with a fault shown."""
    rows = db.execute(f"SELECT device, {_COLUMNS} FROM device_state WHERE fault_state != ''")  # noqa: S608
    return {DeviceId(row[0]): StateRow(*row[1:]) for row in rows}


def _values(row: StateRow) -> tuple[str | int, ...]:
    return (
        row.state,
        row.reason,
        row.fault_state,
        row.fault_reason,
        row.last_online_ms,
        row.version,
        row.acked,
        row.since_ms,
    )
