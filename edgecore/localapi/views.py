"""What the API answers, as plain data. Times are epoch milliseconds, 0 for never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudedge.facts import DeviceFacts
from edgecore.localapi.sources import PointView
from edgecore.store import TwinRow

__all__ = ["HISTORY_OFF", "brief_view", "device_view", "history_view", "shown_quality"]

HISTORY_OFF: Final = (
    "this edge core keeps no history: set modules.deviceTwin.history.enable to true in its edgecore.yaml"
)
_FRESH_STATES: Final = ("online", "ok", "unhealthy")


def shown_quality(state: str, quality: str) -> str:
    """What was good when it was read is old news of a device that nobody hears."""
    return "stale" if quality == "good" and state not in _FRESH_STATES else quality


def brief_view(facts: DeviceFacts) -> dict[str, Any]:
    """One line of the list of devices."""
    return {
        "device": facts.device,
        "state": facts.state or "unknown",
        "reason": facts.state_reason,
        "since": facts.state_since_ms,
        "protocol": facts.protocol,
        "model": facts.model,
        "mapper": facts.mapper.name if facts.mapper else "",
    }


def device_view(facts: DeviceFacts, rows: Mapping[str, TwinRow]) -> dict[str, Any]:
    """A device and its twins, also of properties that were never read."""
    names = dict.fromkeys((*facts.properties, *rows))
    return {
        **brief_view(facts),
        "problem": facts.problem,
        "twins": [_twin_view(name, rows.get(name), facts.state) for name in names],
    }


def _twin_view(name: str, row: TwinRow | None, state: str) -> dict[str, Any]:
    if row is None or row.deleted:
        return {"property": name, "collected": 0}
    reported, desired = row.twin.reported, row.twin.desired
    fields: dict[str, Any] = {
        "property": name,
        "type": reported.type or desired.type,
        "collected": reported.collected_ms,
    }
    if reported.collected_ms:
        fields |= {"value": reported.value, "quality": shown_quality(state, reported.quality)}
        if reported.reason:
            fields["reason"] = reported.reason
    if desired.updated_ms:
        fields["desired"] = {"value": desired.value, "write": desired.write, "updated": desired.updated_ms}
        if desired.reason:
            fields["desired"]["reason"] = desired.reason
    fields["confirmed"] = not row.dirty
    return fields


def history_view(points: Sequence[PointView], truncated: bool) -> dict[str, Any]:
    """As `cloudedge.queries` has it."""
    values = [
        {"property": p.name, "value": p.value, "type": p.type, "collected": p.collected_ms, "quality": p.quality}
        for p in points
    ]
    return {"values": values, "truncated": truncated}
