from __future__ import annotations

import pytest

from dmi.twins import Reported
from dmi.types import DesiredSpec, DeviceProperty, ModelProperty
from mappers.sdk import ConversionError, Property
from mappers.sdk.keys import PLAIN_REPORTS
from mappers.sdk.tracking import Tracker
from tests.mappers.mapper_world import MemoryVisitor


def tracker(desired: str = "", *, read_only: bool = False) -> Tracker:
    model = ModelProperty("p", "INT", "ReadOnly" if read_only else "ReadWrite", minimum="0", maximum="100")
    declared = DeviceProperty("p", desired=DesiredSpec(desired), report_to_cloud=True)
    return Tracker(declared, Property("p", MemoryVisitor("p"), model))


def written(t: Tracker) -> tuple[str, float | None]:
    return t.desired.write, t.write_due


def test_one_missed_cycle_is_stale_three_are_bad_and_the_value_stays() -> None:
    t = tracker()
    t.seen(7, 1000, 1.0)
    qualities = []
    for _ in range(4):
        t.dirty = False
        t.miss("no reply")
        qualities.append((t.reported.quality, t.dirty))
    assert qualities == [("stale", True), ("stale", False), ("bad", True), ("bad", False)]
    assert (t.reported.value, t.reported.collected_ms, t.reported.reason) == ("7", 1000, "no reply")
    t.seen(7, 2000, 2.0)
    assert (t.reported.quality, t.reported.reason, t.dirty) == ("good", "", True)


def test_an_unchanged_value_is_not_dirty_but_newly_collected() -> None:
    t = tracker()
    t.seen(7, 1000, 1.0)
    t.tell(1.0)
    t.seen(7, 2000, 2.0)
    assert (t.dirty, t.reported.collected_ms) == (False, 2000)


def test_what_was_never_read_is_told_about_once_it_is_bad() -> None:
    t = tracker()
    t.miss("away")
    t.miss("away")
    assert not t.dirty
    t.miss("away")
    assert t.dirty


def test_a_value_of_the_wrong_type_is_bad_at_once() -> None:
    t = tracker()
    with pytest.raises(ConversionError):
        t.seen(1.5, 1000, 1.0)
    t.spoil("not a whole number")
    assert (t.reported.quality, t.rejected) == ("bad", True)


def test_a_desired_value_that_can_never_be_written_is_failed_and_not_due() -> None:
    for text, read_only, says in (("101", False, "maximum"), ("x", False, "not an INT"), ("5", True, "ReadOnly")):
        t = tracker(text, read_only=read_only)
        t.want(0.0, 1000)
        t.recheck(1.0)
        assert (t.desired.value, t.desired.write, t.wanted, t.write_due) == (text, "failed", None, None)
        assert says in t.desired.reason


def test_redelivery_changes_nothing_whatever_became_of_the_write() -> None:
    t = tracker("5")
    t.want(1.0, 1000)
    assert (t.desired.write, t.write_due) == ("pending", 1.0)
    t.applied(1001)
    t.dirty = False
    t.want(2.0, 2000)
    assert (t.desired.write, t.write_due, t.dirty) == ("applied", None, False)
    t.failed("device busy", 3.0, 3000)
    assert t.write_due is not None
    assert 3.8 <= t.write_due <= 4.0
    due = t.write_due
    t.dirty = False
    t.want(4.0, 4000)
    assert (t.desired.write, t.write_due, t.attempts, t.dirty) == ("failed", due, 1, False)
    t.refuse("the device cannot hold it", 5000)
    t.want(6.0, 6000)
    assert written(t) == ("failed", None)
    t.recheck(7.0)  # another link may take it
    assert (t.wanted, t.write_due) == (5, 7.0)


def test_an_empty_desired_value_asks_for_nothing() -> None:
    t = tracker("")
    t.want(1.0, 1000)
    assert (t.write_due, t.dirty, t.desired.updated_ms) == (None, False, 0)
    t = tracker("5")
    t.want(1.0, 1000)
    t.applied(1001)
    t.declared = DeviceProperty("p")
    t.want(2.0, 2000)
    assert (t.wanted, t.desired.value, t.desired.write, t.dirty) == (None, "", "", True)


def test_retries_double_to_half_a_minute() -> None:
    t = tracker("5")
    t.want(0.0, 0)
    waits = []
    for _ in range(7):
        t.failed("no reply", 0.0, 0)
        assert t.write_due is not None
        waits.append(t.write_due)
    assert all(low <= wait <= 30 for wait, low in zip(waits, (0.8, 1.6, 3.2, 6.4, 12.8, 24, 24), strict=True))
    t.failed("illegal data address", 0.0, 0, slow=True)
    assert t.write_due == 30.0


def test_attempts_are_counted_in_the_reason_until_something_else_is_wanted() -> None:
    t = tracker("5")
    t.want(0.0, 0)
    reasons = []
    for now_ms in (1, 2, 3):
        t.failed("written 5, but the device has 4", 0.0, now_ms)
        reasons.append((t.desired.reason.removesuffix("written 5, but the device has 4"), t.desired.updated_ms))
    assert reasons == [("", 1), ("attempt 2: ", 2), ("attempt 3: ", 3)]
    for text in ("", "5"):
        t.declared = DeviceProperty("p", desired=DesiredSpec(text))
        t.want(4.0, 4)
    assert (t.desired.write, t.write_due, t.attempts) == ("pending", 4.0, 0)
    t.failed("device busy", 5.0, 5)
    assert t.desired.reason == "device busy"
    t.failed("device busy", 6.0, 6)
    t.applied(7)
    t.failed("device busy", 8.0, 8)
    assert t.desired.reason == "device busy"


def test_confirmations_come_with_the_report_cycle() -> None:
    t = tracker()
    assert t.confirm_due(9.6)  # ten seconds, to the nearest of its 1 s cycles
    assert not t.confirm_due(9.4)
    t.redeclare(DeviceProperty("p", report_cycle_ms=2000), PLAIN_REPORTS)
    assert t.confirm_due(1.6)


def test_before_the_first_read_a_report_is_about_the_desired_side_only() -> None:
    t = tracker("5")
    t.want(0.0, 1000)
    t.miss("away")
    assert t.twin().reported == Reported()
    t.seen(7, 1001, 1.0)
    assert t.twin().reported.value == "7"
