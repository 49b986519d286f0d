"""What is old, is so everywhere: CloudCore's summary, `kubectl twin`, `kubetwin why`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.devicecontroller.conditions import NodeView, appearance
from cloudcore.devicecontroller.declarations import Declaration
from cloudcore.devicecontroller.known import Known
from cloudcore.devicecontroller.render import render
from cloudcore.devicecontroller.shown import Shown
from dmi import Desired, Reported, Twin
from dmi.freshness import epoch_ms, shown_quality
from kubetwin.rows import twin_rows
from kubetwin.twin.verdicts import verdicts
from kubetwin.twin.wishes import Wish
from kubetwin.why.evidence import CloudEnd
from kubetwin.why.steps import StepNumber
from kubetwin.why.walk import walk
from tests.kubetwin.twin_world import device, status
from tests.kubetwin.why_world import api, cloud_half
from tests.kubetwin.why_world import device as why_device

CONNECTED = 1_790_000_000_000
DECLARED = Declaration(node="edge-1", properties=("set-point",), desired={"set-point": "42"}, deliverable=True)


def shown_status(known: Known, node: NodeView, declared: Declaration = DECLARED) -> dict[str, object]:
    """As CloudCore writes it, an hour after the node connected."""
    before = appearance(Known(), declared, Shown(), node=NodeView(), now_ms=CONNECTED)
    shown = appearance(known, declared, before, node=node, now_ms=CONNECTED + 3_600_000)
    return {**status(), "status": render(known, declared, shown)}


def known(state: str, collected_ms: int) -> Known:
    twin = Twin("set-point", Reported("42", "float", collected_ms), Desired("42", "float", collected_ms))
    return Known(twins={"set-point": twin}, state=state)


@given(
    st.sampled_from(("", "online", "ok", "unhealthy", "offline", "unknown", "weird")),
    st.sampled_from((NodeView(), NodeView("down", CONNECTED + 60_000), NodeView("waiting"))),
    st.sampled_from((0, CONNECTED - 60_000, CONNECTED - 1, CONNECTED + 1000)),
)
def test_all_views_agree(state: str, node: NodeView, collected_ms: int) -> None:
    found = shown_status(known(state, collected_ms), node)
    (row,) = [r for r in twin_rows([device()], [], [found], now_ms=CONNECTED) if r.property_name == "set-point"]
    summary = found["status"]["extensions"]["summary"]  # type: ignore[index]
    assert ("(stale)" in summary) == (row.quality == "stale")


def test_where_nobody_says_a_state_values_since_the_node_connected_are_of_now() -> None:
    """As with stock mappers whose `stateReport` is off."""
    found = shown_status(known("", CONNECTED + 1000), NodeView())
    rows = twin_rows([device(set_point="42")], [], [found], now_ms=CONNECTED)
    assert [(r.quality, r.in_sync) for r in rows if r.is_reported] == [("good", True)]
    (verdict,) = verdicts([Wish("set-point", "42")], device(set_point="42"), found, {"set-point": "FLOAT"})
    assert verdict.outcome == "applied"
    silent = CloudEnd(error="stock edge cores never answer")
    declared = why_device(properties=[{"name": "set-point", "desired": {"value": "42"}}])
    why = walk(cloud_half(api=api(device=declared, status=found), cloud=silent))
    assert why.exit_code == 0
    assert why.steps[StepNumber.ONLINE - 1].state == "unknown"
    assert "no state" in why.steps[StepNumber.ONLINE - 1].message
    for old in (known("", CONNECTED - 60_000), known("", 0)):
        rows = twin_rows([device()], [], [shown_status(old, NodeView())], now_ms=CONNECTED)
        assert [r.quality for r in rows if r.is_reported] == ["stale"]


@pytest.mark.parametrize(
    ("text", "ms"),
    (
        ("2026-01-02T03:04:05Z", 1_767_323_045_000),
        ("2026-01-02T04:04:05+01:00", 1_767_323_045_000),
        ("2026-01-02T03:04:05", 1_767_323_045_000),
        ("1900-01-01T00:00:00Z", 0),
        ("yesterday", 0),
        (None, 0),
    ),
)
def test_times_of_kubernetes(text: object, ms: int) -> None:
    assert epoch_ms(text) == ms


def test_what_is_bad_stays_bad_and_an_empty_state_says_nothing() -> None:
    assert shown_quality(Reported("1", quality="bad"), "offline") == "bad"
    assert shown_quality(Reported("1"), "") == "good"
    assert shown_quality(Reported("1"), "OK") == "good"
