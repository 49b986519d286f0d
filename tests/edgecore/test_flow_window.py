"""What a node tells the cloud, and how much of it at once: confirmations now and then, no more than is worked off."""

import heapq
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi import Desired, DeviceId, Reported, Twin
from edgecore.devicetwin.confirming import LEAST_MS, MOST_MS, confirm_every_ms, is_news
from edgecore.devicetwin.merge import merge_twins
from edgecore.devicetwin.outbox import ACK_TIMEOUT_S, InFlight, Key, Outbox
from edgecore.devicetwin.window import FIRST, LARGEST, SMALLEST, UNTRIED, Window
from edgecore.store import TwinRow

NOW = 1_700_000_000_000
PACE_S = 0.75
"""So long a cloud holds a confirmation back after its write."""


def stored(**values: Reported) -> dict[str, TwinRow]:
    rows = merge_twins({}, [Twin(name, value) for name, value in values.items()], {}, now_ms=NOW)
    return {row.twin.property_name: row for row in rows}


def news(before: dict[str, TwinRow], *twins: Twin, every_ms: int = 10_000) -> bool:
    return is_news(before, merge_twins(before, twins, {}, now_ms=NOW), every_ms=every_ms)


def test_a_confirmation_counts_when_the_last_is_some_time_ago() -> None:
    before = stored(p=Reported("1", "int", NOW))
    assert not news(before, Twin("p", Reported("1", "int", NOW + 9_999)))
    assert news(before, Twin("p", Reported("1", "int", NOW + 10_000)))
    assert not news(before)


@pytest.mark.parametrize(
    "reported",
    (
        Reported("2", "int", NOW + 1),
        Reported("1", "float", NOW + 1),
        Reported("1", "int", NOW + 1, "stale", "no reply"),
        Reported("1", "int", NOW + 1, "good", "and why"),
    ),
)
def test_whatever_else_changes_is_news(reported: Reported) -> None:
    before = stored(p=Reported("1", "int", NOW), q=Reported("5", "int", NOW))
    assert news(before, Twin("q", Reported("5", "int", NOW + 1)), Twin("p", reported))


def test_a_wish_is_news_and_said_again_it_is_not() -> None:
    before = stored(p=Reported("1", "int", NOW))
    wish = Twin("p", Reported("1", "int", NOW + 1), Desired("2", "int", NOW, "pending"))
    assert news(before, wish)
    (row,) = merge_twins(before, [wish], {}, now_ms=NOW)
    assert not news({"p": row}, Twin("p", Reported("1", "int", NOW + 2), Desired("2", "int", NOW + 2, "pending")))
    assert news({"p": row}, Twin("p", Reported("1", "int", NOW + 2), Desired("2", "int", NOW + 2, "applied")))


def test_the_first_value_and_one_after_a_deletion_are_news() -> None:
    assert news({}, Twin("p", Reported("1", "int", NOW)))
    tombstone = TwinRow(Twin("p", Reported(collected_ms=NOW)), version=2, deleted=True)
    assert news({"p": tombstone}, Twin("p", Reported("", "", NOW + 1)))


def test_a_clock_set_back_is_news() -> None:
    hour_ms = 3_600_000
    before = stored(p=Reported("1", "int", NOW + hour_ms))
    assert news(before, Twin("p", Reported("1", "int", NOW)))
    wish = Twin("p", Reported("1", "int", NOW), Desired("2", "int", NOW + hour_ms, "applied"))
    (row,) = merge_twins({}, [wish], {}, now_ms=NOW)
    assert news({"p": row}, Twin("p", Reported("1", "int", NOW + 1), Desired("2", "int", NOW, "applied")))


def test_a_few_devices_are_as_fresh_as_their_mapper_and_many_cost_little() -> None:
    assert confirm_every_ms(1) == confirm_every_ms(90) == LEAST_MS < 10_000
    assert confirm_every_ms(300) == 30_000
    assert confirm_every_ms(5_000) == MOST_MS


class Cloud:
    """Writes so many a second, one after the other, and confirms a little later."""

    def __init__(self, rate: float, round_trip_s: float = 0.0) -> None:
        self.rate = rate
        self._rtt_s = round_trip_s
        self._free_at = 0.0
        self._confirmations: list[tuple[float, str]] = []
        self.waits_s: deque[float] = deque(maxlen=200)
        """How long messages waited for their write."""

    def take(self, message_id: str, now: float) -> None:
        self._free_at = max(self._free_at, now) + 1 / self.rate
        self.waits_s.append(self._free_at - now)
        heapq.heappush(self._confirmations, (self._free_at + PACE_S + self._rtt_s, message_id))

    def confirmed(self, now: float) -> list[str]:
        done = []
        while self._confirmations and self._confirmations[0][0] <= now:
            done.append(heapq.heappop(self._confirmations)[1])
        return done


def overload(cloud: Cloud, devices: int, seconds: int, outbox: Outbox | None = None) -> dict[DeviceId, int]:
    """All devices always have something new to say; how many confirmations each gets."""
    outbox, number = outbox or Outbox(), 0
    told: dict[DeviceId, int] = {}
    for index in range(devices):
        outbox.mark(Key(DeviceId(f"n/{index}"), "twins"))
    for step in range(seconds * 50):
        now = step / 50
        for message_id in cloud.confirmed(now):
            flight = outbox.confirmed(message_id, now)
            assert flight is not None
            told[flight.key.device] = told.get(flight.key.device, 0) + 1
            outbox.mark(flight.key)
        for key in outbox.take(devices):
            number += 1
            outbox.sent(InFlight(key, str(number), {}, now))
            cloud.take(str(number), now)
        if step % 50 == 49:
            outbox.window.adjust(outbox.in_flight, 1.0)
    return told


@pytest.mark.parametrize("round_trip_s", (0.0, 1.0))
@pytest.mark.parametrize("rate", (50.0, 300.0))
def test_a_cloud_that_is_behind_is_kept_busy_and_no_more(rate: float, round_trip_s: float) -> None:
    cloud = Cloud(rate, round_trip_s)
    told = overload(cloud, 1000, 60)
    assert sum(told.values()) > 0.8 * rate * 60
    assert max(cloud.waits_s) < 2.5  # with all 1,000 on their way it would be 1,000 / rate: 3.3 s and 20 s
    assert len(told) == 1000
    assert max(told.values()) - min(told.values()) <= 2  # in turns


def test_a_fast_cloud_is_not_held_up() -> None:
    assert sum(overload(Cloud(100_000.0), 1000, 60).values()) > 0.8 * 1000 / (PACE_S + 0.02) * 60


@given(
    st.lists(
        st.one_of(
            st.floats(0, 60).map(lambda took: ("confirmed", took)),
            st.floats(0, 5).map(lambda seconds: ("adjust", seconds)),
            st.just(("full", 0.0)),
            st.just(("restart", 0.0)),
            st.just(("silence", 0.0)),
        )
    )
)
def test_a_window_never_closes(events: list[tuple[str, float]]) -> None:
    window = Window()
    for what, number in events:
        if what == "confirmed":
            window.note_confirmed(number)
        elif what == "adjust":
            window.adjust(100, number)
        elif what == "full":
            window.note_full()
        elif what == "silence":
            window.note_silence()
        else:
            window.restart()
        assert 1 <= window.size <= LARGEST
    window.note_alive()
    assert SMALLEST <= window.size <= LARGEST


def test_without_need_or_word_nothing_changes() -> None:
    window = Window()
    assert window.size == UNTRIED
    window.note_confirmed(0.01)
    window.adjust(1, 1.0)
    window.note_full()
    window.adjust(1, 1.0)  # nothing came back: the link, most likely
    assert window.size == FIRST


def test_a_stall_with_little_on_its_way_costs_no_room() -> None:
    window = Window()
    window.note_confirmed(0.01)
    window.note_confirmed(9.0)
    window.adjust(1, 1.0)
    assert window.size == FIRST


def test_after_a_slow_time_the_room_is_back_within_seconds() -> None:
    cloud = Cloud(20.0)
    outbox = Outbox()
    overload(cloud, 1000, 60, outbox)
    assert outbox.window.size <= 100
    fast = Cloud(100_000.0)
    outbox.restart(())
    assert sum(overload(fast, 1000, 20, outbox).values()) > 0.6 * 1000 / (PACE_S + 0.02) * 20


def test_a_cloud_that_confirms_nothing_is_not_heaped_up() -> None:
    """It waits for its API server, say: what is sent again and again comes on top of what it has."""
    outbox = Outbox()
    sent: list[str] = []
    overload(Cloud(100_000.0), 1000, 20, outbox)
    large = outbox.window.size
    assert large > FIRST
    outbox.restart([Key(DeviceId(f"n/{index}"), "twins") for index in range(1000)])
    for second in range(20, 620):
        outbox.expire(second)
        outbox.window.adjust(outbox.in_flight, 1.0)
        for key in outbox.take(1000):
            sent.append(str(len(sent)) + " again")
            outbox.sent(InFlight(key, sent[-1], {}, second))
    assert UNTRIED < len(sent) <= UNTRIED * 2 + 600 / ACK_TIMEOUT_S
    assert outbox.confirmed(sent[0], 620) is None  # it was given up; and yet it says that the cloud is there again
    assert outbox.window.size == large
