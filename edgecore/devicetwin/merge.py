"""What a report changes: plain functions from a stored row and a report to the next row, or None for no change.

Per side, newer wins by the time of collection. A report that only confirms a value moves its time; whether that is
worth a write is for `confirming` to say. A report that says nothing new, not even a time, is no change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, cast, get_args

from msgspec import Struct
from msgspec.structs import replace

from dmi import ConfigError, Desired, DeviceState, Reported, Twin, supersedes
from edgecore.devicetwin.confirming import LEAST_MS
from edgecore.store import StateRow, TwinRow, shown_state

__all__ = [
    "Fault",
    "fault_of",
    "is_order",
    "merge_state",
    "merge_twins",
    "read_state",
    "set_fault",
    "written",
]

_STATES: Final[frozenset[str]] = frozenset(get_args(DeviceState))
_ONLINE: Final = ("online", "ok")
_NOTHING_REPORTED: Final = Reported()
_NOTHING_DESIRED: Final = Desired()


class Fault(Struct, frozen=True):
    """Why edge core itself says something else about a device than its mapper does."""

    state: DeviceState
    reason: str


def merge_twins(
    stored: Mapping[str, TwinRow], reports: Iterable[Twin], types: Mapping[str, str], *, now_ms: int
) -> list[TwinRow]:
    """Rows that a report changes, each with the next version. `types`: property → type for what a mapper left open.

    Go mappers give no times: a report of theirs is as new as its arrival, and a desired value keeps the time it came.
    """
    rows: dict[str, TwinRow] = {}
    for report in reports:
        name = report.property_name
        before = rows.get(name) or stored.get(name)
        twin = before.twin if before else Twin(property_name=name)
        if report.only == "reported":
            desired = twin.desired
        elif report.desired == _NOTHING_DESIRED and before is not None and before.desired_by_app:
            desired = twin.desired  # a mapper without an order has nothing to say about an app's wish
        else:
            desired = _merge_desired(twin.desired, report.desired, types.get(name, ""), now_ms)
        after = Twin(
            property_name=name,
            reported=_merge_reported(twin.reported, report, types.get(name, ""), now_ms),
            desired=desired,
        )
        if after != twin:
            rows[name] = written(before or TwinRow(twin, version=0), after)
    return list(rows.values())


def is_order(row: TwinRow) -> bool:
    """Whether the desired side is what the mapper was told, not a wish of an app."""
    return not row.desired_by_app and bool(row.twin.desired.value or row.twin.desired.write)


def written(before: TwinRow, twin: Twin, *, by_app: bool = False) -> TwinRow:
    """The row after a change made here; a side that changed gets its next version, and a tombstone is revived."""
    other_value, other_wish = twin.reported != before.twin.reported, twin.desired != before.twin.desired
    if before.deleted:  # what is not written is not there, instead of deleted
        twin = replace(
            twin,
            reported=twin.reported if other_value else _NOTHING_REPORTED,
            desired=twin.desired if other_wish or is_order(before) else _NOTHING_DESIRED,
        )
    return replace(
        before,
        twin=twin,
        version=before.version + 1,
        deleted=False,
        reported_edge=before.reported_edge + other_value,
        desired_edge=before.desired_edge + other_wish,
        desired_by_app=by_app if other_wish else before.desired_by_app,
    )


def _merge_reported(old: Reported, report: Twin, type_: str, now_ms: int) -> Reported:
    new = report.reported
    if report.only == "desired" or (new == _NOTHING_REPORTED and report.desired != _NOTHING_DESIRED):
        return old
    if new.quality != "good" and not new.value and not new.collected_ms:
        # A mapper that could not read it since it started: the last value stays, and is not as good any more.
        new = replace(new, value=old.value, collected_ms=old.collected_ms)
    new = replace(new, collected_ms=new.collected_ms or now_ms, type=new.type or type_)
    return new if supersedes(new.collected_ms, old.collected_ms, now_ms=now_ms) else old


def _merge_desired(old: Desired, new: Desired, type_: str, now_ms: int) -> Desired:
    if new.updated_ms == 0:
        if (new.value, new.write, new.reason) == (old.value, old.write, old.reason):
            return old
        new = replace(new, updated_ms=now_ms)
    elif not supersedes(new.updated_ms, old.updated_ms, now_ms=now_ms):
        return old
    return replace(new, type=new.type or type_)


def read_state(text: str) -> DeviceState:
    """A state as mappers write it, in any case. The Go framework's `disconnected` is `offline`.

    Raises:
        ConfigError: None of the states there are.
    """
    state = text.strip().lower()
    if state == "disconnected":
        state = "offline"
    if state not in _STATES:
        raise ConfigError("state", f"{text[:64]!r} is not one of {', '.join(sorted(_STATES))}")
    return cast(DeviceState, state)


def merge_state(
    stored: StateRow | None,
    state: DeviceState,
    reason: str,
    *,
    seen_online_ms: int,
    now_ms: int,
    confirm_ms: int = LEAST_MS,
) -> StateRow | None:
    """`seen_online_ms`: the last time the device was known to be online, which may be later than what is stored.
    `confirm_ms`: how often a device that stays online has that time stored and sent.
    """
    before = stored or StateRow()
    online = state in _ONLINE
    last_online_ms = now_ms if online else max(before.last_online_ms, seen_online_ms)
    same = (before.state, before.reason) == (state, reason)
    if same and (not online or 0 <= now_ms - before.last_online_ms < confirm_ms):
        return None
    return _changed(before, replace(before, state=state, reason=reason, last_online_ms=last_online_ms), now_ms)


def set_fault(stored: StateRow | None, fault: Fault | None, *, now_ms: int) -> StateRow | None:
    """Lay a fault over what the mapper said, or take it away."""
    before = stored or StateRow()
    state, reason = (fault.state, fault.reason) if fault else ("", "")
    if (before.fault_state, before.fault_reason) == (state, reason):
        return None
    return _changed(before, replace(before, fault_state=state, fault_reason=reason), now_ms)


def _changed(before: StateRow, after: StateRow, now_ms: int) -> StateRow:
    """A new version only if the cloud would see a difference; another reason is not another state."""
    if shown_state(before)[0] != shown_state(after)[0]:
        after = replace(after, since_ms=now_ms)
    differs = (shown_state(before), before.last_online_ms) != (shown_state(after), after.last_online_ms)
    return replace(after, version=before.version + 1) if differs else after


def fault_of(row: StateRow) -> Fault | None:
    return Fault(cast(DeviceState, row.fault_state), row.fault_reason) if row.fault_state else None
