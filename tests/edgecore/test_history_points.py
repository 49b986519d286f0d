"""What is worth keeping, and the bounded buffer in front of the file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmi import DeviceId, Reported
from edgecore.history.points import CONFIRM_MS, Buffer, Last, Point, digest, is_news

NOW = 1_800_000_000_000
PUMP = DeviceId("default/pump")


def last_of(reported: Reported) -> Last:
    return Last(digest(reported.value, reported.quality), reported.collected_ms)


def point(value: str, *, device: DeviceId = PUMP, name: str = "speed", at: int = NOW) -> Point:
    return Point(device, name, value, "int", at, "good")


def test_a_change_of_value_or_quality_is_news_and_a_confirmation_is_not() -> None:
    before = Reported("1", "int", NOW)
    assert is_news(None, before)
    assert is_news(last_of(before), Reported("2", "int", NOW + 1))
    assert is_news(last_of(before), Reported("1", "int", NOW + 1, "stale"))
    assert not is_news(last_of(before), Reported("1", "int", NOW + CONFIRM_MS - 1))
    assert is_news(last_of(before), Reported("1", "int", NOW + CONFIRM_MS))


def test_after_a_clock_was_set_back_confirmations_are_kept_again() -> None:
    ahead = Reported("1", "int", NOW + 10 * CONFIRM_MS)
    assert is_news(last_of(ahead), Reported("1", "int", NOW))


def test_a_side_that_was_never_read_is_no_point() -> None:
    assert not is_news(None, Reported("", "int", 0, "bad", "no answer"))


@given(st.lists(st.text(max_size=40), max_size=60), st.integers(1, 20), st.integers(300, 3000))
def test_the_buffer_keeps_its_bounds_and_the_newest(values: list[str], max_points: int, max_bytes: int) -> None:
    buffer = Buffer(max_points=max_points, max_bytes=max_bytes)
    points = [point(value, at=NOW + number) for number, value in enumerate(values)]
    dropped = sum(buffer.add(p) for p in points)
    assert dropped + len(buffer) == len(points)
    assert len(buffer) <= max_points
    kept = buffer.newest_first(PUMP, "")
    assert kept == list(reversed(points))[: len(buffer)]
    assert sum(p.size for p in kept) <= max_bytes or len(kept) == 1


@given(st.lists(st.text(max_size=40), max_size=30), st.integers(1, 5000))
def test_what_is_put_back_comes_again_in_its_order(values: list[str], size: int) -> None:
    buffer = Buffer(max_points=100, max_bytes=10**6)
    points = [point(value, at=NOW + number) for number, value in enumerate(values)]
    for p in points:
        buffer.add(p)
    taken = buffer.take(size)
    assert taken == points[: len(taken)]
    assert buffer.put_back(taken) == 0
    assert buffer.take(10**9) == points
    assert len(buffer) == 0


def test_taking_is_bounded_but_takes_one_at_least() -> None:
    buffer = Buffer(max_points=10, max_bytes=10**6)
    for number in range(3):
        buffer.add(point("x" * 1000, at=NOW + number))
    assert len(buffer.take(10)) == 1
    assert len(buffer.take(10**6)) == 2


def test_put_back_into_a_full_buffer_drops_the_oldest() -> None:
    buffer = Buffer(max_points=3, max_bytes=10**6)
    for number in range(3):
        buffer.add(point(str(number)))
    taken = buffer.take(10**6)
    for number in range(3, 5):
        buffer.add(point(str(number)))
    assert buffer.put_back(taken) == 2
    assert [p.value for p in buffer.newest_first(PUMP, "speed")] == ["4", "3", "2"]


def test_forgetting_leaves_others_alone() -> None:
    buffer = Buffer(max_points=10, max_bytes=10**6)
    other = DeviceId("default/other")
    for p in (point("1"), point("2", name="level"), point("3", device=other)):
        buffer.add(p)
    buffer.forget({PUMP: {"level"}})
    assert [p.value for p in buffer.newest_first(PUMP, "")] == ["2"]
    buffer.forget({PUMP: ()})
    assert buffer.newest_first(PUMP, "") == []
    assert [p.value for p in buffer.newest_first(other, "")] == ["3"]
