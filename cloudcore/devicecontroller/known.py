"""The last known state of one device: how reports change it, and how a DeviceStatus gives it back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeGuard

import msgspec
from msgspec import Struct

from cloudcore.devicecontroller.reports import Sides, StateReport
from cloudcore.devicecontroller.shown import UNKNOWN, read_shown
from dmi import Desired, Reported, Twin, supersedes
from dmi.twins import CLOCK_TOLERANCE_MS

__all__ = [
    "DELETED",
    "Known",
    "forget_state",
    "from_status",
    "has_value",
    "lag_s",
    "merge_state",
    "merge_twins",
    "merge_written",
    "prune",
]


DELETED: Final = "deleted"
"""Type of a property that was deleted at the edge: it has no value until a newer report brings one."""


class Known(Struct, frozen=True):
    twins: Mapping[str, Twin] = {}
    """By property name."""
    state: str = ""
    """As last reported; empty: not since the node connected."""
    last_online: str = ""
    reason: str = ""
    """Why the state is what it is, as reported."""
    since_ms: int = 0
    """Epoch milliseconds since when the device is in this state, as reported; 0: stock edge cores do not say."""


def merge_twins(known: Known, sides: Mapping[str, Sides], properties: Collection[str], *, now_ms: int) -> Known:
    """Take in a report: per side the newer collection time wins; properties the Device does not have are left out.

    Of a property deleted at the edge the time stays, so that an older value does not bring it back.
    """
    twins = dict(known.twins)
    for name, side in sides.items():
        if name not in properties:
            continue
        twin = twins.get(name) or Twin(name)
        reported, desired = side.reported, side.desired
        if side.deleted_ms:
            reported = Reported(type=DELETED, collected_ms=side.deleted_ms)
            desired = Desired(type=DELETED, updated_ms=side.deleted_ms)
        if reported is None or not supersedes(reported.collected_ms, twin.reported.collected_ms, now_ms=now_ms):
            reported = twin.reported
        if desired is None or not supersedes(desired.updated_ms, twin.desired.updated_ms, now_ms=now_ms):
            desired = twin.desired
        twins[name] = Twin(name, reported, desired)
    return known if twins == known.twins else msgspec.structs.replace(known, twins=twins)


def merge_written(known: Known, written: Known) -> Known:
    """Take in what another replica wrote, which had the node before: what is newer by its time, and only that."""
    twins = dict(known.twins)
    for name, theirs in written.twins.items():
        ours = twins.get(name) or Twin(name)
        reported = theirs.reported if theirs.reported.collected_ms > ours.reported.collected_ms else ours.reported
        desired = theirs.desired if theirs.desired.updated_ms > ours.desired.updated_ms else ours.desired
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


def has_value(twin: Twin | None) -> TypeGuard[Twin]:
    """Whether there is anything of the property to show."""
    if twin is None or twin == Twin(twin.property_name):
        return False
    return not (twin.reported.type == DELETED and twin.desired.type == DELETED)


def merge_state(known: Known, report: StateReport, *, now_ms: int) -> Known:
    """An empty `last_online` keeps the one before, so the time survives going offline.

    A `since` well in the future is a wrong clock's: then the state began when it was first heard of.
    """
    since_ms = report.since_ms
    if since_ms > now_ms + CLOCK_TOLERANCE_MS:
        since_ms = known.since_ms if known.state == report.state and known.since_ms else now_ms
    return msgspec.structs.replace(
        known,
        state=report.state,
        last_online=report.last_online or known.last_online,
        reason=report.reason,
        since_ms=since_ms,
    )


def prune(known: Known, properties: Collection[str]) -> Known:
    """Without the twins of properties that the Device does not have any more."""
    if all(name in properties for name in known.twins):
        return known
    twins = {name: twin for name, twin in known.twins.items() if name in properties}
    return msgspec.structs.replace(known, twins=twins)


def forget_state(known: Known) -> Known:
    """The node is away: what state the device is in cannot be known. Values and times stay, they say when they were."""
    return msgspec.structs.replace(known, state="", reason="", since_ms=0) if known.state else known


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
    if state == UNKNOWN and read_shown(status).reason_of("Online") != "Reported":
        return known  # our own word, with our own reason, which is found out anew
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
