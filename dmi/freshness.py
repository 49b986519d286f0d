"""Which of the values in a DeviceStatus are of now: one rule for all that show them.

While a device answers, what it reported is what it has. In any other state its values are those of before, whatever
their quality was when they were read. Where nobody says a state, as mappers whose `stateReport` is off, that is no
reason to doubt what came since the node connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from dmi.twins import CLOCK_TOLERANCE_MS, Quality, Reported

__all__ = ["LIVE", "NOT_REPORTED", "epoch_ms", "shown_quality", "unsaid_since_ms"]

LIVE: Final = frozenset({"online", "ok", "unhealthy"})
"""States of a device that answers; `ok` is the word of some Go mappers."""
NOT_REPORTED: Final = "NotReported"
"""Reason of the condition `Online`: no state was reported since the node connected."""


def shown_quality(seen: Reported, state: str, *, unsaid_since: int = 0) -> Quality:
    """`unsaid_since`: of `unsaid_since_ms`. An empty state, as a stock CloudCore leaves it, says nothing.

    The connection is noted by another clock than the value, and a little late.
    """
    if seen.quality != "good" or not state or state.casefold() in LIVE:
        return seen.quality
    return "good" if 0 < unsaid_since <= seen.collected_ms + CLOCK_TOLERANCE_MS else "stale"


def unsaid_since_ms(conditions: Iterable[Mapping[str, Any]]) -> int:
    """Epoch milliseconds since when the node is connected and nobody says a state; 0: somebody does, or it is not."""
    by_type = {condition.get("type"): condition for condition in conditions}
    online, link = by_type.get("Online", {}), by_type.get("NodeConnected", {})
    if online.get("reason") != NOT_REPORTED or link.get("status") != "True":
        return 0
    return epoch_ms(link.get("lastTransitionTime"))


def epoch_ms(value: object) -> int:
    """Of a time in RFC 3339, as Kubernetes writes it; 0: it is none."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return 0
    if moment is None:
        return 0
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
