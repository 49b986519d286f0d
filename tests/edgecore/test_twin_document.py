"""The document model by itself: updates, syncs, deletions and versions."""

import json
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from dmi import Desired, DeviceId, Reported, Twin
from edgecore.devicetwin.document import (
    CONFIRM_MS,
    MAX_VALUE_BYTES,
    Refused,
    TwinChange,
    Version,
    cloud_updated,
    delta,
    update,
)
from edgecore.devicetwin.merge import merge_twins
from edgecore.devicetwin.messages import twin_view
from edgecore.devicetwin.mqtt_payloads import delta_of
from edgecore.store import TwinRow

NOW = 1_700_000_000_000
TYPES = {"p": "int", "q": "string", "r": ""}
Rows = Mapping[str, TwinRow]


def put(stored: Rows, now_ms: int = NOW, **changes: TwinChange) -> dict[str, TwinRow]:
    return {**stored, **update(stored, changes, TYPES, now_ms=now_ms)}


def refusal(stored: Rows, **changes: TwinChange) -> str:
    with pytest.raises(Refused) as caught:
        update(stored, changes, TYPES, now_ms=NOW)
    assert caught.value.code == 400
    return str(caught.value)


def versions(row: TwinRow) -> tuple[tuple[int, int], tuple[int, int]]:
    return (row.desired_cloud, row.desired_edge), (row.reported_cloud, row.reported_edge)


def test_each_side_counts_for_itself() -> None:
    rows = put({}, p=TwinChange(actual="1"))
    assert (versions(rows["p"]), rows["p"].twin.reported) == (((0, 0), (0, 1)), Reported("1", "int", NOW))
    rows = put(rows, p=TwinChange(expected="2"))
    assert (versions(rows["p"]), rows["p"].twin.desired) == (((0, 1), (0, 1)), Desired("2", "int", NOW))
    rows = put(rows, p=TwinChange(expected="3", actual="3"))
    assert (versions(rows["p"]), rows["p"].version) == (((0, 2), (0, 2)), 3)


def test_an_unchanged_value_is_no_change_but_its_time_is_confirmed() -> None:
    rows = put({}, p=TwinChange(expected="1", actual="1"))
    same = {"p": TwinChange(expected="1", actual="1")}
    assert update(rows, same, TYPES, now_ms=NOW + CONFIRM_MS - 1) == {}
    later = update(rows, same, TYPES, now_ms=NOW + CONFIRM_MS)["p"]
    assert (later.twin.reported.collected_ms, later.twin.desired.updated_ms) == (NOW + CONFIRM_MS, NOW)
    assert versions(later) == ((0, 1), (0, 2))
    assert update(rows, same, TYPES, now_ms=NOW - 60_000)["p"].twin.reported.collected_ms == NOW - 60_000  # clock set


def test_a_good_value_takes_the_place_of_a_stale_one() -> None:
    stale = merge_twins({}, [Twin("p", Reported("1", "int", NOW, "stale", "no reply"))], TYPES, now_ms=NOW)
    rows = put({"p": stale[0]}, p=TwinChange(actual="1"))
    assert rows["p"].twin.reported == Reported("1", "int", NOW)


def test_a_request_is_done_whole_or_not_at_all() -> None:
    assert "'p'" in refusal({}, q=TwinChange(actual="x"), p=TwinChange(actual="x"))
    assert "'nope'" in refusal({}, q=TwinChange(actual="x"), nope=TwinChange(actual="x"))


def test_the_model_says_what_type_a_value_has() -> None:
    assert put({}, p=TwinChange(actual="1", type="string"))["p"].twin.reported.type == "int"
    rows = put({}, r=TwinChange(actual="1.5", type="FLOAT"))
    assert rows["r"].twin.reported.type == "float"
    assert "'much' is not a number" in refusal(rows, r=TwinChange(actual="much", type="string"))  # as it was stored
    assert "'colour'" in refusal({}, r=TwinChange(actual="red", type="colour"))
    assert put({}, r=TwinChange(actual="7", type="integer"))["r"].twin.reported.type == "int"
    assert put({}, r=TwinChange(actual="x"))["r"].twin.reported.type == "string"


@pytest.mark.parametrize(
    ("type_", "value", "fine"),
    (
        ("int", "9223372036854775807", True),
        ("int", "9223372036854775808", False),
        ("int", "1.0", False),
        ("int", "", False),
        ("float", "1e5", True),
        ("float", "1e39", False),
        ("double", "1e39", True),
        ("double", "nan", False),
        ("boolean", "true", True),
        ("boolean", "yes", False),
        ("string", "", True),
        ("bytes", "aGk=", True),
        ("stream", "rtsp://camera/1?x=y z", True),
    ),
)
def test_values_by_type(type_: str, value: str, fine: bool) -> None:
    change = {"r": TwinChange(actual=value, type=type_)}
    if fine:
        assert update({}, change, TYPES, now_ms=NOW)["r"].twin.reported == Reported(value, type_, NOW)
    else:
        with pytest.raises(Refused, match="'r': actual value"):
            update({}, change, TYPES, now_ms=NOW)


def test_a_value_has_a_cap_in_bytes() -> None:
    assert put({}, q=TwinChange(actual="x" * MAX_VALUE_BYTES))
    assert "over 65536 bytes" in refusal({}, q=TwinChange(actual="ü" * (MAX_VALUE_BYTES // 2) + "x"))


def test_an_empty_wish_clears_the_wish() -> None:
    rows = put({}, p=TwinChange(expected="5"))
    assert delta(rows) == {"p": "5"}
    rows = put(rows, p=TwinChange(expected=""))
    assert (delta(rows), rows["p"].twin.desired.value, versions(rows["p"])[0]) == ({}, "", (0, 2))


@pytest.mark.parametrize(
    ("type_", "expected", "actual", "apart"),
    (
        ("float", "30", "30.0", False),
        ("float", "30", "30.5", True),
        ("string", "30", "30.0", True),
        ("boolean", "true", "1", False),
        ("int", "5", "", True),
    ),
)
def test_the_delta_compares_values(type_: str, expected: str, actual: str, apart: bool) -> None:
    row = TwinRow(Twin("r", Reported(actual, type_, NOW), Desired(expected, type_, NOW)), 1)
    assert delta({"r": row}) == ({"r": expected} if apart else {})


def test_deleting_keeps_the_row_and_its_versions() -> None:
    rows = put({}, q=TwinChange(actual="1"))
    rows = put(rows, q=TwinChange(deleted=True))
    gone = rows["q"]
    assert (gone.deleted, versions(gone), gone.version) == (True, ((0, 0), (0, 2)), 2)
    assert gone.twin == Twin("q", Reported(collected_ms=NOW), Desired(updated_ms=NOW))
    assert update(rows, {"q": TwinChange(deleted=True)}, TYPES, now_ms=NOW) == {}
    assert update(rows, {"q": TwinChange()}, TYPES, now_ms=NOW) == {}
    back = put(rows, q=TwinChange(actual="2"))["q"]
    assert (back.deleted, versions(back)) == (False, ((0, 0), (0, 3)))
    assert back.twin == Twin("q", Reported("2", "string", NOW))


def test_deleting_what_never_was_is_done_already() -> None:
    assert update({}, {"q": TwinChange(deleted=True)}, TYPES, now_ms=NOW) == {}


def test_what_is_not_optional_stays_and_stays_so() -> None:
    rows = put({}, q=TwinChange(actual="1", optional=False))
    assert put(rows, q=TwinChange(optional=True)) == rows
    assert "not optional" in refusal(rows, q=TwinChange(deleted=True))
    assert put(put({}, q=TwinChange(actual="1")), q=TwinChange(optional=False))["q"].version == 2


def test_a_mapper_revives_too_with_what_is_newer() -> None:
    rows = put({}, p=TwinChange(actual="1"))
    rows = put(rows, p=TwinChange(deleted=True))
    assert merge_twins(rows, [Twin("p", Reported("1", "int", NOW - 1))], TYPES, now_ms=NOW + 9) == []
    (row,) = merge_twins(rows, [Twin("p", Reported("1", "int", NOW + 1))], TYPES, now_ms=NOW + 9)
    assert (row.deleted, versions(row)) == (False, ((0, 0), (0, 3)))
    assert row.twin == Twin("p", Reported("1", "int", NOW + 1))
    (row,) = merge_twins(rows, [Twin("p", Reported("1"))], TYPES, now_ms=NOW + 9)  # a Go mapper gives no time
    assert row.twin.reported == Reported("1", "int", NOW + 9)


def test_an_order_outlives_the_deletion_by_an_app() -> None:
    order = Twin("p", Reported("1", "int", NOW - 9), Desired("2", "int", NOW - 99, "pending"))
    (row,) = merge_twins({}, [order], TYPES, now_ms=NOW - 9)
    rows = put({"p": row}, p=TwinChange(deleted=True))
    assert delta(rows) == {}, "a deleted twin differs from nothing"
    other = delta_of(DeviceId("n/d"), put(rows, q=TwinChange(expected="1")))
    assert other is not None
    assert json.loads(other.payload)["twin"].keys() == {"q"}
    assert twin_view(rows["p"]) == {"optional": True, "metadata": {"type": "deleted"}}
    (back,) = merge_twins(rows, [replace(order, reported=Reported("1", "int", NOW + 1))], TYPES, now_ms=NOW + 9)
    wish = back.twin.desired
    assert (wish.value, wish.write) == ("2", "pending")
    assert wish.updated_ms >= rows["p"].twin.reported.collected_ms, (
        "the cloud has the time of the deletion, and takes nothing older"
    )
    assert put(put({"p": row}, p=TwinChange(deleted=True)), p=TwinChange(actual="3"))["p"].twin.desired == wish


def test_the_wish_of_an_app_does_not_outlive_it() -> None:
    rows = put(put({}, p=TwinChange(expected="2", actual="1")), p=TwinChange(deleted=True))
    assert put(rows, p=TwinChange(actual="1"))["p"].twin.desired == Desired()


def test_a_mapper_counts_the_side_it_changes() -> None:
    rows = put({}, p=TwinChange(expected="2", actual="1"))
    (row,) = merge_twins(rows, [Twin("p", Reported("2", "int", NOW + 1))], TYPES, now_ms=NOW + 1)
    assert versions(row) == ((0, 1), (0, 2))


def test_an_older_order_of_the_device_does_not_undo_an_apps() -> None:
    rows = put({}, NOW + 10, p=TwinChange(expected="35"))
    old = Twin("p", Reported("30", "int", NOW + 20), Desired("30", "int", NOW, "applied"))
    (row,) = merge_twins(rows, [old], TYPES, now_ms=NOW + 20)
    assert (row.twin.desired.value, row.twin.reported.value) == ("35", "30")


def test_a_mapper_without_an_order_does_not_clear_an_apps_wish() -> None:
    rows = put({}, p=TwinChange(expected="35"))
    (row,) = merge_twins(rows, [Twin("p", Reported("30", "int", NOW + 1))], TYPES, now_ms=NOW + 1)
    assert row.twin.desired == Desired("35", "int", NOW)
    ordered = Twin("p", Reported("30", "int", NOW + 2), Desired("40", "int", NOW + 2, "pending"))
    (row,) = merge_twins({"p": row}, [ordered], TYPES, now_ms=NOW + 2)
    assert row.twin.desired.value == "40"
    (row,) = merge_twins({"p": row}, [Twin("p", Reported("40", "int", NOW + 3))], TYPES, now_ms=NOW + 3)
    assert row.twin.desired.value == ""  # its own order it does clear


def sync(stored: Rows, **changes: TwinChange) -> dict[str, TwinRow]:
    return cloud_updated(stored, changes, TYPES, now_ms=NOW)


def test_a_sync_is_taken_with_its_versions_and_not_sent_back() -> None:
    row = sync({}, p=TwinChange(expected="5", expected_version=Version(3, 0)))["p"]
    assert (row.twin.desired.value, versions(row), row.dirty) == ("5", ((3, 0), (0, 0)), False)
    newer = sync({"p": row}, p=TwinChange(expected="5", expected_version=Version(4, 0)))["p"]
    assert (versions(newer)[0], newer.twin, newer.dirty) == ((4, 0), row.twin, False)
    assert sync({"p": newer}, p=TwinChange(expected="5", expected_version=Version(4, 0))) == {}


@pytest.mark.parametrize("version", (Version(2, 1), Version(3, 0), Version(0, 0)))
def test_a_sync_that_knows_less_is_refused_and_answered(version: Version) -> None:
    twin = Twin("p", Reported("1", "int", NOW), Desired("4", "int", NOW))
    stored = {"p": TwinRow(twin, 7, 7, desired_cloud=3, desired_edge=1)}
    row = sync(stored, p=TwinChange(expected="5", expected_version=version))["p"]
    assert (row.twin, versions(row), row.dirty) == (twin, ((3, 1), (0, 0)), True)
    assert sync(stored, p=TwinChange(deleted=True, expected_version=version))["p"].deleted is False


def test_a_sync_leaves_dirty_what_was() -> None:
    rows = put({}, p=TwinChange(actual="1"))
    row = sync(rows, p=TwinChange(expected="5", expected_version=Version(1, 0)))["p"]
    assert row.dirty


def test_a_sync_can_delete() -> None:
    rows = put({}, p=TwinChange(actual="1", optional=False))
    row = sync(rows, p=TwinChange(deleted=True, actual_version=Version(1, 1)))["p"]
    assert (row.deleted, versions(row)) == (True, ((0, 0), (1, 1)))
    assert sync({}, p=TwinChange(deleted=True, actual_version=Version(1, 1))) == {}


def test_a_sync_needs_versions_and_declared_properties() -> None:
    with pytest.raises(Refused, match="'p': actual_version is missing"):
        sync({}, p=TwinChange(actual="1"))
    with pytest.raises(Refused, match="'x'"):
        sync({}, x=TwinChange(deleted=True))
