"""Topics that the cloud subscribed to, and the reported values that local apps get when a broker is there."""

from __future__ import annotations

import sqlite3

from dmi import DeviceId, Reported

__all__ = ["add_topic", "list_topics", "remove_topic", "reported_values"]

_FRESH_STATES = ("online", "ok", "unhealthy")


def list_topics(db: sqlite3.Connection) -> list[str]:
    return [topic for (topic,) in db.execute("SELECT topic FROM mqtt_topic ORDER BY topic")]


def add_topic(db: sqlite3.Connection, topic: str) -> None:
    db.execute("INSERT OR IGNORE INTO mqtt_topic (topic) VALUES (?)", (topic,))


def remove_topic(db: sqlite3.Connection, topic: str) -> None:
    db.execute("DELETE FROM mqtt_topic WHERE topic = ?", (topic,))


def reported_values(
    db: sqlite3.Connection, *, after: tuple[str, str] = ("", ""), limit: int = 200
) -> list[tuple[DeviceId, str, Reported]]:
    """The next reported values in the order of device and property, from behind the key `after`.

    The value of a device that nobody hears from is old: `stale`, whatever it was when it came.
    """
    rows = db.execute(
        "SELECT t.device, t.property, t.reported, t.reported_type, t.reported_ms, t.quality, t.reported_reason,"
        " COALESCE(NULLIF(s.fault_state, ''), s.state, '') FROM twin AS t"
        " LEFT JOIN device_state AS s ON s.device = t.device"
        " WHERE (t.device, t.property) > (?, ?) AND t.deleted = 0 AND (t.reported_ms > 0 OR t.reported != '')"
        " ORDER BY t.device, t.property LIMIT ?",
        (*after, limit),
    ).fetchall()
    return [
        (
            DeviceId(device),
            name,
            Reported.from_metadata(
                value,
                {
                    "type": type_,
                    "timestamp": ms,
                    "quality": "stale" if quality == "good" and state.lower() not in _FRESH_STATES else quality,
                    "reason": reason
                    or ("" if state.lower() in _FRESH_STATES else f"the device is {state or 'unknown'}"),
                },
            ),
        )
        for device, name, value, type_, ms, quality, reason, state in rows
    ]
