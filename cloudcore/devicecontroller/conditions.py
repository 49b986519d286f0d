"""From what is known and declared of a device to the state and the conditions that its DeviceStatus shows. Pure.

The conditions, in the order of the path from the declaration to the device:

| type | True: | False: | Unknown: |
|---|---|---|---|
| `Declared` | Device and DeviceModel fit | something is wrong with them; the message says where | – |
| `NodeConnected` | the device's node is connected to CloudHub | it is not | no node is named, or it is too early |
| `Online` | the device answers its mapper | it does not, or refuses | nobody can tell |
| `InSync` | the device has every desired value | one is pending or failed | they were applied, and the device is away |

`lastTransitionTime` changes with the status only, and is read back from the DeviceStatus after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from cloudcore.devicecontroller.declarations import Declaration
from cloudcore.devicecontroller.known import Known
from cloudcore.devicecontroller.shown import UNKNOWN, Condition, Shown, utc_text
from dmi import Problem, Twin
from dmi.freshness import LIVE, NOT_REPORTED

__all__ = ["NodeView", "appearance", "assumed_link"]

MAX_NAMED: Final = 3
"""Properties, or problems, that a message names one by one."""
MAX_MESSAGE_CHARACTERS: Final = 512


Link = Literal["up", "down", "waiting"]
"""`waiting`: the cloud core has just started, and the node had no time to connect yet."""


class NodeView(Struct, frozen=True):
    """A device's node as CloudHub sees it."""

    link: Link = "up"
    lost_ms: int = 0
    """Epoch milliseconds of the loss, of a node whose link is down; 0: before this process started."""


def assumed_link(before: Shown, node: str) -> Link:
    """What to take a node for that has not been away for long: what it was taken for before."""
    shown = before.conditions.get("NodeConnected")
    if shown is None or shown.status == "Unknown" or not _is_about(shown, node):
        return "waiting"
    return "up" if shown.status == "True" else "down"


def appearance(known: Known, declared: Declaration, before: Shown, *, node: NodeView, now_ms: int) -> Shown:
    """What to show after `before`. The same input always shows the same, so that a steady device costs no writes."""
    now = utc_text(now_ms)
    connection = _node_connected(declared, before, node, now)
    state, reason, since = _state(known, declared, before, connection, now)
    wanted = (
        _declared(declared),
        connection,
        _online(known, declared, connection, state, reason),
        _in_sync(known, declared, state),
    )
    conditions = {}
    for condition in wanted:
        earlier = before.conditions.get(condition.type)
        kept = earlier.since if earlier is not None and earlier.status == condition.status else ""
        since_when = condition.since or kept or now
        conditions[condition.type] = Condition(
            condition.type, condition.status, condition.reason, condition.message[:MAX_MESSAGE_CHARACTERS], since_when
        )
    return Shown(state=state, reason=reason, since=since, conditions=conditions)


def _state(known: Known, declared: Declaration, before: Shown, connection: Condition, now: str) -> tuple[str, str, str]:
    """State, reason, and since when: in the node's words where it says them, else since it was first shown."""
    if declared.blocked:
        state, reason, since = UNKNOWN, declared.blocked, ""
    elif connection.status == "False":
        state, reason, since = UNKNOWN, connection.message, connection.since
    elif not known.state:
        state, reason = UNKNOWN, "no state reported yet" if known.twins else "nothing reported yet"
        since = ""
    else:
        state, reason = known.state, known.reason or _listed([p.message for p in declared.problems], named=1)
        since = utc_text(known.since_ms) if known.since_ms else ""
    return state, reason, since or (before.since if before.state == state else "") or now


def _declared(declared: Declaration) -> Condition:
    if not declared.problems:
        return Condition("Declared", "True", "Declared")
    first: Problem = declared.problems[0]
    return Condition("Declared", "False", first.reason, _listed([p.message for p in declared.problems]))


def _node_connected(declared: Declaration, before: Shown, node: NodeView, now: str) -> Condition:
    if not declared.node:
        return Condition("NodeConnected", "Unknown", "NoNode", "spec.nodeName: is empty")
    shown = before.conditions.get("NodeConnected")
    if node.link == "up":
        message = f'node "{declared.node}" is connected to CloudHub'
        moved = shown is not None and not _is_about(shown, declared.node)
        return Condition("NodeConnected", "True", "Connected", message, now if moved else "")
    if node.link == "waiting":
        return Condition("NodeConnected", "Unknown", "Waiting", f'node "{declared.node}" has not connected yet')
    since = shown.since if shown is not None and shown.status == "False" and _is_about(shown, declared.node) else ""
    since = since or (utc_text(node.lost_ms) if node.lost_ms else now)
    message = f'node "{declared.node}" is not connected to CloudHub since {since}'
    return Condition("NodeConnected", "False", "NotConnected", message, since)


def _is_about(condition: Condition, node: str) -> bool:
    return f'"{node}"' in condition.message  # node names have no quotes in them


def _online(known: Known, declared: Declaration, connection: Condition, state: str, reason: str) -> Condition:
    """`reason` of the condition tells who says so; `from_status` relies on `Reported`."""
    if declared.blocked:
        return Condition("Online", "Unknown", "NotDeclared", reason)
    if connection.status == "False":
        return Condition("Online", "Unknown", "NodeNotConnected", reason)
    if not known.state:
        return Condition("Online", "Unknown", NOT_REPORTED, reason)
    match state:
        case "online" | "ok":
            return Condition("Online", "True", "Online", known.reason)
        case "offline":
            return Condition("Online", "False", "Offline", reason)
        case "unhealthy":
            return Condition("Online", "False", "Unhealthy", reason)
        case "unknown":
            return Condition("Online", "Unknown", "Reported", reason)
    return Condition("Online", "False", "OtherState", f"the state is {state!r}")  # Go mappers may report any text


def _in_sync(known: Known, declared: Declaration, state: str) -> Condition:
    if not declared.desired:
        return Condition("InSync", "True", "NothingDesired")
    failed: list[str] = []
    pending: list[str] = []
    for name, wanted in declared.desired.items():
        twin = known.twins.get(name) or Twin(name)
        seen = twin.desired.value == wanted
        if seen and twin.desired.write == "failed":
            failed.append(f"{name}: {twin.desired.reason or 'the write failed'}")
        elif not seen or not _is_applied(twin):
            pending.append(name)
    if failed:
        return Condition("InSync", "False", "WriteFailed", _listed(failed))
    if pending:
        return Condition("InSync", "False", "Pending", f"not written yet: {_listed(pending, separator=', ')}")
    if state not in LIVE:
        return Condition("InSync", "Unknown", "NotOnline", "applied when the device was last seen")
    return Condition("InSync", "True", "Applied")


def _is_applied(twin: Twin) -> bool:
    """Go mappers do not say what became of a write: then the device has to report the value."""
    return twin.desired.write == "applied" or (
        twin.desired.write == "" and _is_same(twin.desired.value, twin.reported.value)
    )


def _is_same(one: str, other: str) -> bool:
    """Equal as texts, or as numbers: 5 and 5.0."""
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return one.lower() == other.lower() and one.lower() in ("true", "false")


def _listed(texts: Sequence[str], *, named: int = MAX_NAMED, separator: str = "; ") -> str:
    """The first few, and how many more there are."""
    more = f" (and {len(texts) - named} more)" if len(texts) > named else ""
    return separator.join(texts[:named]) + more
