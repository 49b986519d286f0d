"""The pure parts of `kubectl twin`: tables, names, wishes, and what became of them."""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetwin.kubectl import ApiAway, Forbidden, KindMissing, KubectlError, ObjectMissing, explain
from kubetwin.rows import twin_rows
from kubetwin.twin.describe import Described, describe
from kubetwin.twin.getting import Picked, changed_rows
from kubetwin.twin.options import Target, did_you_mean, duration_s, target
from kubetwin.twin.shapes import TITLES, WIDE_TITLES, cells, row_object
from kubetwin.twin.text import Columns, cell, clock_text, safe, width
from kubetwin.twin.verdicts import verdicts
from kubetwin.twin.wishes import RefusedWish, Wish, check_wishes, is_index_moved, parse_wishes, wish_patch
from tests.kubetwin.twin_world import device, model, reported, status

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
"""Anything that an object edited by hand may hold where something else belongs."""


def rows(*twins: dict[str, Any], state: str = "online", **desired: str) -> list[Any]:
    given_status = status("boiler-1", *twins, state=state)
    return twin_rows([device(**desired)], [model()], [given_status], now_ms=time.time_ns() // 1_000_000)


# --- texts and tables


@given(st.text(max_size=200))
def test_a_cell_is_one_short_line_that_cannot_steer_a_terminal(value: str) -> None:
    shown = cell(value)
    assert shown.isprintable()
    assert width(shown) <= 40
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in shown)


@given(st.text(max_size=39).filter(lambda text: text.isprintable() and width(text) <= 39))
def test_a_short_printable_value_is_shown_as_it_is(value: str) -> None:
    assert cell(value) == value


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_columns_stand_below_each_other_whatever_they_hold(values: list[str]) -> None:
    lines = Columns(("A", "B")).lines([(cell(value), "|") for value in values], header=True)
    assert len({width(line[:-1]) for line in lines}) == 1


def test_a_column_once_wide_stays_wide() -> None:
    table = Columns(("A", "B"))
    wide, narrow = table.lines([("wide", "|")]), table.lines([("x", "|")])
    assert [line.index("|") for line in wide + narrow] == [7, 7]


@pytest.mark.parametrize(
    ("text", "columns"), (("abc", 3), ("日本", 4), ("e\u0301", 1), ("🌡", 1), ("🔥", 2), ("", 0), ("ｱ", 1))
)
def test_widths_are_those_of_a_terminal(text: str, columns: int) -> None:
    assert width(text) == columns


def test_control_characters_and_direction_marks_are_escaped() -> None:
    assert safe("a\x1b[31mb\n\u202e\x9b\U000e0001") == "a\\x1b[31mb\\n\\u202e\\x9b\\U000e0001"


@pytest.mark.parametrize(("ms", "text"), ((0, ""), (1_767_323_045_000, "2026-01-02T03:04:05.000Z"), (10**18, "")))
def test_times_that_no_calendar_has_are_left_out(ms: int, text: str) -> None:
    assert clock_text(ms) == text


# --- rows


def test_a_row_has_a_cell_for_each_title() -> None:
    (row, *_) = rows(reported("temperature", "21.5"))
    assert len(cells(row)) == len(TITLES)
    assert len(cells(row, wide=True, namespace=True)) == 1 + len(TITLES) + len(WIDE_TITLES)


@pytest.mark.parametrize(
    ("desired", "twin", "shown", "in_sync"),
    (
        ("", reported("set-point", "20"), "-", None),
        ("42", reported("set-point", "42", desired="42", write="applied"), "yes", True),
        ("42.0", reported("set-point", "42", desired="42.0"), "yes", True),  # a stock mapper: no write state
        ("21.37", reported("set-point", "21.4", desired="21.37", write="applied"), "yes", True),  # tenths
        ("21.37", reported("set-point", "21.4", desired="21.37"), "no", False),
        ("42", reported("set-point", "50", desired="42", write="applied"), "no", False),  # it moved since
        ("42", reported("set-point", "20", desired="42", write="pending"), "pending", False),
        ("42", reported("set-point", "20", desired="41", write="applied"), "pending", False),
        ("42", reported("set-point", "20", desired="42", write="failed"), "failed", False),
        ("42", {}, "pending", False),
    ),
)
def test_in_sync_is_what_the_device_has_against_what_is_wanted(
    desired: str, twin: dict[str, Any], shown: str, in_sync: bool | None
) -> None:
    row = rows(twin, set_point=desired)[1]
    assert (cells(row)[TITLES.index("IN SYNC")], row.in_sync) == (shown, in_sync)


@pytest.mark.parametrize(
    ("state", "said", "shown"),
    (
        ("online", "", "good"), ("ok", "", "good"), ("Online", "", "good"), ("unhealthy", "", "good"),
        ("", "", "good"), ("offline", "", "stale"), ("unknown", "", "stale"), ("disconnected", "", "stale"),
        ("offline", "bad", "bad"), ("online", "stale", "stale"),
    ),
)  # fmt: skip
def test_a_value_of_a_device_that_is_not_reached_is_never_good(state: str, said: str, shown: str) -> None:
    twin = reported("temperature", "21.5")
    twin["reported"]["metadata"] |= {"quality": said} if said else {}
    assert rows(twin, state=state)[0].quality == shown


def test_a_node_that_is_away_makes_its_values_stale() -> None:
    given_status = status("boiler-1", reported("temperature", "21.5"))
    (row, *_) = twin_rows([device()], [model()], [given_status], now_ms=0, nodes_away={"edge-1"})
    assert (row.state, row.quality, row.reason) == ("unknown", "stale", "its node is not connected")
    away = {"type": "NodeConnected", "status": "False", "message": "edge-1 is away since noon"}
    given_status["status"]["extensions"] = {"conditions": [away]}
    (row, *_) = twin_rows([device()], [model()], [given_status], now_ms=0)
    assert (row.state, row.quality, row.reason) == ("unknown", "stale", "edge-1 is away since noon")


def test_an_empty_value_and_none_at_all_look_different() -> None:
    temperature, set_point, pump = rows(reported("temperature", ""), reported("pump", "-"))
    assert [cells(r)[2] for r in (temperature, set_point, pump)] == ['""', "-", '"-"']
    assert [row_object(r)["reported"] for r in (temperature, set_point, pump)] == ["", None, "-"]


def test_a_watch_prints_what_changed_in_more_than_its_age() -> None:
    before = {
        (r.device, r.property_name): r for r in rows(reported("temperature", "1", age_s=9), reported("pump", "true"))
    }
    confirmed = rows(reported("temperature", "1", age_s=0), reported("pump", "true"))
    assert changed_rows(before, confirmed, Picked()) == ([], [])
    changed = rows(reported("temperature", "2"), reported("pump", "true"))
    new, gone = changed_rows(before, changed[:2], Picked())
    assert [r.property_name for r in new] == ["temperature"]
    assert [r.property_name for r in gone] == ["pump"]


@given(spec=JSON, inner=JSON, twins=st.lists(JSON, max_size=3), metadata=JSON)
def test_objects_edited_by_hand_never_crash_a_view(spec: Any, inner: Any, twins: Any, metadata: Any) -> None:
    odd_device = {**device(), "spec": spec}
    odd_twin = {
        "propertyName": "temperature",
        "reported": {"value": "1", "metadata": metadata},
        "observedDesired": inner,
    }
    for odd_status in ({"metadata": metadata, "status": inner}, status("boiler-1", odd_twin, *twins, extensions=inner)):
        for one in (device(), odd_device):
            for row in twin_rows([one], [{"spec": inner}], [odd_status], now_ms=0):
                assert all(c.isprintable() for c in cells(row, wide=True))
            shown = describe(Described(one, {"spec": inner}, odd_status, {"status": inner}), now_ms=0, node_away=False)
            assert all(line.isprintable() for line in shown.splitlines())


def test_a_description_has_everything_but_secrets() -> None:
    twin = reported(
        "set-point", "20", desired="42", write="failed", why="the device refuses: illegal value", vendor="x"
    )
    extensions = {
        "since": "2026-01-02T03:04:05Z", "reason": "one register is wrong",
        "problems": [{"reason": "ReadOnlyProperty", "message": "spec.properties[0].desired.value: no"}],
        "conditions": [{"type": "InSync", "status": "False", "reason": "WriteFailed", "message": "set-point failed",
                        "lastTransitionTime": "2026-01-02T03:04:05Z"}],
    }  # fmt: skip
    given_status = status("boiler-1", twin, state="unhealthy", extensions=extensions)
    event = {"type": "Warning", "reason": "DeviceUnhealthy", "message": "boo\x1b",
             "lastTimestamp": "2026-01-02T03:04:05Z", "count": 3, "source": {"component": "cloudcore"}}  # fmt: skip
    text = describe(
        Described(device(set_point="42"), model(), given_status, None, [event]),
        now_ms=1_767_323_105_000,
        node_away=False,
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "Model: boiler", "ip: 192.0.2.7", "password: (hidden)", "Node: edge-1",
        "State: unhealthy since 2026-01-02T03:04:05Z (60s ago)", "Reason: one register is wrong",
        "InSync False 60s WriteFailed set-point failed", "ReadOnlyProperty: spec.properties[0].desired.value: no",
        "set-point: FLOAT, ReadWrite, Celsius", "Range: 20 to 95", "Desired: 42 Celsius", "In sync: no", "vendor: x",
        "Warning DeviceUnhealthy 60s (x3) cloudcore boo\\x1b", "Description: Water temperature",
    ):  # fmt: skip
        assert line in lines, f"{line}\n{text}"
    assert any(line.startswith("Write: failed since") and "illegal value" in line for line in lines)
    assert "hunter2" not in text


# --- names and times


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ("boiler-1", Target("", "boiler-1")),
        ("plant/boiler-1", Target("plant", "boiler-1")),
        ("dev/boiler-1", Target("dev", "boiler-1")),
        ("device.devices.kubeedge.io/boiler-1", Target("", "boiler-1")),
    ),
)
def test_names_are_read_as_people_write_them(text: str, expected: Target) -> None:
    assert target(text) == expected


@pytest.mark.parametrize("text", ("", "/", "a/", "/a", "a/b/c", "..", "../a", "A", "a b", "a?x=1", "a" * 254))
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not the name of a device"):
        target(text)


@pytest.mark.parametrize(
    ("text", "seconds"), (("30s", 30), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("500ms", 0.5), ("7", 7))
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ("", "x", "10x", "-1s", "0s", "1h30", "s", "1 m", "1" * 40))
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        duration_s(text)


def test_a_near_name_is_offered() -> None:
    assert did_you_mean("presure", ["pressure", "pump"]) == "; did you mean 'pressure'?"
    assert did_you_mean("zzz", ["pressure", "pump"]) == ""


# --- wishes


@given(st.text(min_size=1, max_size=20).filter(lambda t: "=" not in t), st.text(max_size=20))
def test_everything_behind_the_first_equals_sign_is_the_value(name: str, value: str) -> None:
    assert parse_wishes([f"{name}={value}"]) == (Wish(name, value),)


@pytest.mark.parametrize(
    ("pairs", "message"),
    ((["pump"], "is not PROPERTY=VALUE"), (["=1"], "is not PROPERTY=VALUE"), (["a=1", "a=2"], "'a' is set twice"),
     (["a=1", "30s"], "--wait=10s")),
)  # fmt: skip
def test_what_is_no_wish_is_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(RefusedWish, match=message):
        parse_wishes(pairs)


@pytest.mark.parametrize(
    ("wish", "message"),
    (
        ("set-point=200", "set-point=200: 200 is above the maximum 95"),
        ("set-point=warm", "'warm' is not a number"),
        ("temperature=20", "property 'temperature' is ReadOnly"),
        ("pump=maybe", "'maybe' is not a BOOLEAN"),
        ("setpoint=20", "has no property 'setpoint'; it has temperature, set-point, pump; did you mean 'set-point'?"),
    ),
)
def test_what_the_model_does_not_allow_is_refused(wish: str, message: str) -> None:
    with pytest.raises(RefusedWish) as refused:
        check_wishes(parse_wishes([wish]), device(), model())
    assert message in str(refused.value)


def test_a_property_that_only_the_model_has_is_told_apart() -> None:
    bare = device()
    del bare["spec"]["properties"][1]
    with pytest.raises(RefusedWish, match=r"add it to spec.properties"):
        check_wishes(parse_wishes(["set-point=42"]), bare, model())


def test_a_model_that_only_a_stock_edge_core_understands_still_limits_values() -> None:
    nested = model()
    nested["spec"]["protocolConfigData"] = {"nested": {"deep": 1}}
    check_wishes(parse_wishes(["set-point=42"]), device(), nested)
    with pytest.raises(RefusedWish, match="above the maximum"):
        check_wishes(parse_wishes(["set-point=99"]), device(), nested)


@given(st.permutations(["temperature", "set-point", "pump"]))
def test_a_patch_never_fits_a_list_in_another_order(order: list[str]) -> None:
    wishes = parse_wishes(["set-point=42", "pump=true"])
    patch = wish_patch(wishes, device(set_point="1"))
    shuffled = device()
    shuffled["spec"]["properties"] = [{"name": name} for name in order]
    fits = order[1:] == ["set-point", "pump"]
    assert is_index_moved(patch, shuffled) is not fits


def test_a_patch_keeps_what_others_keep_beside_the_value() -> None:
    patch = wish_patch(parse_wishes(["set-point=42", "pump=true"]), device(set_point="1"))
    added = {o["path"]: o["value"] for o in patch if o["op"] == "add"}
    assert added == {"/spec/properties/1/desired/value": "42", "/spec/properties/2/desired": {"value": "true"}}


# --- verdicts

TYPES = {"set-point": "FLOAT"}


@pytest.mark.parametrize(
    ("twin", "state", "outcome", "reason"),
    (
        (reported("set-point", "42", desired="42", write="applied"), "online", "applied", ""),
        (reported("set-point", "20", desired="42", write="failed", why="refused"), "online", "failed", "refused"),
        (reported("set-point", "20", desired="42", write="pending", why="busy"), "online", "pending", "busy"),
        (reported("set-point", "20", desired="42", write="pending"), "offline", "pending", "is offline: no reply"),
        (reported("set-point", "20", desired="41", write="applied"), "online", "pending", "has not come back"),
        (reported("set-point", "42", desired="41", write="applied"), "online", "pending", "has not come back"),
        (reported("set-point", "42.0", desired="42"), "online", "applied", ""),  # a stock edge
        (reported("set-point", "20", desired="42"), "online", "pending", "the device reports '20'"),
        (reported("set-point", "42", desired="42"), "offline", "pending", "the device is offline: no reply"),
        ({}, "unknown", "pending", "the device is unknown: no reply"),
    ),
)  # fmt: skip
def test_what_became_of_a_wish(twin: dict[str, Any], state: str, outcome: str, reason: str) -> None:
    given_status = status("boiler-1", twin, state=state, extensions={"reason": "no reply"})
    (verdict,) = verdicts([Wish("set-point", "42")], device(set_point="42"), given_status, TYPES)
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_a_wish_that_somebody_else_took_back_has_failed() -> None:
    for other, reason in (
        (device(set_point="50"), "somebody else has set it to '50'"), (device(), "somebody else has set it to ''"),
        (None, "the device was deleted"),
    ):  # fmt: skip
        (verdict,) = verdicts([Wish("set-point", "42")], other, status(), TYPES)
        assert (verdict.outcome, verdict.reason.startswith(reason)) == ("failed", True)


def test_what_stands_in_the_way_is_said() -> None:
    homeless = device(set_point="42")
    del homeless["spec"]["nodeName"]
    wishes = [Wish("set-point", "42")]
    assert "names no node" in verdicts(wishes, homeless, status(), TYPES)[0].reason
    assert "is CloudCore running?" in verdicts(wishes, device(set_point="42"), None, TYPES)[0].reason
    (away,) = verdicts(wishes, device(set_point="42"), status(), TYPES, node_away=True)
    assert "its node is not connected" in away.reason


def test_nothing_wanted_is_there_at_once() -> None:
    assert verdicts([Wish("pump", "")], device(), None, {})[0].outcome == "applied"


# --- kubectl's words


@pytest.mark.parametrize(
    ("complaint", "kind", "says"),
    (
        ("The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?", ApiAway,
         "the Kubernetes API does not answer: The connection to the server 127.0.0.1:1 was refused"),
        ("Unable to connect to the server: EOF", ApiAway, "EOF"),
        ("error: unexpected EOF", ApiAway, "EOF"),
        ("Error from server (ServiceUnavailable): the server is currently unable", ApiAway, "unable"),
        ('E1123 07:26:00.1 9 memcache.go:265] "Unhandled"\nError from server (Forbidden): not for you', Forbidden,
         "no permission: not for you"),
        ("error: You must be logged in to the server (Unauthorized)", Forbidden, "credentials"),
        ("Error from server (NotFound): the server could not find the requested resource", KindMissing, "kubetwin"),
        ('error: the server doesn\'t have a resource type "devices"', KindMissing, "kubetwin crds"),
        ('Error from server (NotFound): devices.devices.kubeedge.io "x" not found', ObjectMissing, '"x" not found'),
        ('error: context "x" does not exist', KubectlError, 'kubectl: context "x" does not exist'),
        ("", KubectlError, "silently"),
    ),
)  # fmt: skip
def test_what_kubectl_says_becomes_a_sentence(complaint: str, kind: type[KubectlError], says: str) -> None:
    error = explain(complaint)
    assert type(error) is kind
    assert says in str(error)
