"""The pure core of the twins: merge, states, faults, outbox; and all of it together against a simple reference."""

import dataclasses
import functools
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dmi import ConfigError, Desired, DeviceId, Reported, Twin, supersedes
from edgecore.devicetwin.faults import FaultClock
from edgecore.devicetwin.merge import Fault, merge_state, merge_twins, read_state, set_fault
from edgecore.devicetwin.outbox import ACK_TIMEOUT_S, InFlight, Key, Outbox
from edgecore.store import StateRow, TwinRow, acknowledge_twins, dirty_devices, get_twins, put_twins, shown_state
from edgecore.store.migrations import migrate

NOW = 1_700_000_000_000
TYPES = {"p": "float"}


def reported(value: str, at_ms: int = NOW, **more: object) -> Twin:
    return Twin("p", reported=Reported(value=value, type="float", collected_ms=at_ms, **more))  # type: ignore[arg-type]  # test brevity


def merge_one(row: TwinRow | None, report: Twin, now_ms: int = NOW) -> TwinRow:
    rows = merge_twins({"p": row} if row else {}, [report], TYPES, now_ms=now_ms)
    if not rows:
        assert row is not None
        return row
    return rows[0]


def test_newer_wins_and_older_is_no_change() -> None:
    first = merge_one(None, reported("1", NOW))
    assert (first.version, first.dirty) == (1, True)
    second = merge_one(first, reported("2", NOW + 1))
    assert (second.version, second.twin.reported.value) == (2, "2")
    assert merge_one(second, reported("0", NOW)) is second


def test_a_confirmation_is_a_change_and_a_repetition_is_none() -> None:
    first = merge_one(None, reported("1", NOW))
    assert merge_one(first, reported("1", NOW)) is first
    assert merge_one(first, reported("1", NOW + 10_000)).version == 2


def test_a_later_word_on_the_same_reading_wins() -> None:
    first = merge_one(None, reported("1", NOW))
    stale = merge_one(first, reported("1", NOW, quality="stale", reason="no reply"))
    assert (stale.version, stale.twin.reported.quality) == (2, "stale")


def test_a_report_that_something_cannot_be_read_keeps_the_last_value() -> None:
    first = merge_one(None, reported("1", NOW))
    unread = Twin("p", reported=Reported(quality="bad", reason="no reply"))  # as from a mapper that never read it
    bad = merge_one(first, unread, NOW + 5000)
    assert bad.twin.reported == Reported("1", "float", NOW, "bad", "no reply")
    assert (bad.version, bad.dirty) == (2, True)
    assert merge_one(bad, unread, NOW + 9000) is bad
    again = merge_one(bad, reported("2", NOW + 10_000))
    assert again.twin.reported == Reported("2", "float", NOW + 10_000)


def test_what_was_never_read_is_bad_from_its_arrival() -> None:
    row = merge_one(None, Twin("p", reported=Reported(quality="bad", reason="no reply")))
    assert row.twin.reported == Reported("", "float", NOW, "bad", "no reply")


def test_a_clock_set_back_does_not_stop_the_twin() -> None:
    ahead = merge_one(None, reported("1", NOW + 3_600_000))
    assert merge_one(ahead, reported("2", NOW)).twin.reported.value == "2"


def test_a_go_mapper_gets_time_and_type() -> None:
    row = merge_one(None, Twin("p", reported=Reported(value="1"), desired=Desired(value="5")))
    assert row.twin == Twin("p", Reported("1", "float", NOW), Desired("5", "float", NOW))
    again = merge_one(row, Twin("p", reported=Reported(value="1"), desired=Desired(value="5")), NOW + 2000)
    assert again.twin.reported.collected_ms == NOW + 2000
    assert again.twin.desired.updated_ms == NOW  # the same wish keeps its time


def test_a_cleared_wish_is_a_change() -> None:
    row = merge_one(None, Twin("p", reported=Reported(value="1"), desired=Desired(value="5")))
    cleared = merge_one(row, Twin("p", reported=Reported(value="1"), desired=Desired()), NOW + 1)
    assert cleared.twin.desired == Desired("", "float", NOW + 1)


def test_a_first_report_about_the_desired_side_alone_does_not_outdate_the_first_value() -> None:
    """The value was collected before the desired side's report arrived, and reported after it."""
    wanted = Twin("p", desired=Desired(value="60", type="float", updated_ms=NOW, write="pending"))
    row = merge_one(None, wanted, now_ms=NOW + 5)
    assert row.twin.reported == Reported()
    assert merge_one(row, reported("60", NOW + 3), now_ms=NOW + 6).twin.reported.value == "60"


def test_the_side_that_a_report_does_not_have_stays() -> None:
    row = merge_one(None, Twin("p", reported=Reported(value="1"), desired=Desired(value="5")))
    read = merge_one(row, Twin("p", Reported(value=""), only="reported"), NOW + 1)
    assert read.twin == Twin("p", Reported("", "float", NOW + 1), row.twin.desired)
    cleared = merge_one(row, Twin("p", only="desired"), NOW + 1)
    assert cleared.twin == Twin("p", row.twin.reported, Desired("", "float", NOW + 1))
    assert merge_twins({}, [Twin("p", only="desired")], {}, now_ms=NOW) == []


def test_a_report_about_the_desired_side_alone_leaves_the_value() -> None:
    row = merge_one(None, reported("1"))
    after = merge_one(row, Twin("p", desired=Desired("5", "float", NOW, "failed", "refused")))
    assert after.twin.reported == row.twin.reported
    assert after.twin.desired.write == "failed"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3), st.sampled_from(["good", "stale", "bad"])), max_size=12)
)
def test_any_order_ends_with_the_newest(reports: list[tuple[int, str, str]]) -> None:
    row: TwinRow | None = None
    reference: tuple[int, str] | None = None
    for at, value, quality in reports:
        row = merge_one(row, reported(value, NOW + at, quality=quality))
        if reference is None or NOW + at >= reference[0]:
            reference = (NOW + at, value)
    if row is not None:
        assert (row.twin.reported.collected_ms, row.twin.reported.value) == reference


@pytest.mark.parametrize(
    ("said", "state"), (("ONLINE", "online"), ("Ok", "ok"), ("disconnected", "offline"), (" unhealthy ", "unhealthy"))
)
def test_states_in_any_case(said: str, state: str) -> None:
    assert read_state(said) == state


@pytest.mark.parametrize("said", ("", "dead", "on line"))
def test_other_states_are_refused(said: str) -> None:
    with pytest.raises(ConfigError, match="state"):
        read_state(said)


def test_online_moves_its_time_now_and_then_only() -> None:
    row = merge_state(None, "online", "", seen_online_ms=0, now_ms=NOW)
    assert row is not None
    assert (row.version, row.last_online_ms) == (1, NOW)
    again = functools.partial(merge_state, row, "online", "", seen_online_ms=NOW, confirm_ms=10_000)
    assert again(now_ms=NOW + 9_999) is None
    later = again(now_ms=NOW + 10_000)
    assert later is not None
    assert (later.version, later.last_online_ms) == (2, NOW + 10_000)


def test_going_offline_keeps_the_last_time_online() -> None:
    row = merge_state(None, "online", "", seen_online_ms=0, now_ms=NOW)
    off = merge_state(row, "offline", "no route", seen_online_ms=NOW + 4_000, now_ms=NOW + 6_000)
    assert off is not None
    assert (off.last_online_ms, shown_state(off)) == (NOW + 4_000, ("offline", "no route"))
    assert merge_state(off, "offline", "no route", seen_online_ms=NOW + 4_000, now_ms=NOW + 60_000) is None


def test_a_fault_lies_over_what_the_mapper_said() -> None:
    row = merge_state(None, "online", "", seen_online_ms=0, now_ms=NOW)
    faulty = set_fault(row, Fault("unknown", "no mapper"), now_ms=NOW)
    assert faulty is not None
    assert shown_state(faulty) == ("unknown", "no mapper")
    under = merge_state(faulty, "offline", "x", seen_online_ms=NOW, now_ms=NOW)
    assert under is not None
    assert (under.version, shown_state(under)) == (faulty.version, ("unknown", "no mapper"))  # nothing to tell
    over = set_fault(under, None, now_ms=NOW)
    assert over is not None
    assert (over.version, shown_state(over)) == (faulty.version + 1, ("offline", "x"))


def test_after_a_fault_without_any_word_the_state_is_unknown() -> None:
    faulty = set_fault(None, Fault("unhealthy", "spec.x: wrong"), now_ms=NOW)
    over = set_fault(faulty, None, now_ms=NOW)
    assert over is not None
    assert shown_state(over)[0] == "unknown"
    assert "not reported" in shown_state(over)[1]


def test_a_state_has_a_time_since_when() -> None:
    row = merge_state(None, "online", "", seen_online_ms=0, now_ms=NOW)
    assert row is not None
    assert row.since_ms == NOW
    later = merge_state(row, "online", "", seen_online_ms=NOW, now_ms=NOW + 20_000)
    assert later is not None
    assert (later.version, later.since_ms) == (2, NOW)
    faulty = set_fault(later, Fault("unknown", "no mapper"), now_ms=NOW + 30_000)
    assert faulty is not None
    assert faulty.since_ms == NOW + 30_000
    why = set_fault(faulty, Fault("unknown", "it does not answer"), now_ms=NOW + 40_000)
    assert why is not None
    assert (why.version, why.since_ms) == (faulty.version + 1, NOW + 30_000)  # another reason, the same state
    under = merge_state(why, "offline", "", seen_online_ms=0, now_ms=NOW + 50_000)
    assert under is not None
    assert under.since_ms == NOW + 30_000  # nobody sees it
    over = set_fault(under, None, now_ms=NOW + 60_000)
    assert over is not None
    assert over.since_ms == NOW + 60_000


def test_faults_wait_for_their_grace_and_end_at_once() -> None:
    device, fault = DeviceId("n/d"), Fault("unknown", "no mapper")
    clock = FaultClock({})
    assert not clock.see(device, fault, grace_s=10, now=0)
    assert not clock.see(device, fault, grace_s=10, now=8)  # the first sight counts
    assert clock.next_due() == 10
    assert clock.take_due(9.9) == {}
    assert clock.take_due(10) == {device: fault}
    other = Fault("unhealthy", "refused")
    assert clock.see(device, other, grace_s=10, now=11)
    assert clock.see(device, None, grace_s=0, now=12)
    assert not clock.see(device, None, grace_s=0, now=13)
    assert not clock.see(device, fault, grace_s=10, now=20)
    assert not clock.see(device, None, grace_s=0, now=21)  # over before anybody saw it
    assert clock.next_due() is None


def test_an_unconfirmed_message_is_sent_again() -> None:
    outbox, key = Outbox(), Key(DeviceId("n/d"), "twins")
    outbox.mark(key)
    assert outbox.take(9) == [key]
    outbox.sent(InFlight(key, "m1", {"p": 1}, sent_at=0.0))
    outbox.mark(key)
    assert outbox.take(9) == []  # one at a time
    assert outbox.expire(ACK_TIMEOUT_S - 0.1) == 0
    assert outbox.expire(ACK_TIMEOUT_S) == 1
    assert outbox.take(9) == [key]
    assert outbox.confirmed("m1", 1.0) is None


def test_a_device_that_is_gone_is_forgotten() -> None:
    outbox, key = Outbox(), Key(DeviceId("n/d"), "state")
    outbox.mark(key)
    outbox.take(1)
    outbox.sent(InFlight(key, "m1", {"": 1}, sent_at=0.0))
    outbox.mark(key)
    outbox.forget(key.device)
    assert outbox.confirmed("m1", 1.0) is None
    assert outbox.take(1) == []
    assert (outbox.due, outbox.in_flight) == (0, 0)


DEVICES = [DeviceId("n/a"), DeviceId("n/b")]
PROPERTIES = ["p", "q"]


@dataclasses.dataclass
class _Sent:
    flight: InFlight
    twins: dict[str, Twin]


class TwinsToTheCloud(RuleBasedStateMachine):
    """Reports, sends, losses, confirmations and restarts in any order, over a real store.

    Reference: per property the newest report. Whatever happened, once connected and quiet the cloud has it.
    """

    @initialize()
    def start(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.db)
        self.clock_s = 0.0
        self.now_ms = NOW
        self.outbox = Outbox()
        self.connected = False
        self.wire: list[_Sent] = []
        self.confirmations: list[str] = []
        self.cloud: dict[tuple[DeviceId, str], Reported] = {}
        self.newest: dict[tuple[DeviceId, str], Reported] = {}
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.settle()
            assert self.cloud == self.newest
            assert dirty_devices(self.db) == []
            self.db.close()

    @rule(device=st.sampled_from(DEVICES), name=st.sampled_from(PROPERTIES), age=st.integers(0, 3), value=st.text("ab"))
    def report(self, device: DeviceId, name: str, age: int, value: str) -> None:
        self.now_ms += 1
        at = self.now_ms - age
        twin = Twin(name, reported=Reported(value, "string", at))
        rows = merge_twins(get_twins(self.db, device), [twin], {}, now_ms=self.now_ms)
        put_twins(self.db, device, rows)
        if rows:
            self.outbox.mark(Key(device, "twins"))
        before = self.newest.get((device, name))
        if before is None or at >= before.collected_ms:
            self.newest[device, name] = twin.reported

    @rule()
    def connect(self) -> None:
        self.drop_wire()
        self.connected = True
        self.outbox.restart([Key(device, "twins") for device in dirty_devices(self.db)])

    @rule()
    def lose_connection(self) -> None:
        self.connected = False
        self.drop_wire()

    @rule(arrived=st.integers(0, 3))
    def lose_connection_half_way(self, arrived: int) -> None:
        """The cloud got some of it, and we never hear so."""
        for _ in range(arrived):
            self.deliver()
        self.lose_connection()

    @rule()
    def restart(self) -> None:
        """kill -9: what is not in the store is gone."""
        self.outbox = Outbox()
        self.lose_connection()

    @rule(limit=st.integers(1, 3))
    def send(self, limit: int) -> None:
        if not self.connected:
            return
        for key in self.outbox.take(limit):
            rows = get_twins(self.db, key.device, dirty=True)
            if not rows:
                self.outbox.nothing_to_send(key)
                continue
            self.number += 1
            flight = InFlight(key, str(self.number), {n: r.version for n, r in rows.items()}, self.clock_s)
            self.outbox.sent(flight)
            self.wire.append(_Sent(flight, {n: r.twin for n, r in rows.items()}))

    @rule()
    def deliver(self) -> None:
        """The cloud takes the next message."""
        if not self.wire:
            return
        sent = self.wire.pop(0)
        for name, twin in sent.twins.items():
            before = self.cloud.get((sent.flight.key.device, name))
            at = twin.reported.collected_ms
            assert before is None or supersedes(at, before.collected_ms, now_ms=self.now_ms)
            self.cloud[sent.flight.key.device, name] = twin.reported
        self.confirmations.append(sent.flight.message_id)

    @rule(which=st.integers(0, 5), lost=st.booleans())
    def confirm(self, which: int, lost: bool) -> None:
        if not self.confirmations:
            return
        message_id = self.confirmations.pop(which % len(self.confirmations))
        flight = None if lost else self.outbox.confirmed(message_id, self.clock_s)
        if flight is not None:
            acknowledge_twins(self.db, flight.key.device, flight.versions)

    @rule()
    def wait(self) -> None:
        self.clock_s += ACK_TIMEOUT_S
        self.outbox.expire(self.clock_s)

    @invariant()
    def at_most_one_in_flight(self) -> None:
        if hasattr(self, "outbox"):
            assert self.outbox.in_flight <= len(DEVICES)

    def drop_wire(self) -> None:
        self.wire.clear()
        self.confirmations.clear()

    def settle(self) -> None:
        self.connect()
        for _ in range(10):
            self.send(9)
            while self.wire:
                self.deliver()
            while self.confirmations:
                self.confirm(0, lost=False)


TestTwinsToTheCloud = TwinsToTheCloud.TestCase


def test_merge_state_of_nothing_known_is_written() -> None:
    assert merge_state(StateRow(), "unknown", "", seen_online_ms=0, now_ms=NOW) is not None
