"""What became of a desired value, as far as Device and DeviceStatus tell. Pure.

Mappers of kubetwin say so themselves (`write` in the metadata of `observedDesired`, docs/desired.md). With stock ones a
value counts as applied when the edge has seen it and the device reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from dmi.freshness import LIVE, unsaid_since_ms
from dmi.twins import Desired, Reported
from kubetwin.lenient import items
from kubetwin.rows import same_value, state_of
from kubetwin.twin.wishes import Wish

__all__ = ["Verdict", "verdicts"]

Json = Mapping[str, Any]
Outcome: TypeAlias = Literal["applied", "failed", "pending"]


class Verdict(Struct, frozen=True):
    wish: Wish
    outcome: Outcome
    reason: str = ""
    """Why it failed, or what it waits for."""


def verdicts(
    wishes: Sequence[Wish],
    device: Json | None,
    status: Json | None,
    types: Mapping[str, str],
    *,
    node_away: bool = False,
) -> list[Verdict]:
    """One for each wish. `types`: of the model, by property; without, values are compared as texts."""
    if device is None:
        return [Verdict(wish, "failed", "the device was deleted") for wish in wishes]
    spec = device.get("spec") or {}
    declared = {p.get("name"): (p.get("desired") or {}).get("value") or "" for p in spec.get("properties") or ()}
    twins = {t.get("propertyName"): t for t in ((status or {}).get("status") or {}).get("twins") or ()}
    waits = _waits(spec, status, node_away=node_away)
    return [
        _verdict(
            w, declared.get(w.property_name), twins.get(w.property_name) or {}, types.get(w.property_name, ""), waits
        )
        for w in wishes
    ]


def _verdict(wish: Wish, declared: str | None, twin: Json, type_: str, waits: str) -> Verdict:
    if declared is None:
        return Verdict(wish, "failed", "the property was removed from the device")
    if declared != wish.value:
        return Verdict(wish, "failed", f"somebody else has set it to {declared!r} since")
    if wish.value == "":
        return Verdict(wish, "applied")  # nothing is wanted, so there is nothing to wait for
    observed, reported = twin.get("observedDesired") or {}, twin.get("reported") or {}
    seen = Desired.from_metadata(observed.get("value") or "", observed.get("metadata") or {})
    if seen.value != wish.value:
        return Verdict(wish, "pending", waits or "it has not come back from the edge yet")
    if seen.write:
        return Verdict(wish, seen.write, seen.reason or (waits if seen.write == "pending" else ""))
    has = Reported.from_metadata(reported.get("value") or "", reported.get("metadata") or {})
    if has.quality == "good" and not waits and same_value(has.value, wish.value, type_ or has.type.upper()):
        return Verdict(wish, "applied")
    return Verdict(wish, "pending", waits or f"the edge has it, and the device reports {has.value!r}")


def _waits(spec: Json, status: Json | None, *, node_away: bool) -> str:
    """What stands in the way of every write to the device; empty: nothing that is known."""
    if not spec.get("nodeName"):
        return "the device names no node (spec.nodeName)"
    if status is None:
        return "there is no DeviceStatus yet: is CloudCore running?"
    state, reason = state_of(status, node_away=node_away)
    if not state or state.casefold() in LIVE or unsaid_since_ms(items(status, "status", "extensions", "conditions")):
        return ""
    return f"the device is {state}" + (f": {reason}" if reason else "")
