"""From evidence to a verdict: every step of the path judged, the first broken one named. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kubetwin.why.cloudside import cloud_steps
from kubetwin.why.edgeside import edge_steps
from kubetwin.why.evidence import Evidence
from kubetwin.why.seen import Seen, see
from kubetwin.why.steps import ALL_FINE, NOTHING_ASKED, Step, StepNumber, Verdict
from kubetwin.why.twinside import twin_steps

__all__ = ["walk"]

CLOCKS_APART_S = 2.0


def walk(evidence: Evidence) -> Verdict:
    seen = see(evidence)
    before = cloud_steps(seen)
    linked = all(step.state != "broken" for step in before)
    steps = (*before, *edge_steps(seen, linked=linked), *twin_steps(seen))
    broken = next((step for step in steps if step.state == "broken"), None)
    ahead_s = evidence.edge.clock_ahead_s if seen.facts_from == "edge core" else evidence.cloud.clock_ahead_s
    return Verdict(
        device=evidence.device,
        node=seen.node,
        steps=steps,
        notes=tuple(_notes(seen, ahead_s)),
        first_broken=broken.number if broken else 0,
        summary=_summary(evidence, steps, broken),
        todo=broken.todo if broken else "",
        exit_code=_exit_code(evidence, broken),
        clock_ahead_s=ahead_s,
    )


def _exit_code(evidence: Evidence, broken: Step | None) -> int:
    if evidence.nothing_asked:
        return NOTHING_ASKED
    return StepNumber(broken.number).exit_code if broken else ALL_FINE


def _summary(evidence: Evidence, steps: tuple[Step, ...], broken: Step | None) -> str:
    if evidence.nothing_asked:
        return f"nothing could be asked: {evidence.api.absent}; {evidence.edge.absent}"
    if broken:
        return f"broken at step {broken.number}, {broken.name}: {broken.message}"
    unknown = [step for step in steps if step.state == "unknown"]
    if unknown:
        return f"nothing is broken as far as could be seen; {len(unknown)} of {len(steps)} steps could not be"
    return "the whole path is fine"


def _notes(seen: Seen, ahead_s: float | None) -> Iterator[str]:
    evidence, facts = seen.evidence, seen.facts
    if evidence.api.absent:
        yield f"the cloud's half was not seen: {evidence.api.absent}"
    if seen.elsewhere:
        yield f"the edge core here is node {seen.elsewhere}, the device belongs to {seen.node}: it was not asked"
    if facts is None:
        local = "" if seen.elsewhere else evidence.edge.trouble or evidence.edge.absent
        reasons = (local, evidence.cloud.error or evidence.cloud.absent)
        yield "the edge's half was not seen: " + ("; ".join(filter(None, reasons)) or "nobody answered")
    if ahead_s is not None and abs(ahead_s) > CLOCKS_APART_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        yield f"the edge's clock is {abs(ahead_s):.1f} s {side} the one here: ages are by the clock that noted them"
    if facts is not None and facts.mqtt_trouble:
        yield f"apps on MQTT see nothing of the edge's twins: {facts.mqtt_trouble}"
    for refused in facts.refused if facts is not None else ():
        if refused.what not in seen.property_names:
            yield f"edge core refused {refused.what or 'a report'} {refused.count} times: {refused.reason}"
    if seen.status is not None and facts is not None and seen.status.state != facts.state and facts.cloud_connected:
        yield f"the API has the state as {seen.status.state or 'not known'}, the edge as {facts.state or 'not known'}"
