"""Steps 14 to 18: what became of each property, up to the API and down to the device. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloudedge.facts import MAX_VALUE_CHARS, DeviceFacts, PropertyFacts, RefusedReport
from dmi import Reported
from dmi.twins import Quality
from kubetwin.why.desired import look_at_desired
from kubetwin.why.edgeside import GOOD_STATES
from kubetwin.why.oneproperty import of_api, of_edge, short, was_reported, why_silent
from kubetwin.why.seen import Seen
from kubetwin.why.steps import TITLES, Detail, State, Step, StepNumber

__all__ = ["twin_steps"]

CONFIRM_S: Final = 3.0
"""A value that is not confirmed after this long is stuck: CloudCore writes each device once a second."""
REFUSED_S: Final = 60.0
"""How long a refused report is news, when nothing was taken since."""
_FINE: Final[dict[StepNumber, str]] = {
    StepNumber.READ: "good",
    StepNumber.REPORTED: "reported",
    StepNumber.CONFIRMED: "confirmed by CloudCore",
    StepNumber.VISIBLE: "at the API as at the edge",
    StepNumber.DESIRED: "applied",
}


def twin_steps(seen: Seen) -> list[Step]:
    looks: dict[StepNumber, Callable[[Seen, str], Detail]] = {
        StepNumber.READ: _read,
        StepNumber.REPORTED: _reported,
        StepNumber.CONFIRMED: _confirmed,
        StepNumber.VISIBLE: _visible,
        StepNumber.DESIRED: look_at_desired,
    }
    return [_sum_up(number, [look(seen, name) for name in seen.property_names]) for number, look in looks.items()]


def _sum_up(number: StepNumber, details: list[Detail]) -> Step:
    """One step of many properties: as bad as the worst of them."""
    by_state = {s: [d for d in details if d.state == s] for s in ("broken", "unknown", "ok", "skipped")}
    state: State = next((s for s in ("broken", "unknown", "ok") if by_state[s]), "skipped")
    shown = by_state[state]
    newest = max(details, key=lambda d: d.at_ms, default=None)
    judged = len(details) - len(by_state["skipped"])
    if not details:
        message = "no property is known" if number is not StepNumber.DESIRED else "nothing is desired"
    elif not judged:
        message = shown[0].message if len({d.message for d in shown}) == 1 else _first_of(shown)
    elif state == "ok":
        message = f"{judged} of {judged} {_FINE[number]}"
    elif state == "unknown":
        message = shown[0].message
    else:
        message = _first_of(shown)
    first_todo = shown[0].todo if state == "broken" else ""
    return Step(
        number=number, name=TITLES[number], state=state, message=message, todo=first_todo,
        at_ms=newest.at_ms if newest and state == "ok" else 0, age_s=newest.age_s if newest and state == "ok" else None,
        passing=state == "broken" and all(d.passing for d in shown), properties=tuple(details),
    )  # fmt: skip


def _first_of(details: list[Detail]) -> str:
    first = details[0]
    return f"{first.property_name}: {first.message}" + (f" (and {len(details) - 1} more)" if details[1:] else "")


def _read(seen: Seen, name: str) -> Detail:
    """The last reading, by the word of whoever is nearer to the device."""
    if why := why_silent(seen, name):
        return Detail(name, "skipped", why)
    edge, api = of_edge(seen, name), of_api(seen, name)
    if edge is not None and was_reported(edge):
        side = Reported(edge.value, "", edge.collected_ms, _quality(edge.quality), edge.reason)
        age_s = seen.edge_age_s(edge.collected_ms)
    elif seen.facts is not None:
        return Detail(name, "unknown", "nothing was reported of it")
    elif api is not None and api.reported != Reported():
        side, age_s = api.reported, seen.age_s(api.reported.collected_ms)
    else:
        return Detail(name, "unknown", "nothing of it is at the API")
    at_ms = side.collected_ms
    if side.quality != "good":
        return Detail(
            name, "broken", f"{side.quality}: {side.reason or 'no reason given'}",
            _read_todo(seen), at_ms, age_s,
            side.quality == "stale",
        )  # fmt: skip
    if old := _why_old(seen):
        return Detail(name, "skipped", f"old: {old}", "", at_ms, age_s)
    return Detail(name, "ok", f"good: {short(side.value)}", "", at_ms, age_s)


def _why_old(seen: Seen) -> str:
    """Why what was good when it was read is no longer; empty: it is."""
    facts = seen.facts
    if facts is not None and (facts.mapper is None or not facts.mapper.answering):
        return "no mapper answers"
    state = facts.state if facts is not None else seen.status.state if seen.status is not None else ""
    return "" if state in (*GOOD_STATES, "unhealthy", "") else f"the device is {state}"


def _quality(text: str) -> Quality:
    return Reported.from_metadata("", {"quality": text}).quality


def _read_todo(seen: Seen) -> str:
    if _why_old(seen):
        return "it is read again as soon as the device answers its mapper"
    return (
        "the reason is the mapper's: correct the property's visitors.configData, or see to the device: "
        f"kubectl edit device -n {seen.evidence.namespace} {seen.evidence.name}"
    )


def _reported(seen: Seen, name: str) -> Detail:
    if why := why_silent(seen, name):
        return Detail(name, "skipped", why)
    facts = seen.facts
    if facts is None:
        return Detail(name, "unknown", "edge core was not reached")
    edge = facts.properties.get(name)
    if refused := _refusal(facts, name, edge):
        times = f", {refused.count} times" if refused.count > 1 else ""
        return Detail(
            name, "broken", f"edge core refuses the report of {refused.what}: {refused.reason}{times}",
            "the mapper sends something wrong: look at its log, and at the property's type in the DeviceModel",
            refused.at_ms, seen.edge_age_s(refused.at_ms),
        )  # fmt: skip
    if edge is not None and was_reported(edge):
        at_ms = facts.last_report_ms or edge.collected_ms
        return Detail(name, "ok", "reported", "", at_ms, seen.edge_age_s(at_ms))
    if facts.mapper is None or not facts.mapper.answering or facts.mapper.handed != "current":
        return Detail(name, "skipped", "no mapper has it")
    registered_s = seen.edge_age_s(facts.mapper.registered_ms)
    return Detail(
        name, "broken", f"mapper {facts.mapper.name} never reported it",
        "what does the mapper's log say of it? Its collectCycle may be long",
        0, None, registered_s is None or registered_s < CONFIRM_S * 10,
    )  # fmt: skip


def _refusal(facts: DeviceFacts, name: str, edge: PropertyFacts | None) -> RefusedReport | None:
    """The newest report of the property, or of the whole device, that was refused, unless it is over."""
    taken_ms = edge.collected_ms if edge is not None else 0
    fitting = [
        r for r in facts.refused
        if r.what in (name, "twins", "")
        and r.at_ms > taken_ms
        and (not r.at_ms or facts.now_ms - r.at_ms < REFUSED_S * 1000 or not taken_ms)
    ]  # fmt: skip
    return max(fitting, key=lambda r: r.at_ms, default=None)


def _confirmed(seen: Seen, name: str) -> Detail:
    facts, edge = seen.facts, of_edge(seen, name)
    if facts is None:
        return Detail(name, "unknown", "edge core was not reached")
    if edge is None or not was_reported(edge):
        return Detail(name, "skipped", why_silent(seen, name) or "nothing was reported of it")
    if not edge.unsent:
        return Detail(name, "ok", "confirmed")
    if not facts.cloud_connected:
        return Detail(name, "skipped", "waits for the link; the newest value is kept")
    sent = facts.in_flight_since_ms
    waits_s = seen.edge_age_s(sent or edge.collected_ms)
    if waits_s is None or waits_s < CONFIRM_S:
        return Detail(name, "ok", "on its way", "", sent, waits_s)
    if sent:
        return Detail(
            name, "broken", f"sent {waits_s:.0f} s ago, and CloudCore has not confirmed it",
            "it confirms what the API has taken: does it reach the API? Look at its log. The value is kept meanwhile",
            sent, waits_s,
        )  # fmt: skip
    return Detail(
        name,
        "broken",
        "not sent yet, though the link is up",
        "look at edge core's log and at its metrics",
        0,
        None,
        True,
    )


def _visible(seen: Seen, name: str) -> Detail:
    """Whether the API has what the edge has. What it was asked last is never older than what the edge said."""
    edge, api = of_edge(seen, name), of_api(seen, name)
    if seen.status is None:
        if not seen.evidence.api.seen:
            return Detail(name, "unknown", "the API was not reached")
        return Detail(name, "skipped", "there is no DeviceStatus")
    at_api = api.reported if api is not None else Reported()
    age_s = seen.age_s(at_api.collected_ms)
    if seen.facts is None:
        if at_api != Reported():
            return Detail(name, "ok", f"{short(at_api.value)}", "", at_api.collected_ms, age_s)
        if why := why_silent(seen, name):
            return Detail(name, "skipped", why)
        return Detail(
            name,
            "broken",
            "the API has no value of it",
            "why, shows kubetwin why on the node; what does the mapper's log say?",
        )
    if edge is None or not was_reported(edge):
        return Detail(name, "skipped", why_silent(seen, name) or "nothing was reported of it")
    same = at_api.value[:MAX_VALUE_CHARS] == edge.value and at_api.quality == _quality(edge.quality)
    if at_api.collected_ms >= edge.collected_ms and (same or at_api.collected_ms > edge.collected_ms):
        return Detail(name, "ok", short(at_api.value), "", at_api.collected_ms, age_s)
    if edge.unsent:
        if at_api == Reported():
            return Detail(name, "skipped", "none yet: the first value is not confirmed")
        behind_s = max(0.0, (edge.collected_ms - at_api.collected_ms) / 1000)
        state: State = "ok" if behind_s < CONFIRM_S else "skipped"
        text = f"{behind_s:.1f} s behind: a newer value is on its way"
        return Detail(name, state, text, "", at_api.collected_ms, age_s)
    what = f"{short(at_api.value)} ({at_api.quality})" if at_api != Reported() else "no value"
    return Detail(
        name, "broken",
        f"the API has {what}, the edge {short(edge.value)} ({edge.quality}), which CloudCore confirmed",
        "does somebody else write the DeviceStatus? Look at its managedFields, and at CloudCore's log",
        at_api.collected_ms, age_s, True,
    )  # fmt: skip
