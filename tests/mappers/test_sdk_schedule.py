from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from mappers.sdk.schedule import MIN_CYCLE_S, Schedule, backoff, cycle_s, phase_of

CYCLES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.05, 0.1, 0.5, 1.0, 2.0, 7.0]), min_size=1)


def due_of(schedule: Schedule) -> dict[str, float]:
    return {name: group.due for group in schedule._groups for name in group.names}


@given(CYCLES, st.floats(0, 1, exclude_max=True), st.lists(st.floats(0.001, 5), max_size=30), st.floats(0, 1e6))
def test_no_drift_and_nothing_is_forgotten(
    cycles: dict[str, float], phase: float, steps: list[float], start: float
) -> None:
    """Whenever it is asked, a property comes exactly when a time on its grid has passed."""
    schedule = Schedule(phase)
    schedule.retime(cycles, start)
    now = start
    expected = due_of(schedule)
    assert set(expected) == set(cycles)
    for step in steps:
        now += step
        due = schedule.take_due(now)
        assert set(due) == {name for name, at in expected.items() if at <= now}
        for name in due:
            ahead = due_of(schedule)[name]
            assert now < ahead <= now + cycles[name] * 1.001
            assert abs((ahead - expected[name]) / cycles[name] % 1.0 - 0.5) > 0.499  # still on the grid
            expected[name] = ahead


def test_multiples_fall_due_together() -> None:
    schedule = Schedule(0.37)
    schedule.retime({"fast": 1.0, "slow": 2.0}, 100.0)
    together = [sorted(schedule.take_due(100.0 + tick + 0.38)) for tick in range(4)]
    assert together == [["fast", "slow"], ["fast"], ["fast", "slow"], ["fast"]]


def test_overruns_are_counted_and_dropped() -> None:
    schedule = Schedule(0.0)
    schedule.retime({"p": 1.0}, 100.5)
    assert schedule.take_due(104.2) == ("p",)
    assert schedule.overruns == 3
    assert schedule.next_due() == 105.0


def test_an_unchanged_cycle_keeps_its_time_and_a_changed_one_moves() -> None:
    schedule = Schedule(0.0)
    schedule.retime({"a": 10.0, "b": 10.0}, 101.0)
    schedule.retime({"a": 10.0, "b": 0.5}, 101.1)
    assert schedule.take_due(101.6) == ("b",)
    assert schedule.take_due(110.0) == ("a", "b")


def test_expedite_reads_at_once() -> None:
    schedule = Schedule(0.5)
    schedule.retime({"a": 10.0}, 100.0)
    schedule.expedite(100.1)
    assert schedule.take_due(100.1) == ("a",)


def test_delays_double_to_their_cap_with_jitter() -> None:
    delays = list(islice(backoff(0.5, 5.0), 8))
    for delay, most in zip(delays, (0.5, 1, 2, 4, 5, 5, 5, 5), strict=True):
        assert 0.8 * most <= delay <= most


def test_cycles_default_and_floor() -> None:
    assert cycle_s(0) == 1.0
    assert cycle_s(250) == 0.25
    assert cycle_s(1) == MIN_CYCLE_S
    assert cycle_s(0, 10_000) == 10.0
    assert 0 <= phase_of("plant/m1") < 1
    assert phase_of("plant/m1") != phase_of("plant/m2")


def test_what_is_overdue_when_the_cycles_change_is_still_due() -> None:
    schedule = Schedule(0.0)
    schedule.retime({"a": 10.0}, 101.0)
    schedule.retime({"a": 10.0, "b": 60.0}, 111.0)
    assert schedule.take_due(111.0) == ("a",)
