"""Step 18 of one property: what became of its desired value. Pure."""

from __future__ import annotations

from cloudedge.facts import MAX_VALUE_CHARS
from dmi import Desired
from dmi.twins import WriteState
from kubetwin.rows import same_value
from kubetwin.why.oneproperty import of_api, of_edge, short, why_silent
from kubetwin.why.seen import Seen
from kubetwin.why.steps import Detail

__all__ = ["look_at_desired"]


def look_at_desired(seen: Seen, name: str) -> Detail:
    edge, api = of_edge(seen, name), of_api(seen, name)
    declared = seen.device.find(name) if seen.device is not None else None
    wanted = declared.desired.value if declared is not None else edge.desired if edge is not None else ""
    if not wanted:
        return Detail(name, "skipped", "nothing is desired")
    if why := why_silent(seen, name) or _unwritable(seen, name):
        return Detail(name, "skipped", why)
    if edge is not None:
        side, value = Desired(edge.desired, "", 0, _write(edge.write), edge.write_reason), edge.value
    elif api is not None:
        side, value = api.desired, api.reported.value
    else:
        return Detail(name, "unknown", "nobody said what became of it")
    property_ = seen.model.find(name) if seen.model is not None else None
    return _written(
        name, wanted, side, value, type_=property_.type if property_ else "", age_s=seen.age_s(side.updated_ms)
    )


def _written(name: str, wanted: str, side: Desired, value: str, *, type_: str, age_s: float | None) -> Detail:
    """`side`: what the mapper has been told, and what became of it; `value`: what the device has."""
    at_ms = side.updated_ms
    if side.value[:MAX_VALUE_CHARS] not in ("", wanted[:MAX_VALUE_CHARS]):
        if not side.write:  # what a mapper of ours speaks of has a write state; what an app asks for has none
            return Detail(
                name, "broken", f"{short(wanted)} is wanted, and at the edge {short(side.value)}",
                "an app there asks for that over MQTT (`expected`), or a change has not arrived yet. What counts is "
                "the Device: change its `desired`, and the mapper says what became of it", at_ms, age_s, True,
            )  # fmt: skip
        return Detail(
            name, "broken", f"{short(wanted)} is wanted; the mapper speaks of {short(side.value)}",
            "it is told as soon as the change is at the edge: look at the mapper's log", at_ms, age_s, True,
        )  # fmt: skip
    match side.write:
        case "applied":
            return Detail(name, "ok", f"{short(wanted)} applied", "", at_ms, age_s)
        case "failed":
            return Detail(
                name, "broken", f"{short(wanted)} could not be written: {side.reason or 'no reason given'}",
                "the reason is the device's or the driver's; the mapper goes on trying", at_ms, age_s,
            )  # fmt: skip
        case "pending":
            reason = f": {side.reason}" if side.reason else ""
            return Detail(
                name, "broken", f"{short(wanted)} is not written yet{reason}",
                "the mapper writes it as soon as the device answers", at_ms, age_s, True,
            )  # fmt: skip
        case _:
            if same_value(value, wanted, type_):
                return Detail(name, "ok", f"the device has {short(wanted)}", "", at_ms, age_s)
            return Detail(
                name, "unknown", f"{short(wanted)} is wanted, {short(value)} reported; the mapper does not say more"
            )


def _unwritable(seen: Seen, name: str) -> str:
    property_ = seen.model.find(name) if seen.model is not None else None
    return "ReadOnly: never written" if property_ is not None and not property_.writable else ""


def _write(text: str) -> WriteState:
    return Desired.from_metadata("", {"write": text}).write
