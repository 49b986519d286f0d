"""The last known state of one device: how reports change it, and how a DeviceStatus gives it back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from cloudcore.devicecontroller.reports import Sides, StateReport
from dmi import Desired, Reported, Twin, supersedes

__all__ = ["Known", "forget_state", "from_status", "lag_s", "merge_state", "merge_twins", "prune"]

UNKNOWN = "unknown"


class Known(Struct, frozen=True):
    twins: Mapping[str, Twin] = {}
    """By property name."""
    state: str = ""
    """As last reported; empty: not since the node connected."""
    last_online: str = ""
    reason: str = ""
    """Why the state is what it is, as reported."""


def merge_twins(known: Known, sides: Mapping[str, Sides], properties: Collection[str], *, now_ms: int) -> Known:
    """Take in a report: per side the newer collection time wins; properties the Device does not have are left out."""
    twins = dict(known.twins)
    for name, side in sides.items():
        if name not in properties:
            continue
        twin = twins.get(name) or Twin(name)
        reported, desired = side.reported, side.desired
        if reported is None or not supersedes(reported.collected_ms, twin.reported.collected_ms, now_ms=now_ms):
            reported = twin.reported
        if desired is None or not supersedes(desired.updated_ms, twin.desired.updated_ms, now_ms=now_ms):
            desired = twin.desired
        twins[name] = Twin(name, reported, desired)
    return known if twins == known.twins else msgspec.structs.replace(known, twins=twins)


def lag_s(known: Known, sides: Mapping[str, Sides], *, now_ms: int) -> float:
    """By how many seconds the oldest of the reported values that come too late, by their time, do so; 0: none does."""
    lags_ms = [
        twin.reported.collected_ms - side.reported.collected_ms
        for name, side in sides.items()
        if side.reported is not None
        and (twin := known.twins.get(name)) is not None
        and not supersedes(side.reported.collected_ms, twin.reported.collected_ms, now_ms=now_ms)
    ]
    return max(lags_ms, default=0) / 1000


def merge_state(known: Known, report: StateReport) -> Known:
    """An empty `last_online` keeps the one before, so the time survives going offline."""
    return msgspec.structs.replace(
        known, state=report.state, last_online=report.last_online or known.last_online, reason=report.reason
    )


def prune(known: Known, properties: Collection[str]) -> Known:
    """Without the twins of properties that the Device does not have any more."""
    if all(name in properties for name in known.twins):
        return known
    twins = {name: twin for name, twin in known.twins.items() if name in properties}
    return msgspec.structs.replace(known, twins=twins)


def forget_state(known: Known) -> Known:
    """The node is away: what state the device is in cannot be known. Values and times stay, they say when they were."""
    return msgspec.structs.replace(known, state="", reason="") if known.state else known


def from_status(status: object) -> Known:
    """What a DeviceStatus says, read leniently: it may have been edited by hand."""
    if not isinstance(status, dict):
        return Known()
    twins: dict[str, Twin] = {}
    for item in _list(status.get("twins")):
        name = item.get("propertyName")
        if isinstance(name, str) and name:
            reported = _side(item.get("reported"), Reported)
            twins[name] = Twin(name, reported, _side(item.get("observedDesired"), Desired))
    state = _text(status.get("state"))
    reason = _text(_object(status.get("extensions")).get("reason"))
    known = Known(twins=twins, last_online=_text(status.get("lastOnlineTime")))
    if state == UNKNOWN:  # may be our own word, with our own reason, which is found out anew
        return known
    # The reason beside a good state is a problem of the declaration, found out anew as well.
    return msgspec.structs.replace(known, state=state, reason="" if state in ("online", "ok") else reason)


def _side(value: object, cls: type[Any]) -> Any:
    side = _object(value)
    return cls.from_metadata(_text(side.get("value")), _object(side.get("metadata")))


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
