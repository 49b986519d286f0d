"""What an app, or a cloud other than ours, changes in a device's twins: upstream's document model (device contract 3.3,
3.4) as plain functions from stored rows and a request to the rows that change.

A twin has two sides, expected (our `desired`) and actual (our `reported`). Each has a version of two counters: `edge`
counts changes made here, `cloud` those made there. A request changes the sides that it names; `"key": null` deletes.

Where upstream is at fault this differs: an unchanged value is no change (but its time is moved every ten seconds), a
value is any text its type allows up to a cap, only properties that the Device declares have twins (ADR 14), and what is
refused says which property and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dmi import ConversionError, Desired, Reported, Twin, parse_value
from dmi.types import PropertyType
from edgecore.devicetwin.merge import is_order, written
from edgecore.store import TwinRow

__all__ = ["MAX_NAME_CHARS", "MAX_VALUE_BYTES", "Refused", "TwinChange", "Version", "cloud_updated", "delta", "update"]

MAX_VALUE_BYTES: Final = 64 * 1024
"""Of one property; the API keeps all of a device's in one object of at most about a megabyte."""
MAX_NAME_CHARS: Final = 128
"""As upstream."""
CONFIRM_MS: Final = 10_000
"""How often a value that stays what it is has its time stored and sent."""

_SPELLINGS: Final = {"integer": "int", "bool": "boolean"}
_CHECKED: Final[Mapping[str, PropertyType]] = {
    "int": "INT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
}
_ANY_TEXT: Final = frozenset({"string", "bytes", "stream"})


class Refused(Exception):
    """Nothing of the request was done. `code` is one of upstream's: 400, 404, 500."""

    def __init__(self, code: int, reason: str, *, what: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.what = what
        """The property, if it is about one."""


class Version(Struct, frozen=True):
    cloud: int = 0
    edge: int = 0


class TwinChange(Struct, frozen=True):
    """What a request says of one property."""

    expected: str | None = None
    """None: this side is left as it is."""
    actual: str | None = None
    optional: bool | None = None
    type: str = ""
    """Counts only where the device model does not know the property."""
    deleted: bool = False
    expected_version: Version | None = None
    """The versions matter to a request from the cloud only."""
    actual_version: Version | None = None


def update(
    stored: Mapping[str, TwinRow], changes: Mapping[str, TwinChange], types: Mapping[str, str] | None, *, now_ms: int
) -> dict[str, TwinRow]:
    """The rows that an app's request changes; all of it or nothing. Values are as new as their arrival.

    `types`: property → type of all properties the Device declares, the type empty where the model does not know it;
    None: its declaration cannot be read.

    Raises:
        Refused: 400, with the property and the reason.
    """
    rows: dict[str, TwinRow] = {}
    for name, change in changes.items():
        _check_name(name, types)
        before = stored.get(name) or TwinRow(Twin(name), version=0)
        after = _delete(name, before, now_ms) if change.deleted else _write(name, before, change, types, now_ms)
        if after is not before:
            rows[name] = after
    return rows


def cloud_updated(
    stored: Mapping[str, TwinRow], changes: Mapping[str, TwinChange], types: Mapping[str, str] | None, *, now_ms: int
) -> dict[str, TwinRow]:
    """The rows that a sync from the cloud changes. A property about which this node knows more than the request does is
    left as it is, and becomes dirty: the cloud is told what is here. An accepted one is not sent.

    Raises:
        Refused: 400: a property is not declared, a value not of its type, or a side has no version.
    """
    rows: dict[str, TwinRow] = {}
    for name, change in changes.items():
        _check_name(name, types)
        before = stored.get(name) or TwinRow(Twin(name), version=0)
        if not change.deleted:
            _check_versions(name, change)
        if not _is_current(before, change):
            rows[name] = replace(before, version=before.version + 1)
            continue
        after = _write(name, before, change, types, now_ms) if not change.deleted else _tombstone(before, now_ms)
        after = _adopt(before, after, change)
        if after is not before:
            rows[name] = after
    return rows


def delta(rows: Mapping[str, TwinRow]) -> dict[str, str]:
    """Property → expected value, where the actual one is another."""
    return {name: row.twin.desired.value for name, row in rows.items() if not row.deleted and _is_apart(row)}


def _is_apart(row: TwinRow) -> bool:
    wanted, there = row.twin.desired, row.twin.reported
    if not wanted.value or wanted.value == there.value:
        return False
    type_ = _CHECKED.get(there.type or wanted.type)
    if type_ is None or not there.value:
        return True
    try:
        return parse_value(wanted.value, type_) != parse_value(there.value, type_)
    except ConversionError:
        return True


def _check_name(name: str, types: Mapping[str, str] | None) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        reason = f"property {name[:32]!r}: a name has 1 to {MAX_NAME_CHARS} characters"
    elif types is not None and name not in types:
        reason = f"property {name!r}: the Device does not declare it; add it to spec.properties"
    else:
        return
    raise Refused(400, reason, what=name)


def _check_versions(name: str, change: TwinChange) -> None:
    for side, value, version in (
        ("expected", change.expected, change.expected_version),
        ("actual", change.actual, change.actual_version),
    ):
        if value is not None and version is None:
            raise Refused(400, f"property {name!r}: {side}_version is missing", what=name)


def _delete(name: str, before: TwinRow, now_ms: int) -> TwinRow:
    if before.deleted or not before.version:
        return before  # gone already
    if not before.optional:
        raise Refused(400, f"property {name!r}: its twin is not optional and cannot be deleted", what=name)
    row = _tombstone(before, now_ms)
    return replace(
        row,
        desired_edge=before.desired_edge + bool(before.desired_edge or before.desired_cloud),
        reported_edge=before.reported_edge + bool(before.reported_edge or before.reported_cloud),
    )


def _tombstone(before: TwinRow, now_ms: int) -> TwinRow:
    """Both sides keep when they were deleted: an older report must not bring them back, here or in the cloud.

    An order that the mapper has is not an app's to take away. It stays in the row, as old as the deletion, so that the
    cloud takes it again with what revives the twin.
    """
    if before.deleted or not before.version:
        return before
    twin = before.twin
    reported = Reported(collected_ms=max(now_ms, twin.reported.collected_ms))
    desired = Desired(updated_ms=max(now_ms, twin.desired.updated_ms))
    if is_order(before):
        desired = replace(twin.desired, updated_ms=max(desired.updated_ms, reported.collected_ms))
    gone = Twin(twin.property_name, reported, desired)
    return replace(before, twin=gone, deleted=True, desired_by_app=False, version=before.version + 1)


def _write(name: str, before: TwinRow, change: TwinChange, types: Mapping[str, str] | None, now_ms: int) -> TwinRow:
    """The row with the sides that are given, or `before` when that changes nothing."""
    twin = before.twin
    type_ = _type(name, before, change, types)
    desired, reported = twin.desired, twin.reported
    if change.expected is not None:
        desired = _expected(name, desired, change.expected, type_, now_ms)
    if change.actual is not None:
        reported = _actual(name, reported, change.actual, type_, now_ms)
    after = before
    given = change.expected is not None or change.actual is not None
    if (before.deleted and given) or (desired, reported) != (twin.desired, twin.reported):
        after = written(before, replace(twin, desired=desired, reported=reported), by_app=True)
    if change.optional is False and before.optional and not after.deleted:
        after = replace(after, optional=False, version=before.version + 1)
    return after


def _expected(name: str, old: Desired, value: str, type_: str, now_ms: int) -> Desired:
    _check_value(name, "expected", value, type_ if value else "string")  # empty: nothing is wanted any more
    if old.updated_ms and (value, type_) == (old.value, old.type):
        return old  # the same wish keeps its time, and what became of it
    return Desired(value=value, type=type_, updated_ms=now_ms)


def _actual(name: str, old: Reported, value: str, type_: str, now_ms: int) -> Reported:
    _check_value(name, "actual", value, type_)
    new = Reported(value=value, type=type_, collected_ms=now_ms)
    confirmed_ms = now_ms - old.collected_ms
    if new == replace(old, collected_ms=now_ms) and 0 <= confirmed_ms < CONFIRM_MS:
        return old
    return new


def _type(name: str, before: TwinRow, change: TwinChange, types: Mapping[str, str] | None) -> str:
    if declared := (types or {}).get(name, ""):
        return declared
    known = before.twin.reported.type or before.twin.desired.type
    type_ = known or change.type.lower() or "string"
    type_ = _SPELLINGS.get(type_, type_)
    if type_ not in _CHECKED and type_ not in _ANY_TEXT:
        types_known = ", ".join(sorted(_CHECKED.keys() | _ANY_TEXT))
        raise Refused(400, f"property {name!r}: type {type_[:32]!r} is not one of {types_known}", what=name)
    return type_


def _check_value(name: str, side: str, value: str, type_: str) -> None:
    if len(value.encode(errors="surrogatepass")) > MAX_VALUE_BYTES:
        raise Refused(400, f"property {name!r}: {side} value over {MAX_VALUE_BYTES} bytes", what=name)
    try:
        value.encode()
        if checked := _CHECKED.get(type_):
            parse_value(value, checked)
    except (ConversionError, UnicodeEncodeError) as error:
        reason = error if isinstance(error, ConversionError) else "no text that UTF-8 can hold"
        raise Refused(400, f"property {name!r}: {side} value: {reason}", what=name) from error


def _is_current(before: TwinRow, change: TwinChange) -> bool:
    """Whether the request knows of every change made here to the sides it is about."""
    sides = (
        (change.expected is not None or change.deleted, change.expected_version, _desired_version(before)),
        (change.actual is not None or change.deleted, change.actual_version, _reported_version(before)),
    )
    return all(
        said.cloud >= stored.cloud and said.edge >= stored.edge
        for concerned, said, stored in sides
        if concerned and said is not None  # upstream lets a deletion go without versions
    )


def _adopt(before: TwinRow, after: TwinRow, change: TwinChange) -> TwinRow:
    """Versions as the request has them; and nothing more to tell the cloud than before."""
    desired, reported = _desired_version(before), _reported_version(before)
    if change.expected is not None or change.deleted:
        desired = change.expected_version or desired
    if change.actual is not None or change.deleted:
        reported = change.actual_version or reported
    unchanged = (desired, reported) == (_desired_version(before), _reported_version(before))
    if unchanged and after is before:
        return before
    if not after.version:
        return before  # a deletion of what never was
    version = before.version + 1
    return replace(
        after,
        version=version,
        acked=before.acked if before.dirty else version,
        desired_cloud=desired.cloud,
        desired_edge=desired.edge,
        reported_cloud=reported.cloud,
        reported_edge=reported.edge,
    )


def _desired_version(row: TwinRow) -> Version:
    return Version(row.desired_cloud, row.desired_edge)


def _reported_version(row: TwinRow) -> Version:
    return Version(row.reported_cloud, row.reported_edge)
