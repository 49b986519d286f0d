"""Last known state and declaration → `DeviceStatus.status`, and the merge patch that makes it so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cloudcore.devicecontroller.declarations import Declaration
from cloudcore.devicecontroller.known import DELETED, Known, has_value
from cloudcore.devicecontroller.shown import Shown, read_shown
from cloudcore.kube import Key, Object, identity
from dmi import Desired, Problem, Reported, Twin
from dmi.crd import API_VERSION
from dmi.freshness import shown_quality, unsaid_since_ms

__all__ = ["device_status", "is_lazy", "owner_uid", "render", "status_patch", "summary"]

SUMMARY_CHARACTERS: Final = 200
_VALUE_CHARACTERS: Final = 60
_PROPERTY_CHARACTERS: Final = 253
MAX_PROBLEMS: Final = 100
_EXTENSIONS: Final = ("summary", "reason", "since", "conditions", "problems")


def render(known: Known, declared: Declaration, shown: Shown) -> Object:
    """The whole status: what is known as it is, state and conditions as `shown` has them."""
    conditions = [condition.rendered() for condition in shown.conditions.values()]
    return {
        "twins": [_twin(twin) for name in declared.properties if has_value(twin := known.twins.get(name))],
        "state": shown.state,
        "lastOnlineTime": known.last_online,
        "extensions": {
            "summary": summary(known, declared, shown.state, unsaid_since=unsaid_since_ms(conditions)),
            "reason": shown.reason,
            "since": shown.since,
            "conditions": conditions,
            "problems": _problems(declared.problems),
        },
    }


def summary(known: Known, declared: Declaration, state: str, *, unsaid_since: int = 0) -> str:
    """One line for people, such as `temperature=21.5 Celsius, valve=open`. What is not good, or old, says so."""
    parts = []
    for name in declared.properties:
        twin = known.twins.get(name)
        if twin is None or twin.reported == Reported() or twin.reported.type == DELETED:
            continue
        value = _one_line(twin.reported.value) or "?"
        unit = declared.units.get(name, "")
        quality = shown_quality(twin.reported, state, unsaid_since=unsaid_since)
        mark = "" if quality == "good" else f" ({quality})"
        parts.append(f"{name}={value}{' ' + unit if unit else ''}{mark}")
    line = ", ".join(parts)
    return line if len(line) <= SUMMARY_CHARACTERS else line[: SUMMARY_CHARACTERS - 1] + "…"


def _one_line(value: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in value[: _VALUE_CHARACTERS + 1])
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "…"


def _twin(twin: Twin) -> Object:
    """Both sides are always there, as upstream writes them: the schema asks for their value."""
    return {
        "propertyName": twin.property_name,
        "reported": _side(twin.reported),
        "observedDesired": _side(twin.desired),
    }


def _side(side: Reported | Desired) -> Object:
    if side.type == DELETED:
        return {"value": ""}
    metadata = {k: v for k, v in side.metadata().items() if v and (k, v) != ("quality", "good")}
    return {"value": side.value, "metadata": metadata} if metadata else {"value": side.value}


def _problems(problems: Sequence[Problem]) -> list[Object]:
    """The first ones: with all that thousands of properties may have, the status would be too large to be written."""
    rendered: list[Object] = []
    for problem in problems[:MAX_PROBLEMS]:
        rendered.append({"reason": problem.reason, "message": problem.message})
        if problem.property_name:
            rendered[-1]["property"] = problem.property_name[:_PROPERTY_CHARACTERS]
    if (more := len(problems) - MAX_PROBLEMS) > 0:
        rendered.append({"reason": "MoreProblems", "message": f"{more} more, which are not shown"})
    return rendered


def status_patch(current: object, wanted: Object) -> Object:
    """The JSON merge patch from a status as it is to the wanted one; empty when nothing differs.

    Members that others keep under `extensions` are left alone.
    """
    status = current if isinstance(current, dict) else {}
    patch = _difference(status, wanted, ("twins", "state", "lastOnlineTime"))
    extensions = status.get("extensions")
    nested = _difference(extensions if isinstance(extensions, dict) else {}, wanted["extensions"], _EXTENSIONS)
    if nested:
        patch["extensions"] = nested
    return {"status": patch} if patch else {}


def is_lazy(patch: Object, current: object) -> bool:
    """Whether a patch can wait for another to travel with: nothing but a new `lastOnlineTime`, another `InSync`, or a
    node that has connected.

    Twins, or a state, are about to be reported then; a patch before them would delay them.
    """
    status = patch["status"]
    if not status.keys() <= {"lastOnlineTime", "extensions"}:
        return False
    extensions = status.get("extensions")
    if extensions is None:
        return True
    if extensions.keys() != {"conditions"}:
        return False
    before, after = read_shown(current).conditions, read_shown(status).conditions
    changed = {name for name in after if before.get(name) != after[name]}
    return before.keys() == after.keys() and (
        changed <= {"InSync"} or (changed <= {"InSync", "NodeConnected"} and after["NodeConnected"].status == "True")
    )


def _difference(current: Object, wanted: Object, keys: tuple[str, ...]) -> Object:
    patch: dict[str, Any] = {}
    for key in keys:
        value = wanted[key]
        if value:
            if current.get(key) != value:
                patch[key] = value
        elif current.get(key):
            patch[key] = None
    return patch


def device_status(key: Key, device: Object, wanted: Object) -> Object:
    """A new DeviceStatus, owned by its Device: it goes when that goes (device contract 1.2)."""
    status = {name: value for name, value in wanted.items() if value and name != "extensions"}
    status["extensions"] = {name: value for name, value in wanted["extensions"].items() if value}
    return {
        "apiVersion": API_VERSION,
        "kind": "DeviceStatus",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": "Device",
                    "name": key.name,
                    "uid": identity(device),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {},
        "status": status,
    }


def owner_uid(status: Object) -> str:
    """The uid of the Device that a DeviceStatus belongs to; empty: it says none."""
    references = (status.get("metadata") or {}).get("ownerReferences")
    for reference in references if isinstance(references, list) else []:
        if isinstance(reference, dict) and reference.get("kind") == "Device":
            return str(reference.get("uid") or "")
    return ""
