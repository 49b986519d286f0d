"""How often what did not change is told again: a value keeps its age honest, and a full node stays cheap. Pure.

A report that only confirms is nothing to write down or to send, but an age that stands still looks like a dead device.
So a confirmation counts when the one before is some time ago: ten seconds on a node of up to a hundred devices, a
minute at most on a fuller one, because each costs a transaction here, a message, and a PATCH of the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from edgecore.store import TwinRow

__all__ = ["confirm_every_ms", "is_news"]

PER_SECOND: Final = 10
"""Devices of a node that are confirmed each second, as long as that keeps the times below."""
LEAST_MS: Final = 9_000
"""Mappers confirm every ten seconds or so; a little less lets none of theirs pass for too early."""
MOST_MS: Final = 60_000


def confirm_every_ms(devices: int) -> int:
    """The least time between two confirmations of a device that are stored and sent, on a node with so many devices."""
    return min(max(devices * 1000 // PER_SECOND, LEAST_MS), MOST_MS)


def is_news(stored: Mapping[str, TwinRow], rows: Iterable[TwinRow], *, every_ms: int) -> bool:
    """Whether what a report made of the stored rows is to be kept: anything but newer times, or a time that is due."""
    return any(_is_news(stored.get(row.twin.property_name), row, every_ms) for row in rows)


def _is_news(before: TwinRow | None, row: TwinRow, every_ms: int) -> bool:
    if before is None or before.deleted:
        return True
    old, new = before.twin.reported, row.twin.reported
    was, wish = before.twin.desired, row.twin.desired
    return (
        (old.value, old.quality, old.reason, old.type) != (new.value, new.quality, new.reason, new.type)
        or (was.value, was.write, was.reason, was.type) != (wish.value, wish.write, wish.reason, wish.type)
        # A clock that was set back is news as well.
        or not 0 <= new.collected_ms - old.collected_ms < every_ms
        or not 0 <= wish.updated_ms - was.updated_ms < every_ms
    )
