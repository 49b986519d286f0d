"""Merge, prune, summary, render and patch: plain functions."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloudcore.devicecontroller.conditions import NodeView, appearance
from cloudcore.devicecontroller.declarations import Declaration, examine
from cloudcore.devicecontroller.known import Known, forget_state, from_status, merge_state, merge_twins, prune
from cloudcore.devicecontroller.render import SUMMARY_CHARACTERS, device_status, status_patch, summary
from cloudcore.devicecontroller.render import render as render_shown
from cloudcore.devicecontroller.reports import Sides, StateReport
from cloudcore.devicecontroller.shown import Shown
from cloudcore.kube import Key
from dmi import Desired, Reported, Twin
from tests.cloudcore.support import device, model

NOW = 1_760_000_000_000
NAMES = ("a", "b", "c")
DECLARED = Declaration(node="edge-1", properties=NAMES, units={"a": "bar"}, deliverable=True)

times = st.integers(NOW - 5, NOW)
values = st.text(max_size=12)
reported = st.builds(
    Reported,
    value=values,
    type=st.sampled_from(["int", "string"]),
    collected_ms=times,
    quality=st.sampled_from(["good", "stale", "bad"]),
    reason=values,
)
desired = st.builds(
    Desired, value=values, type=st.just("int"), updated_ms=times, write=st.sampled_from(["", "applied"])
)
sides = st.builds(Sides, reported=st.none() | reported, desired=st.none() | desired)
reports = st.lists(st.dictionaries(st.sampled_from([*NAMES, "gone"]), sides), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def render(known: Known, declared: Declaration = DECLARED, *, node: NodeView = NodeView()) -> Any:  # noqa: B008 - frozen
    return render_shown(known, declared, appearance(known, declared, Shown(), node=node, now_ms=NOW))


def merged(sequence: list[dict[str, Sides]]) -> Known:
    known = Known()
    for report in sequence:
        known = merge_twins(known, report, NAMES, now_ms=NOW)
    return known


def apply(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply(result.get(key), value)
    return result


@given(reports)
def test_the_newest_of_every_side_wins_and_strangers_are_left_out(sequence: list[dict[str, Sides]]) -> None:
    known = merged(sequence)
    assert set(known.twins) <= set(NAMES)
    for name in NAMES:
        seen = [r[name].reported for r in sequence if name in r and r[name].reported is not None]
        newest: Reported | None = None
        for side in seen:
            if side is not None and (newest is None or side.collected_ms >= newest.collected_ms):
                newest = side
        assert known.twins.get(name, Twin(name)).reported == (newest or Reported())


@given(reports)
def test_what_is_written_is_read_back(sequence: list[dict[str, Sides]]) -> None:
    known = merge_state(merged(sequence), StateReport(state="offline", last_online="t", reason="why"), now_ms=NOW)
    status = json.loads(json.dumps(device_status(Key("ns", "d"), device(), render(known, DECLARED))["status"]))
    back = from_status(status)
    written = {name: twin for name, twin in known.twins.items() if twin != Twin(name)}
    assert (back.twins, back.state, back.last_online, back.reason) == (written, "offline", "t", "why")


@given(json_values, reports)
def test_patch_leads_to_the_wanted_status_and_then_to_nothing(current: Any, sequence: list[dict[str, Sides]]) -> None:
    wanted = render(merged(sequence), DECLARED)
    after = apply({"status": current}, status_patch(current, wanted))
    assert status_patch(after.get("status"), wanted) == {}


@given(json_values)
def test_any_status_is_read_without_an_error(status: Any) -> None:
    from_status(status)
    from_status({"twins": status, "extensions": status, "state": status})
    from_status({"twins": [{"propertyName": "a", "reported": status, "observedDesired": {"metadata": status}}]})


@given(st.lists(st.tuples(st.text(max_size=80), st.sampled_from(["good", "stale", "bad"])), max_size=30))
def test_summary_is_one_short_line(pairs: list[tuple[str, Any]]) -> None:
    names = tuple(f"p{number}" for number in range(len(pairs)))
    twins = {
        name: Twin(name, Reported(value, "int", NOW, quality))
        for name, (value, quality) in zip(names, pairs, strict=True)
    }
    line = summary(Known(twins=twins), Declaration(node="n", properties=names), "online")
    assert len(line) <= SUMMARY_CHARACTERS
    assert all(c.isprintable() for c in line)
    assert line.endswith("…") or line.count("=") >= len(pairs)


def test_summary_shows_unit_and_quality_in_the_order_of_the_device() -> None:
    twins = {
        "c": Twin("c", Reported("open", "string", NOW, "bad", "no reply")),
        "a": Twin("a", Reported("2", "int", NOW)),
        "b": Twin("b", desired=Desired("5")),
    }
    assert summary(Known(twins=twins), DECLARED, "ok") == "a=2 bar, c=open (bad)"


def test_state_is_unknown_with_the_reason_while_nothing_can_be_reported() -> None:
    known = Known(state="online", last_online="t")
    status = render(known, node=NodeView("down", NOW - 60_000))
    reason = 'node "edge-1" is not connected to CloudHub since 2025-10-09T08:52:20Z'
    assert (status["state"], status["extensions"]["reason"], status["lastOnlineTime"]) == ("unknown", reason, "t")
    assert render(forget_state(known), DECLARED)["extensions"]["reason"] == "nothing reported yet"
    assert render(known, DECLARED)["state"] == "online"


def test_pruned_twins_are_forgotten() -> None:
    known = merged([{"a": Sides(reported=Reported("1")), "b": Sides(reported=Reported("2"))}])
    assert set(prune(known, ("b",)).twins) == {"b"}
    assert prune(known, NAMES) is known


def test_extensions_of_others_are_left_alone() -> None:
    wanted = render(Known(), DECLARED)
    patch = status_patch({"extensions": {"mine": 1, "reason": "old", "problems": [{}]}, "state": "online"}, wanted)
    extensions = patch["status"].pop("extensions")
    assert patch == {"status": {"state": "unknown"}}
    assert (extensions.pop("reason"), extensions.pop("problems")) == ("nothing reported yet", None)
    assert extensions.keys() == {"since", "conditions"}


def test_declarations_never_raise() -> None:
    key = Key("default", "thermo-1")
    odd: list[Any] = [
        {},
        {"spec": None},
        {"spec": []},
        {"spec": {"properties": 3}},
        {"spec": {"deviceModelRef": "x", "nodeName": 3}},
        {"metadata": device()["metadata"], "spec": {"properties": [None, 3, {"name": 3}]}},
        device(deviceModelRef=None),
        device(deviceModelRef={}),
        device(protocol=None),
    ]
    for obj in odd:
        declared = examine(key, obj, lambda _: model())
        assert declared.problems
        assert declared.blocked or declared.deliverable
    broken = model(properties=[{"name": "temperature", "type": "WORD"}])
    declared = examine(key, device(), lambda _: broken)
    assert [p.reason for p in declared.problems] == ["InvalidModel"]
    assert "default/thermo" in declared.blocked
    assert examine(key, device(), lambda _: model()).problems == ()
    assert [p.reason for p in examine(key, device(), lambda _: model(protocol="ble")).problems] == ["ProtocolMismatch"]
