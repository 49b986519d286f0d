"""How a row of `kubectl twin get` is written: as cells of a table, and as an object for programs. Pure."""

from __future__ import annotations

from typing import Any, Final

from kubetwin.rows import TwinRow, age_text
from kubetwin.twin.text import NOTHING, cell, clock_text, safe

__all__ = ["TITLES", "WIDE_TITLES", "cells", "row_object"]

TITLES: Final = ("DEVICE", "PROPERTY", "REPORTED", "UNIT", "DESIRED", "IN SYNC", "AGE", "QUALITY")
WIDE_TITLES: Final = ("STATE", "TYPE", "WRITE", "COLLECTED", "NODE", "REASON")
_WHOLE: Final = 10_000
"""Columns for a reason, which is worth reading to its end."""


def cells(row: TwinRow, *, wide: bool = False, namespace: bool = False) -> tuple[str, ...]:
    """One line of the table; `namespace` puts that in a column of its own."""
    space, _, name = row.device.rpartition("/")
    plain = (
        *((space,) if namespace else ()),
        name,
        cell(row.property_name),
        _value(row.value) if row.is_reported else NOTHING,
        cell(row.unit) or NOTHING,
        _value(row.desired) if row.desired else NOTHING,
        _sync(row),
        age_text(row.age_s) or NOTHING,
        row.quality or NOTHING,
    )
    if not wide:
        return plain
    return (
        *plain,
        cell(row.state) or NOTHING,
        cell(row.type) or NOTHING,
        row.write or NOTHING,
        clock_text(row.collected_ms) or NOTHING,
        row.node or NOTHING,
        cell(row.reason, limit=_WHOLE) or NOTHING,
    )


def _value(text: str) -> str:
    """In quotes where it would be taken for nothing, or its end not be seen."""
    return f'"{cell(text)}"' if text in ("", NOTHING) or text != text.strip() else cell(text)


def _sync(row: TwinRow) -> str:
    """`yes` and `no`; `no` in the word that says more, where the mapper says what became of the write."""
    if row.in_sync is None:
        return NOTHING
    if row.write == "failed":
        return "failed"
    return "yes" if row.in_sync else "pending" if row.write == "pending" else "no"


def row_object(row: TwinRow) -> dict[str, Any]:
    """For programs. Keys stay, and are always there; null is what is not known or not wanted."""
    namespace, _, name = row.device.rpartition("/")
    return {
        "namespace": namespace,
        "device": name,
        "property": row.property_name,
        "type": row.type or None,
        "access": row.access or None,
        "unit": row.unit or None,
        "reported": row.value if row.is_reported else None,
        "collected": clock_text(row.collected_ms) or None,
        "ageSeconds": round(row.age_s, 3) if row.age_s is not None else None,
        "quality": row.quality or None,
        "desired": row.desired or None,
        "write": row.write or None,
        "inSync": row.in_sync,
        "state": row.state or None,
        "node": row.node or None,
        "reason": row.reason or None,
    }


def name_of(row: TwinRow) -> str:
    return "device.devices.kubeedge.io/" + safe(row.device.rpartition("/")[2])
