"""Every fault has its step, and the first one counts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudedge.facts import DeviceFacts, MapperFacts, PropertyFacts, RefusedReport, spec_digest
from cloudedge.queries import NODE_AWAY, NODE_SILENT
from kubetwin.why import StepNumber
from kubetwin.why.evidence import ApiEnd, CloudEnd, EdgeEnd, Evidence
from kubetwin.why.render import render
from kubetwin.why.steps import TITLES
from kubetwin.why.walk import walk
from tests.kubetwin.why_world import (
    FACTS,
    NODE,
    NOW,
    api,
    cloud_half,
    device,
    edge_half,
    evidence,
    facts,
    model,
    status,
    with_mapper,
    with_property,
)

REFUSED = RefusedReport("temperature", "'warm' is no float", 3, NOW - 100)


def named(fault: str, number: StepNumber, says: str, given: Evidence) -> Any:
    return pytest.param(number, says, given, id=fault)


@pytest.mark.parametrize(
    "given", (evidence(), evidence(cloud=CloudEnd(absent="x")), evidence(edge=EdgeEnd(absent="not here")))
)
def test_a_path_that_is_well_has_no_broken_step(given: Evidence) -> None:
    verdict = walk(given)
    assert {step.state for step in verdict.steps} == {"ok"}
    assert (verdict.exit_code, verdict.first_broken, verdict.summary) == (0, 0, "the whole path is fine")
    assert [step.number for step in verdict.steps] == list(StepNumber)
    assert verdict.notes == ()


@pytest.mark.parametrize(
    ("number", "says", "given"),
    (
        named("api away", StepNumber.API, "refused", evidence(api=ApiEnd(trouble="connection refused"))),
        named(
            "no Devices served", StepNumber.DEVICE, "not serve devices",
            evidence(api=api(device=None, kinds_missing=frozenset({"devices"}))),
        ),
        named(
            "no DeviceModels served", StepNumber.MODEL, "not serve devicemodels",
            evidence(api=api(model=None, kinds_missing=frozenset({"devicemodels"}))),
        ),
        named(
            "no DeviceStatuses served", StepNumber.CLOUDCORE, "not serve devicestatuses",
            cloud_half(api=api(status=None, kinds_missing=frozenset({"devicestatuses"})), cloud=CloudEnd(absent="x")),
        ),
        named("no device", StepNumber.DEVICE, "no Device 'boiler-1'", evidence(api=api(device=None, model=None))),
        named("no model", StepNumber.MODEL, "no DeviceModel 'boiler'", evidence(api=api(model=None))),
        named("no ref", StepNumber.MODEL, "is empty", evidence(api=api(device=device(deviceModelRef={"name": ""})))),
        named(
            "desired of ReadOnly", StepNumber.DECLARATION, "ReadOnly",
            evidence(api=api(model=model({}, {"accessMode": "ReadOnly"}))),
        ),
        named(
            "desired out of range", StepNumber.DECLARATION, "desired",
            evidence(api=api(model=model({}, {"maximum": "10"}))),
        ),
        named("no protocol", StepNumber.DECLARATION, "protocol", evidence(api=api(device=device(protocol={})))),
        named(
            "bad register", StepNumber.DECLARATION, "offset",
            evidence(driver_errors=("spec.properties[0].visitors.configData.offset",), facts=facts(state="unhealthy")),
        ),
        named("edge finds it bad", StepNumber.DECLARATION, "nested", edge_half(facts=facts(problem="nested object"))),
        named("no node", StepNumber.NODE, "nowhere", evidence(api=api(device=device(nodeName="")))),
        named("cloudcore dead", StepNumber.CLOUDCORE, "did not answer", evidence(cloud=CloudEnd(silent_s=7.0))),
        named(
            "no DeviceStatus", StepNumber.CLOUDCORE, "no DeviceStatus",
            evidence(api=api(status=None), cloud=CloudEnd(absent="none"), edge=EdgeEnd(absent="x")),
        ),
        named(
            "node away", StepNumber.LINK, "not connected",
            evidence(cloud=CloudEnd(error="not connected", reason=NODE_AWAY), edge=EdgeEnd(absent="x")),
        ),
        named(
            "edge core hangs", StepNumber.LINK, "did not answer within 5 s",
            evidence(cloud=CloudEnd(error="did not answer within 5 s", reason=NODE_SILENT), edge=EdgeEnd(absent="x")),
        ),
        named(
            "edge cut off", StepNumber.LINK, "certificate expired",
            evidence(facts=facts(cloud_connected=False, cloud_trouble="certificate expired")),
        ),
        named(
            "half open", StepNumber.LINK, "question did not get through",
            evidence(cloud=CloudEnd(error="did not answer within 5 s", reason=NODE_SILENT), edge=EdgeEnd(facts=FACTS)),
        ),
        named(
            "edge core dead", StepNumber.LINK, "nobody listens",
            edge_half(edge=EdgeEnd(socket="/run/edgecore.sock", trouble="nobody listens")),
        ),
        named("disk full", StepNumber.STORE, "disk is full", evidence(facts=facts(store_trouble="disk is full"))),
        named("not at the edge", StepNumber.KNOWN, "has no Device", evidence(facts=facts(declared=False))),
        named(
            "older at the edge", StepNumber.KNOWN, "version 9; 12 at the API asks for something else",
            evidence(facts=facts(declared_version="9", spec_digest=spec_digest({"nodeName": NODE}))),
        ),
        named(
            "older model at the edge", StepNumber.KNOWN, "another DeviceModel",
            evidence(facts=facts(model_digest=spec_digest({"protocol": "modbus"}))),
        ),
        named("no mapper", StepNumber.MAPPER, "protocol 'modbus'", evidence(facts=facts(mapper=None))),
        named(
            "mapper killed", StepNumber.ANSWERING, "does not answer",
            evidence(facts=with_mapper(answering=False, away_since_ms=NOW - 3000)),
        ),
        named(
            "mapper hangs", StepNumber.ANSWERING, "it hangs",
            evidence(facts=with_mapper(answering=False, away_since_ms=NOW - 3000, trouble="it hangs")),
        ),
        named("mapper refuses", StepNumber.TAKEN, "no such unit", evidence(facts=with_mapper(refusal="no such unit"))),
        named("not handed over", StepNumber.TAKEN, "newer", evidence(facts=with_mapper(handed="pending"))),
        named(
            "device away", StepNumber.ONLINE, "no reply",
            evidence(facts=facts(state="offline", state_reason="no reply")),
        ),
        named(
            "illegal register", StepNumber.READ, "illegal data address",
            evidence(facts=msgspec.structs.replace(
                with_property("temperature", quality="bad", reason="illegal data address"), state="unhealthy",
            )),
        ),
        named("report refused", StepNumber.REPORTED, "'warm' is no float", evidence(facts=facts(refused=(REFUSED,)))),
        named(
            "never reported", StepNumber.REPORTED, "never reported",
            evidence(facts=facts(properties={**FACTS.properties, "temperature": PropertyFacts()})),
        ),
        named(
            "not confirmed", StepNumber.CONFIRMED, "not confirmed",
            evidence(facts=msgspec.structs.replace(
                with_property("temperature", unsent=True), in_flight_since_ms=NOW - 9000,
            )),
        ),
        named(
            "API has an older value", StepNumber.VISIBLE, "confirmed",
            evidence(facts=with_property("temperature", value="22", collected_ms=NOW - 100)),
        ),
        named(
            "write refused", StepNumber.DESIRED, "illegal data value",
            evidence(facts=with_property("set-point", write="failed", write_reason="illegal data value")),
        ),
        named("write pending", StepNumber.DESIRED, "not written", evidence(
            facts=with_property("set-point", write="pending"),
        )),
        # The API's word alone.
        named("stock: nothing came", StepNumber.VISIBLE, "no value", cloud_half(api=api(status=status(
            twins=status()["status"]["twins"][:1], extensions={},
        )))),
        named("stock: offline", StepNumber.ONLINE, "offline", cloud_half(api=api(status=status(
            state="offline", extensions={},
        )))),
        named("edge alone: no device", StepNumber.KNOWN, "no Device", edge_half(facts=facts(declared=False))),
    ),
)  # fmt: skip
def test_each_fault_is_named(number: StepNumber, says: str, given: Evidence) -> None:
    verdict = walk(given)
    broken = [step for step in verdict.steps if step.state == "broken"]
    assert (verdict.first_broken, verdict.exit_code) == (number, 10 + number), verdict.summary
    assert says in verdict.summary
    assert broken[0].todo, "what to do about it is said"
    assert verdict.todo == broken[0].todo


def test_steps_before_the_broken_one_are_not_doubted() -> None:
    verdict = walk(evidence(facts=with_mapper(answering=False, away_since_ms=NOW - 3000)))
    assert {step.state for step in verdict.steps[: StepNumber.ANSWERING - 1]} == {"ok"}
    assert verdict.steps[StepNumber.ANSWERING - 1].age_s == 3.0


def test_what_is_under_way_is_no_fault_yet() -> None:
    on_its_way = msgspec.structs.replace(
        with_property("temperature", unsent=True, collected_ms=NOW - 100), in_flight_since_ms=NOW - 50
    )
    assert walk(evidence(facts=on_its_way)).exit_code == 0
    for may_pass in (
        with_mapper(handed="pending"), with_property("set-point", write="pending"), facts(declared=False),
        with_property("temperature", quality="stale", reason="a cycle was missed"),
    ):  # fmt: skip
        verdict = walk(evidence(facts=may_pass))
        assert verdict.steps[verdict.first_broken - 1].passing


def test_a_stock_cloudcore_is_judged_by_what_it_wrote() -> None:
    plain = status(extensions={})
    verdict = walk(cloud_half(api=api(status=plain)))
    assert verdict.exit_code == 0
    assert "could not be" in verdict.summary
    assert verdict.steps[StepNumber.CLOUDCORE - 1].state == "unknown"
    assert any("edge's half was not seen" in note for note in verdict.notes)


def test_a_stock_edge_core_behind_our_cloudcore_counts_as_connected() -> None:
    error = 'node "edge-1" did not answer within 5 s; stock edge cores never do'
    verdict = walk(cloud_half(cloud=CloudEnd(error=error)))
    assert verdict.steps[StepNumber.LINK - 1].state == "ok"
    assert verdict.exit_code == 0


def test_the_gateway_without_kubectl_sees_its_half() -> None:
    verdict = walk(edge_half())
    assert verdict.exit_code == 0
    assert any("cloud's half was not seen" in note for note in verdict.notes)
    assert walk(edge_half(edge=EdgeEnd(absent="none here"))).exit_code == 3


def test_the_edge_core_of_another_node_is_not_heard() -> None:
    stranger = facts(node="edge-7", declared=False)
    verdict = walk(evidence(edge=EdgeEnd(facts=stranger)))
    assert verdict.exit_code == 0
    assert any("edge-7" in note for note in verdict.notes)


def test_side_notes() -> None:
    given = evidence(facts=facts(mqtt_trouble="broker away"), edge=EdgeEnd(facts=FACTS, clock_ahead_s=-7.5))
    notes = " ".join(walk(given).notes)
    assert "7.5 s behind" in notes
    assert "broker away" in " ".join(walk(evidence(facts=facts(mqtt_trouble="broker away"))).notes)
    assert "$hw/x" in " ".join(walk(evidence(facts=facts(refused=(RefusedReport("$hw/x", "no JSON"),)))).notes)


def test_what_a_device_says_cannot_drive_the_terminal() -> None:
    told = facts(state="offline", state_reason="\x1b[2Jgone\n19 ok all is well")
    lines = list(render(walk(evidence(facts=told)), wide=True))
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b[2Jgone" in line for line in lines)


def test_a_property_that_is_not_to_be_reported_is_not_missed() -> None:
    private = device(properties=[{"name": "temperature"}, *device()["spec"]["properties"][1:]])
    twins = [t for t in status()["status"]["twins"] if t["propertyName"] == "set-point"]
    silent = facts(properties={**FACTS.properties, "temperature": PropertyFacts()})
    shown = api(device=private, status=status(twins=twins))
    assert walk(evidence(api=shown, facts=silent)).exit_code == 0
    assert (
        walk(cloud_half(api=msgspec.structs.replace(shown, status=status(twins=twins, extensions={})))).exit_code == 0
    )


def test_properties_with_the_same_trouble_share_a_line() -> None:
    bad = PropertyFacts(collected_ms=NOW - 500, value="1", quality="bad", reason="no such register")
    both = {"temperature": bad, "set-point": bad}
    given = evidence(facts=facts(state="unhealthy", properties=both))
    assert "bad: no such register (and 1 more)" in " ".join(render(walk(given)))
    assert not any("set-point: bad" in line for line in render(walk(given)))
    apart = {**both, "set-point": msgspec.structs.replace(bad, reason="refused")}
    lines = list(render(walk(evidence(facts=facts(state="unhealthy", properties=apart)))))
    assert "            set-point: bad: refused" in lines


def test_a_mapper_that_is_gone_makes_values_old() -> None:
    verdict = walk(evidence(facts=with_mapper(answering=False, away_since_ms=NOW - 3000)))
    read = verdict.steps[StepNumber.READ - 1]
    assert read.state == "skipped"
    assert "old" in read.properties[0].message


def test_old_refusals_are_over_when_something_was_taken_since() -> None:
    over = RefusedReport("temperature", "'warm' is no float", 3, NOW - 10_000)
    assert walk(evidence(facts=facts(refused=(over,)))).exit_code == 0


def test_numbers_and_titles_stay_as_they_are_documented() -> None:
    assert [(n.exit_code, t) for n, t in TITLES.items()] == [
        (11, "Kubernetes API"), (12, "Device"), (13, "DeviceModel"), (14, "declaration"), (15, "node named"),
        (16, "CloudCore"), (17, "node connected"), (18, "edge core's store"), (19, "known at the edge"),
        (20, "mapper registered"), (21, "mapper answering"), (22, "mapper has it"), (23, "device online"),
        (24, "read"), (25, "reported"), (26, "sent and confirmed"), (27, "visible at the API"),
        (28, "desired applied"),
    ]  # fmt: skip


texts = st.sampled_from(("", "x", "good", "bad", "stale", "pending", "failed", "applied", "60", "12", "edge-1", "\0é"))
times = st.sampled_from((0, 1, NOW - 100, NOW, NOW + 10**6, 2**62, -5))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("status"), inner, max_size=3)
)
property_facts = st.builds(
    PropertyFacts, times, texts, texts, texts, texts, texts, texts, st.booleans()
)  # fmt: skip
device_facts = st.builds(
    DeviceFacts, node=texts, device=texts, now_ms=times, declared=st.booleans(), declared_version=texts, problem=texts,
    protocol=texts, model=texts, store_trouble=texts, store_trouble_since_ms=times, cloud_url=texts,
    cloud_connected=st.booleans(), cloud_since_ms=times, cloud_trouble=texts,
    mapper=st.none() | st.builds(
        MapperFacts, texts, texts, st.booleans(), times, times, times, texts,
        st.sampled_from(("", "current", "pending")),
    ),
    last_report_ms=times, state=st.sampled_from(("online", "ok", "unhealthy", "offline", "unknown", "", "?")),
    state_reason=texts, state_since_ms=times, in_flight_since_ms=times,
    refused=st.lists(st.builds(RefusedReport, texts, texts, st.integers(0, 5), times), max_size=2).map(tuple),
    properties=st.dictionaries(st.sampled_from(("temperature", "set-point", "other")), property_facts, max_size=3),
    mqtt_trouble=texts,
)  # fmt: skip


def objects(good: dict[str, Any]) -> st.SearchStrategy[Any]:
    """An object as it should be, none, or one with anything in its parts."""
    odd = st.dictionaries(st.sampled_from(("metadata", "spec", "status")), anything, max_size=3)
    return st.none() | st.just(good) | odd.map(lambda change: {**good, **change})


evidences = st.builds(
    Evidence, namespace=st.just("default"), name=st.just("boiler-1"), now_ms=times,
    api=st.builds(
        ApiEnd, absent=texts, trouble=texts, server=texts, device=objects(device()),
        kinds_missing=st.frozensets(st.sampled_from(("devices", "devicemodels", "devicestatuses"))),
        model=objects(model()), model_trouble=texts, status=objects(status()), status_trouble=texts,
    ),
    cloud=st.builds(
        CloudEnd, absent=texts, silent_s=st.sampled_from((0.0, 7.0)), error=texts, facts=st.none() | device_facts,
        clock_ahead_s=st.none() | st.floats(-1e9, 1e9),
    ),
    edge=st.builds(EdgeEnd, absent=texts, trouble=texts, socket=texts, facts=st.none() | device_facts),
    driver_errors=st.lists(texts.filter(bool), max_size=2).map(tuple),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(evidences)
def test_whatever_is_found_there_is_one_verdict(given: Evidence) -> None:
    verdict = walk(given)
    assert [step.number for step in verdict.steps] == list(StepNumber)
    broken = [step.number for step in verdict.steps if step.state == "broken"]
    assert verdict.first_broken == (broken[0] if broken else 0)
    if given.nothing_asked:
        assert verdict.exit_code == 3
    else:
        assert verdict.exit_code == (10 + broken[0] if broken else 0)
    for step in verdict.steps:
        assert step.message
        assert bool(step.todo) == (step.state == "broken"), step
        assert step.state != "ok" or all(d.state in ("ok", "skipped") for d in step.properties)
    lines = list(render(verdict, wide=True))
    assert sum(line[:2].strip().isdigit() for line in lines) >= len(StepNumber)
    msgspec.json.decode(msgspec.json.encode(verdict))
