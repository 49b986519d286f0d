"""State, since when, and conditions: plain functions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.devicecontroller.conditions import Link, NodeView, appearance, assumed_link
from cloudcore.devicecontroller.declarations import Declaration, examine
from cloudcore.devicecontroller.events import transitions
from cloudcore.devicecontroller.known import Known, forget_state, from_status, has_value, merge_state, merge_twins
from cloudcore.devicecontroller.render import device_status, is_lazy, render, status_patch, summary
from cloudcore.devicecontroller.reports import Sides, StateReport, read_state_report, read_twin_report
from cloudcore.devicecontroller.shown import Shown, read_shown, utc_text
from cloudcore.kube import Key
from cloudedge import Message, new_message
from dmi import Desired, Problem, Reported, Twin
from dmi.twins import WriteState
from tests.cloudcore.support import device, model

NOW = 1_760_000_000_000
DECLARED = Declaration(node="edge-1", properties=("t", "valve"), desired={"valve": "5"}, deliverable=True)
UP, DOWN, WAITING = NodeView(), NodeView("down", NOW - 30_000), NodeView("waiting")


def valve(value: str, *, desired: str = "5", write: WriteState = "applied", reason: str = "") -> Known:
    twin = Twin("valve", Reported(value, "int", NOW), Desired(desired, "int", NOW, write, reason))
    return Known(twins={"valve": twin}, state="online")


def show(
    known: Known,
    declared: Declaration = DECLARED,
    before: Shown = Shown(),  # noqa: B008 - frozen
    *,
    node: NodeView = UP,
    now_ms: int = NOW,
) -> Shown:
    return appearance(known, declared, before, node=node, now_ms=now_ms)


def statuses(shown: Shown) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in shown.conditions.values()}


def test_a_device_that_is_well() -> None:
    shown = show(valve("5"))
    assert statuses(shown) == {
        "Declared": ("True", "Declared"),
        "NodeConnected": ("True", "Connected"),
        "Online": ("True", "Online"),
        "InSync": ("True", "Applied"),
    }
    assert list(shown.conditions) == ["Declared", "NodeConnected", "Online", "InSync"]
    assert (shown.state, shown.reason, shown.since) == ("online", "", utc_text(NOW))


@pytest.mark.parametrize(
    ("state", "expected"),
    (
        ("online", ("True", "Online")),
        ("ok", ("True", "Online")),
        ("offline", ("False", "Offline")),
        ("unhealthy", ("False", "Unhealthy")),
        ("unknown", ("Unknown", "Reported")),
        ("disconnected", ("False", "OtherState")),
        ("", ("Unknown", "NotReported")),
    ),
)
def test_online_is_what_the_node_says(state: str, expected: tuple[str, str]) -> None:
    assert statuses(show(Known(state=state, reason="why")))["Online"] == expected


def test_online_of_who_cannot_say() -> None:
    blocked = Declaration(node="edge-1", properties=(), blocked="no model", problems=(Problem("MissingModel", "x"),))
    shown = show(Known(state="online"), blocked)
    assert (statuses(shown)["Online"], statuses(shown)["Declared"]) == (
        ("Unknown", "NotDeclared"),
        ("False", "MissingModel"),
    )
    assert statuses(show(Known(), node=DOWN))["Online"] == ("Unknown", "NodeNotConnected")
    assert statuses(show(Known(), Declaration(node="", properties=())))["NodeConnected"] == ("Unknown", "NoNode")
    waiting = show(Known(state="online"), node=WAITING)
    assert (statuses(waiting)["NodeConnected"], waiting.state) == (("Unknown", "Waiting"), "online")


@pytest.mark.parametrize(
    ("known", "expected", "says"),
    (
        (valve("5"), ("True", "Applied"), ""),
        (valve("4", write="pending"), ("False", "Pending"), "not written yet: valve"),
        (valve("4", desired="4"), ("False", "Pending"), "not written yet: valve"),
        (valve("4", write="failed", reason="out of range"), ("False", "WriteFailed"), "valve: out of range"),
        (valve("4", desired="4", write="failed"), ("False", "Pending"), "valve"),
        (valve("5.0", write=""), ("True", "Applied"), ""),
        (valve("4", write=""), ("False", "Pending"), "valve"),
        (valve("x", write=""), ("False", "Pending"), "valve"),
        (Known(state="online"), ("False", "Pending"), "valve"),
    ),
)
def test_in_sync_is_the_write_state_of_what_is_desired_now(known: Known, expected: tuple[str, str], says: str) -> None:
    shown = show(known)
    assert statuses(shown)["InSync"] == expected
    assert says in shown.conditions["InSync"].message


def test_in_sync_of_a_device_that_is_away_is_not_known() -> None:
    assert statuses(show(forget_state(valve("5")), node=DOWN))["InSync"] == ("Unknown", "NotOnline")
    assert statuses(show(valve("4", write="pending"), node=DOWN))["InSync"] == ("False", "Pending")
    nothing = Declaration(node="edge-1", properties=("t",))
    assert statuses(show(Known(), nothing, node=DOWN))["InSync"] == ("True", "NothingDesired")


def test_times_are_kept_until_the_status_changes() -> None:
    first = show(valve("5"))
    later = show(valve("5"), before=first, now_ms=NOW + 60_000)
    assert later == first
    away = show(forget_state(valve("5")), before=later, node=DOWN, now_ms=NOW + 60_000)
    assert away.since == away.conditions["NodeConnected"].since == utc_text(NOW - 30_000)  # when it was lost
    assert away.reason == f'node "edge-1" is not connected to CloudHub since {away.since}'
    assert away.conditions["Declared"].since == utc_text(NOW)
    assert away.conditions["Online"].since == utc_text(NOW + 60_000)
    much_later = show(Known(), before=away, node=NodeView("down", NOW + 3_600_000), now_ms=NOW + 7_200_000)
    assert much_later.reason == away.reason
    other = Declaration(node="edge-2", properties=("t", "valve"), desired={"valve": "5"})
    moved = show(Known(), other, before=away, node=NodeView("down"), now_ms=NOW + 7_200_000)
    assert moved.since == utc_text(NOW + 7_200_000)


def test_since_when_is_the_nodes_word_where_it_has_one() -> None:
    shown = show(Known(state="offline", since_ms=NOW - 5_000))
    assert shown.since == utc_text(NOW - 5_000)
    stock = show(Known(state="online"), before=shown, now_ms=NOW + 10_000)
    assert stock.since == utc_text(NOW + 10_000)
    assert show(Known(state="online"), before=stock, now_ms=NOW + 90_000).since == stock.since


def test_a_state_that_began_in_the_future_began_when_it_was_heard_of() -> None:
    ahead = StateReport(state="online", since_ms=NOW + 3_600_000)
    known = merge_state(Known(), ahead, now_ms=NOW)
    assert known.since_ms == NOW
    assert merge_state(known, ahead, now_ms=NOW + 10_000).since_ms == NOW  # or a heartbeat would be a write
    for since_ms in (NOW - 9, NOW + 900):  # clocks differ a little; taken as it is, it stays the same at each heartbeat
        assert merge_state(known, StateReport(state="online", since_ms=since_ms), now_ms=NOW).since_ms == since_ms


known_things = st.builds(
    Known,
    twins=st.just({}) | st.just(valve("5").twins) | st.just(valve("4", write="failed").twins),
    state=st.sampled_from(["", "online", "offline", "unknown", "unhealthy", "odd"]),
    reason=st.sampled_from(["", "why"]),
    since_ms=st.sampled_from([0, NOW - 1_000]),
)
nodes = st.sampled_from([UP, DOWN, WAITING, NodeView("down")])
declarations = st.sampled_from(
    [DECLARED, Declaration(node="", properties=(), blocked="b", problems=(Problem("NoNode", "b"),))]
)


@given(st.lists(st.tuples(known_things, nodes, declarations), min_size=1, max_size=6))
def test_the_same_again_costs_no_write_and_survives_a_restart(
    steps: list[tuple[Known, NodeView, Declaration]],
) -> None:
    shown = Shown()
    for number, (known, node, declared) in enumerate(steps):
        shown = show(known, declared, before=shown, node=node, now_ms=NOW + number * 10_000)
        written = device_status(Key("ns", "d"), device(), render(known, declared, shown))["status"]
        assert read_shown(written) == shown
        again = show(known, declared, before=read_shown(written), node=node, now_ms=NOW + 10_000_000)
        assert again == shown
        assert status_patch(written, render(known, declared, again)) == {}


@pytest.mark.parametrize("link", ("up", "down"))
def test_what_a_node_was_taken_for_before_a_restart(link: Link) -> None:
    shown = show(Known(), node=NodeView(link))
    assert assumed_link(shown, "edge-1") == link
    assert assumed_link(shown, "edge-2") == "waiting"
    assert assumed_link(Shown(), "edge-1") == "waiting"


def test_unknown_in_the_nodes_own_words_survives_a_restart_and_ours_is_found_anew() -> None:
    for known, node, back in (
        (Known(state="unknown", reason="mapper away"), UP, ("unknown", "mapper away")),
        (Known(), DOWN, ("", "")),
        (Known(), UP, ("", "")),
    ):
        status = device_status(Key("ns", "d"), device(), render(known, DECLARED, show(known, node=node)))["status"]
        read = from_status(status)
        assert (read.state, read.reason) == back


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_conditions_are_read_without_an_error(odd: Any) -> None:
    read_shown(odd)
    read_shown({"extensions": {"conditions": odd, "since": odd}, "state": odd})
    read_shown({"extensions": {"conditions": [odd, {"type": "Online", "status": odd}]}})
    utc_text(10**18)


def test_values_of_a_device_that_is_not_live_are_stale() -> None:
    known = valve("5")
    for state, line in (("online", "valve=5"), ("unhealthy", "valve=5"), ("offline", "valve=5 (stale)")):
        extensions = render(known, DECLARED, show(Known(twins=known.twins, state=state)))["extensions"]
        assert extensions["summary"] == line
    bad = Twin("valve", Reported("5", "int", NOW, "bad"))
    assert summary(Known(twins={"valve": bad}), DECLARED, "offline") == "valve=5 (bad)"


def test_another_node_is_another_connection() -> None:
    before, elsewhere = show(valve("5")), Declaration(node="edge-2", properties=("t", "valve"), deliverable=True)
    moved = show(Known(), elsewhere, before, now_ms=NOW + 60_000)
    assert moved.conditions["NodeConnected"].since == utc_text(NOW + 60_000)
    assert show(Known(), elsewhere, moved, now_ms=NOW + 90_000).conditions == moved.conditions


def test_what_can_wait_for_a_patch_to_travel_with() -> None:
    known = valve("5")
    current = device_status(Key("ns", "d"), device(), render(known, DECLARED, show(known)))["status"]

    def patch(wanted: Known, declared: Declaration = DECLARED, node: NodeView = UP) -> Any:
        shown = show(wanted, declared, read_shown(current), node=node, now_ms=NOW + 1000)
        return status_patch(current, render(wanted, declared, shown))

    wants_more = Declaration(node="edge-1", properties=("t", "valve"), desired={"valve": "6"}, deliverable=True)
    assert is_lazy(patch(known, wants_more), current)
    assert not is_lazy(patch(valve("6"), wants_more), current)
    assert not is_lazy(patch(known, node=DOWN), current)
    current = device_status(Key("ns", "d"), device(), render(known, DECLARED, show(known, node=WAITING)))["status"]
    assert is_lazy(patch(known), current)
    assert not is_lazy(patch(Known(twins=known.twins, state="offline")), current)
    assert is_lazy({"status": {"lastOnlineTime": "t"}}, current)
    assert not is_lazy({"status": {"extensions": {"summary": "x"}}}, current)


def test_what_is_told_of_a_transition() -> None:
    online, offline = show(valve("5")), show(Known(twins=valve("5").twins, state="offline", reason="no reply"))
    told = transitions(online, offline)
    assert [(t.type, t.reason, t.message) for t in told] == [
        ("Warning", "DeviceOffline", "offline, was online: no reply")
    ]
    assert [t.reason for t in transitions(offline, online)] == ["DeviceOnline"]
    failed = show(valve("4", write="failed", reason="out of range"))
    assert [(t.reason, t.message) for t in transitions(online, failed)] == [("DesiredFailed", "valve: out of range")]
    assert [(t.type, t.reason) for t in transitions(failed, online)] == [("Normal", "DesiredApplied")]
    assert transitions(failed, failed) == transitions(Shown(), failed) == []
    wrong = Declaration(node="edge-1", properties=("valve",), problems=(Problem("UnknownProperty", "p: is unknown"),))
    fine = Declaration(node="edge-1", properties=("valve",))
    told = transitions(show(valve("5"), fine), show(valve("5"), wrong))
    assert [(t.reason, t.message) for t in told] == [("DeclarationProblem", "p: is unknown")]


def twin_report(entry: Any, **more: Any) -> Message:
    content = {"event_id": "e", "timestamp": NOW + 5, "twin": {"valve": entry}, **more}
    return new_message(source="twin", group="resource", operation="update", resource="x", content=content)


@pytest.mark.parametrize(
    ("entry", "at"),
    (
        ({"metadata": {"type": "deleted"}}, NOW + 5),
        ({"metadata": {"type": "deleted"}, "actual": None, "expected": {"metadata": {"timestamp": NOW + 7}}}, NOW + 7),
        ({"metadata": {"type": "deleted"}, "actual": {"value": None, "metadata": {"timestamp": "?"}}}, NOW + 5),
    ),
)
def test_a_deleted_twin_has_no_value_until_a_newer_one_comes(entry: Any, at: int) -> None:
    sides, wrong = read_twin_report(twin_report(entry))
    assert (sides, wrong) == ({"valve": Sides(deleted_ms=at)}, [])
    gone = merge_twins(valve("5"), sides, ("valve",), now_ms=NOW)
    assert not has_value(gone.twins["valve"])
    status = render(gone, DECLARED, show(gone))
    assert (status["twins"], status["extensions"]["summary"]) == ([], "")
    older = {"valve": Sides(reported=Reported("4", "int", at - 1))}
    assert not has_value(merge_twins(gone, older, ("valve",), now_ms=NOW).twins["valve"])
    newer = merge_twins(gone, {"valve": Sides(reported=Reported("7", "int", at + 1))}, ("valve",), now_ms=NOW)
    (twin,) = render(newer, DECLARED, show(newer))["twins"]
    assert (twin["reported"]["value"], twin["observedDesired"]) == ("7", {"value": ""})


def test_a_late_tombstone_deletes_nothing() -> None:
    known = merge_twins(Known(), {"valve": Sides(reported=Reported("7", "int", NOW + 10))}, ("valve",), now_ms=NOW)
    late = merge_twins(known, {"valve": Sides(deleted_ms=NOW)}, ("valve",), now_ms=NOW)
    assert late.twins["valve"].reported.value == "7"


def test_since_of_a_state_report_is_read_leniently() -> None:
    def since(value: Any) -> int:
        content = {"device": {"state": "online", "since": value}}
        message = new_message(source="twin", group="resource", operation="update", resource="x", content=content)
        return read_state_report(message).since_ms

    assert since(NOW) == NOW
    odd: tuple[Any, ...] = (None, "x", -1, True, 10**17, 1.5, [])
    assert [since(value) for value in odd] == [0] * 7


def test_desired_values_are_read_from_any_device() -> None:
    odd: list[Any] = [None, {"name": 3}, {"name": "a", "desired": 3}, {"name": "b", "desired": {"value": 3}}]
    odd += [{"name": "c", "desired": {"value": ""}}, {"name": "d", "desired": {"value": "1"}}]
    declared = examine(Key("default", "x"), device(properties=odd), lambda _: model())
    assert declared.desired == {"d": "1"}
