"""Steps 8 to 13: edge core, the mapper, and the device's state. Pure."""

from __future__ import annotations

from typing import Final

from cloudedge.facts import DeviceFacts, spec_digest
from kubetwin.lenient import text
from kubetwin.why.seen import Seen
from kubetwin.why.steps import Step, StepNumber, step

__all__ = ["GOOD_STATES", "edge_steps"]

GOOD_STATES: Final = ("online", "ok")
"""`ok` is what Go mappers may report."""
JUST_REGISTERED_S: Final = 5.0


def edge_steps(seen: Seen, *, linked: bool) -> list[Step]:
    """`linked`: nothing before the edge is broken, so that a missing answer is news."""
    facts = seen.facts
    if facts is None:
        why = "edge core was not reached" if linked else "edge core was not reached: see above"
        numbers = (
            StepNumber.STORE, StepNumber.KNOWN, StepNumber.MAPPER, StepNumber.ANSWERING, StepNumber.TAKEN,
        )  # fmt: skip
        return [*(step(n, "unknown" if linked else "skipped", why) for n in numbers), _online_by_status(seen)]
    steps = [_store(seen, facts), _known(seen, facts)]
    if steps[-1].state == "broken" and not facts.declared:
        rest = (StepNumber.MAPPER, StepNumber.ANSWERING, StepNumber.TAKEN, StepNumber.ONLINE)
        return steps + [step(n, "skipped", "edge core does not know the device") for n in rest]
    return [*steps, _mapper(facts, seen), _answering(facts, seen), _taken(facts, seen), _online(facts, seen)]


def _store(seen: Seen, facts: DeviceFacts) -> Step:
    if facts.store_trouble:
        since = facts.store_trouble_since_ms
        return step(
            StepNumber.STORE, "broken", f"nothing is written to disk: {facts.store_trouble}",
            "free space on the disk of database.dataSource, or make it writable; until then values are in memory only",
            at_ms=since, age_s=seen.edge_age_s(since),
        )  # fmt: skip
    return step(StepNumber.STORE, "ok", "is written to")


def _known(seen: Seen, facts: DeviceFacts) -> Step:
    number = StepNumber.KNOWN
    if not facts.declared:
        if not seen.evidence.api.seen:
            return step(
                number, "broken", f"edge core of {facts.node} has no Device {seen.evidence.device}",
                "is the name right, and spec.nodeName? Ask from where the Kubernetes API is",
            )  # fmt: skip
        return step(
            number, "broken", f"edge core of {facts.node} has no Device {seen.evidence.device}",
            "CloudCore sends it as soon as the node is connected: look at CloudCore's log for the node", passing=True,
        )  # fmt: skip
    here = f"in version {facts.declared_version or '?'}"
    if seen.device is None or seen.evidence.api.device is None:
        return step(number, "ok", here)
    version = text(seen.evidence.api.device, "metadata", "resourceVersion") or "?"
    is_same = not facts.spec_digest or facts.spec_digest == spec_digest(seen.evidence.api.device.get("spec"))
    is_ours = seen.status is not None and seen.status.ours  # KubeEdge's own sends specs in its own words
    todo = "CloudCore sends a change until it is acknowledged: look at its log for the node"
    if facts.declared_version not in ("", version):
        # CloudCore does not send what leaves the spec as it is (labels), so another version alone is no fault.
        if is_same:
            return step(number, "ok", f"{here}; {version} at the API asks for the same")
        if not is_ours:
            return step(number, "unknown", f"{here}; whether {version} at the API asks for more cannot be told")
        return step(number, "broken", f"{here}; {version} at the API asks for something else", todo, passing=True)
    model = seen.evidence.api.model
    if is_ours and model is not None and facts.model_digest not in ("", spec_digest(model.get("spec"))):
        return step(number, "broken", f"{here}, with another DeviceModel than the API's", todo, passing=True)
    return step(number, "ok", f"{here}, as at the API")


def _mapper(facts: DeviceFacts, seen: Seen) -> Step:
    number, mapper = StepNumber.MAPPER, facts.mapper
    if mapper is None:
        others = ", ".join(facts.other_mappers) or "none"
        protocol = facts.protocol or (seen.device.protocol if seen.device else "")
        return step(
            number, "broken", f"none for protocol {protocol!r} is registered on {facts.node}; registered: {others}",
            f"start it there: kubetwin mapper run {protocol or 'PROTOCOL'} --config FILE; common.edgecore_sock right?",
        )  # fmt: skip
    since = mapper.registered_ms
    return step(
        number, "ok", f"{mapper.name} for {mapper.protocol}", at_ms=since, age_s=seen.edge_age_s(since)
    )  # fmt: skip


def _answering(facts: DeviceFacts, seen: Seen) -> Step:
    number, mapper = StepNumber.ANSWERING, facts.mapper
    if mapper is None:
        return step(number, "skipped", "there is no mapper")
    if mapper.answering:
        heard = mapper.heard_ms
        return step(number, "ok", "last heard of", at_ms=heard, age_s=seen.edge_age_s(heard))
    since = mapper.away_since_ms
    return step(
        number, "broken", mapper.trouble or f"mapper {mapper.name} does not answer",
        f"look on {facts.node}, and at the mapper's log; it gets all its devices when it registers again",
        at_ms=since, age_s=seen.edge_age_s(since),
    )  # fmt: skip


def _taken(facts: DeviceFacts, seen: Seen) -> Step:
    number, mapper = StepNumber.TAKEN, facts.mapper
    if mapper is None:
        return step(number, "skipped", "there is no mapper")
    if mapper.refusal:
        return step(
            number, "broken", f"mapper {mapper.name} refuses the device: {mapper.refusal}",
            f"change what it names: kubectl edit device -n {seen.evidence.namespace} {seen.evidence.name}",
        )  # fmt: skip
    if facts.problem:
        return step(number, "skipped", "the declaration cannot be run")
    if mapper.handed == "current":
        return step(number, "ok", "it has the declaration as it is")
    if not mapper.answering:
        return step(number, "skipped", "it gets the declaration when it answers")
    what = "is to get a newer declaration" if mapper.handed else "has not been given the device yet"
    return step(
        number, "broken", f"mapper {mapper.name} {what}", f"look at edge core's log on {facts.node} for {mapper.name}",
        passing=True,
    )  # fmt: skip


def _online(facts: DeviceFacts, seen: Seen) -> Step:
    good = any(p.quality == "good" and p.collected_ms for p in facts.properties.values())
    since, reason = facts.state_since_ms or facts.last_state_ms, facts.state_reason
    if reason and facts.mapper is not None and reason == facts.mapper.trouble:  # said at a step before
        reason = "its mapper does not answer"
    return _state(facts.state, reason, good=good, at_ms=since, age_s=seen.edge_age_s(since))


def _online_by_status(seen: Seen) -> Step:
    status = seen.status
    if status is None:
        return step(StepNumber.ONLINE, "skipped", "there is no DeviceStatus that would say")
    good = any(t.reported.quality == "good" and t.reported.value for t in status.twins.values())
    return _state(status.state, status.reason, good=good, at_ms=status.since_ms, age_s=seen.age_s(status.since_ms))


def _state(state: str, reason: str, *, good: bool, at_ms: int, age_s: float | None) -> Step:
    number, why = StepNumber.ONLINE, f": {reason}" if reason else ""
    if state in GOOD_STATES:
        return step(number, "ok", state + why, at_ms=at_ms, age_s=age_s)
    if state == "unhealthy" and good:
        return step(number, "ok", f"it answers; unhealthy{why}", at_ms=at_ms, age_s=age_s)
    if state in ("", "unknown") and good and not reason:
        return step(number, "unknown", "its mapper reports values but no state (spec.stateReport.reportToCloud)")
    todo = {
        "offline": "is it on, and reachable from the node at the address in spec.protocol.configData?",
        "unhealthy": "the reason names what cannot work; correct it in the Device or on the device",
    }.get(state, "what keeps its mapper from reporting is one of the steps above, or in the mapper's log")
    young = (age_s is not None and age_s < JUST_REGISTERED_S) or not state
    return step(number, "broken", f"{state or 'no state reported'}{why}", todo, at_ms=at_ms, age_s=age_s, passing=young)
