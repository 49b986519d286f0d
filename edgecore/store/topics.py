"""Topics that the cloud subscribed to, and the reported values that local apps get when a broker is there."""

from __future__ import annotations

import sqlite3

from msgspec.structs import replace

from dmi import DeviceId, Reported
from edgecore.store.states import StateRow, why_old

__all__ = ["add_topic", "list_topics", "remove_topic", "reported_values"]


def list_topics(db: sqlite3.Connection) -> list[str]:
    return [topic for (topic,) in db.execute("SELECT topic FROM mqtt_topic ORDER BY topic")]


def add_topic(db: sqlite3.Connection, topic: str) -> None:
    db.execute("INSERT OR IGNORE INTO mqtt_topic (topic) VALUES (?)", (topic,))


def remove_topic(db: sqlite3.Connection, topic: str) -> None:
    db.execute("DELETE FROM mqtt_topic WHERE topic = ?", (topic,))


def reported_values(
    db: sqlite3.Connection, *, after: tuple[str, str] = ("", ""), limit: int = 200, device: DeviceId | None = None
) -> list[tuple[DeviceId, str, Reported]]:
    """The next reported values in the order of device and property, from behind the key `after`; `device`: of this one.

    The value of a device that is not there is old: `stale`, whatever it was when it came.
    """
    rows = db.execute(
        "SELECT t.device, t.property, t.reported, t.reported_type, t.reported_ms, t.quality, t.reported_reason,"
        " s.state, s.reason, s.fault_state, s.fault_reason, s.last_online_ms, s.version"
        " FROM twin AS t LEFT JOIN device_state AS s ON s.device = t.device"
        " WHERE (t.device, t.property) > (?, ?) AND t.device = COALESCE(?, t.device)"
        " AND t.deleted = 0 AND (t.reported_ms > 0 OR t.reported != '')"
        " ORDER BY t.device, t.property LIMIT ?",
        (*after, device, limit),
    )
    return [
        (DeviceId(row[0]), row[1], _aged(*row[2:7], old=why_old(None if row[7] is None else StateRow(*row[7:]))))
        for row in rows.fetchall()
    ]


def _aged(value: str, type_: str, collected_ms: int, quality: str, reason: str, *, old: str) -> Reported:
    reported = Reported.from_metadata(
        value, {"type": type_, "timestamp": collected_ms, "quality": quality, "reason": reason}
    )
    return replace(reported, quality="stale", reason=old) if old and reported.quality == "good" else reported
