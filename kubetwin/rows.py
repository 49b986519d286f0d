"""From API objects to one row per property, for the demo's screen and for `kubectl twin`. Pure.

Read leniently: the objects may be a stock CloudCore's, which knows neither quality nor write states, or edited by hand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from msgspec import Struct

from dmi.errors import ConversionError
from dmi.freshness import shown_quality, unsaid_since_ms
from dmi.twins import Desired, Reported
from dmi.types import PROPERTY_TYPES
from dmi.values import parse_value
from kubetwin.lenient import items, mapping, text

__all__ = [
    "DeviceRow",
    "TwinRow",
    "age_text",
    "device_rows",
    "same_value",
    "state_of",
    "twin_rows",
]

Json = Mapping[str, Any]


class TwinRow(Struct, frozen=True, kw_only=True):
    device: str
    """`NAMESPACE/NAME`."""
    property_name: str
    value: str
    """The last one reported; empty also where nothing was: `is_reported` tells."""
    unit: str
    desired: str
    """As declared in the Device; empty: nothing is wanted."""
    write: str
    """Write state of the desired value: `pending`, `applied`, `failed`; empty: nothing is wanted, or a peer that does
    not say."""
    age_s: float | None
    """Since the value was collected; None: never."""
    quality: str
    """`good`, `stale`, `bad`; empty: nothing was reported."""
    reason: str
    is_reported: bool = True
    in_sync: bool | None = None
    """Whether the device has what is wanted; None: nothing is."""
    collected_ms: int = 0
    type: str = ""
    access: str = ""
    """`ReadOnly` or `ReadWrite`; empty: the model does not say, or could not be read."""
    state: str = ""
    node: str = ""


class DeviceRow(Struct, frozen=True):
    device: str
    state: str
    reason: str


def twin_rows(
    devices: Iterable[Json],
    models: Iterable[Json],
    statuses: Iterable[Json],
    *,
    now_ms: int,
    nodes_away: Collection[str] = (),
) -> list[TwinRow]:
    """One row per declared property, in the order of the manifest, whether or not anything was reported yet.

    `nodes_away`: nodes known not to be connected, for clusters whose DeviceStatuses do not say so.
    """
    statuses = list(statuses)
    declared = {(*_key(model), p.get("name")): p for model in models for p in items(model, "spec", "properties")}
    reported = {(*_key(s), twin.get("propertyName")): twin for s in statuses for twin in items(s, "status", "twins")}
    states = {_key(status): status for status in statuses}
    rows: list[TwinRow] = []
    for device in sorted(devices, key=_key):
        namespace, name = _key(device)
        spec = mapping(device, "spec")
        model, node = text(spec, "deviceModelRef", "name"), text(spec, "nodeName")
        status = states.get((namespace, name), {})
        state, state_reason = state_of(status, node_away=node in nodes_away)
        unsaid_since = unsaid_since_ms(items(status, "status", "extensions", "conditions"))
        for property_ in items(device, "spec", "properties"):
            property_name = text(property_, "name")
            twin = reported.get((namespace, name, property_name), {})
            rows.append(
                _row(
                    property_,
                    twin,
                    declared.get((namespace, model, property_name), {}),
                    TwinRow(
                        device=f"{namespace}/{name}", property_name=property_name, value="", unit="", desired="",
                        write="", age_s=None, quality="", reason=state_reason, state=state, node=node,
                    ),
                    now_ms,
                    unsaid_since,
                )
            )  # fmt: skip
    return rows


def _row(property_: Json, twin: Json, declared: Json, base: TwinRow, now_ms: int, unsaid_since: int) -> TwinRow:
    seen, wanted = _reported(twin), _desired(twin)
    desired = text(property_, "desired", "value")
    type_ = text(declared, "type") or seen.type.upper()
    is_reported = bool(seen.value or seen.collected_ms or seen.quality != "good")
    write = (wanted.write if wanted.value == desired else "pending") if desired else ""
    quality = shown_quality(seen, base.state, unsaid_since=unsaid_since) if is_reported else ""
    reason = seen.reason or (wanted.reason if write == wanted.write else "")
    return TwinRow(
        device=base.device,
        property_name=base.property_name,
        value=seen.value,
        unit=text(declared, "unit"),
        desired=desired,
        write=write,
        age_s=max(0.0, (now_ms - seen.collected_ms) / 1000) if seen.collected_ms else None,
        quality=quality,
        reason=reason or (base.reason if quality != "good" else ""),
        is_reported=is_reported,
        in_sync=_in_sync(desired, seen.value, type_, write) if desired and is_reported else False if desired else None,
        collected_ms=seen.collected_ms,
        type=type_,
        access=text(declared, "accessMode"),
        state=base.state,
        node=base.node,
    )


def device_rows(statuses: Iterable[Json]) -> list[DeviceRow]:
    return [DeviceRow("/".join(_key(status)), *state_of(status)) for status in sorted(statuses, key=_key)]


def state_of(status: Json, *, node_away: bool = False) -> tuple[str, str]:
    """State of a device and why, from its DeviceStatus. A node that is away leaves it `unknown`, whatever was said."""
    inner = mapping(status, "status")
    state, reason = text(inner, "state"), text(inner, "extensions", "reason")
    for condition in items(inner, "extensions", "conditions"):
        if condition.get("type") == "NodeConnected" and condition.get("status") == "False":
            return "unknown", reason or text(condition, "message")
    return ("unknown", reason or "its node is not connected") if node_away else (state, reason)


def same_value(one: str, other: str, type_: str) -> bool:
    """Whether two texts are the same value of a property type: `42` and `42.0` are the same FLOAT."""
    if one == other:
        return True
    if type_ not in PROPERTY_TYPES:
        return False
    try:
        return parse_value(one, type_) == parse_value(other, type_)
    except ConversionError:
        return False


def _in_sync(desired: str, value: str, type_: str, write: str) -> bool:
    """Equal; or, where the mapper has read back what it wrote, equal to the last digit reported: a register of tenths
    has 21.4 where 21.37 is wanted.
    """
    if same_value(desired, value, type_):
        return True
    if write != "applied" or type_ not in ("FLOAT", "DOUBLE"):
        return False
    try:
        wanted, seen = Decimal(desired), Decimal(value)
        exponent = seen.as_tuple().exponent
        return isinstance(exponent, int) and abs(wanted - seen) < Decimal(1).scaleb(min(exponent, 0))
    except (InvalidOperation, ValueError):
        return False


def age_text(age_s: float | None) -> str:
    """Short, as kubectl's: 0.4s, 12s, 3m, 2h."""
    if age_s is None:
        return ""
    if age_s < 9.95:
        return f"{age_s:.1f}s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if age_s >= 2 * size:
            return f"{age_s / size:.0f}{unit}"
    return f"{age_s:.0f}s"


def _key(obj: Json) -> tuple[str, str]:
    metadata = mapping(obj, "metadata")
    return text(metadata, "namespace"), text(metadata, "name")


def _reported(twin: Json) -> Reported:
    side = mapping(twin, "reported")
    return Reported.from_metadata(text(side, "value"), mapping(side, "metadata"))


def _desired(twin: Json) -> Desired:
    side = mapping(twin, "observedDesired")
    return Desired.from_metadata(text(side, "value"), mapping(side, "metadata"))
