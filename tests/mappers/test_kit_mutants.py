"""The conformance suite itself: each of its tests fails on a driver that is broken in just that way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from mappers.sdk import ModelProperty
from mappers.sdk.schedule import Schedule
from mappers.sdk.testing import FaultyDriver
from mappers.sdk.testing.conformance import DriverConformance, endings
from tests.mappers.kit_broken import (
    BelievesHalfLines,
    EndsTheLinkWhenCancelled,
    FirstValueForEver,
    GoesOnThoughCancelled,
    HangsOnASlowDevice,
    HatesHaste,
    LeavesATask,
    LeavesAThread,
    LeavesPropertiesOut,
    NoLock,
    OnlySaysItWrote,
    PlansOnce,
    RaisesItsLibrarysErrors,
    ReconnectsForAnyRead,
    StopsReadingAfterASlowWrite,
    SwallowsCancellation,
    TakesAnyAnswer,
    WaitsForEver,
    driver_of,
    left_tasks,
    left_threads,
    left_writers,
)
from tests.mappers.kit_broken_drivers import (
    BlocksTheLoopWhenItCloses,
    ClosesSlowly,
    DiscoversNonsense,
    DiscoversNothing,
    EndsItsTasks,
    ForgetsWhatIsOwedToTheLinkBefore,
    KeepsTheFirstConfig,
    LeavesASocket,
    NeverConnectsAgain,
    NeverConnectsOnceCancelled,
    OneWaitsForAll,
    PushesNothing,
    PushesOn,
    RefusesVaguely,
    ReopensInNameOnly,
    WritesOnce,
)
from tests.mappers.kit_toy import ToyDriver, ToySubject, toy_subject

check = DriverConformance()


@pytest.fixture(autouse=True)
async def cleared() -> AsyncIterator[None]:
    yield
    for task in left_tasks:
        task.cancel()
    await asyncio.gather(*left_tasks, return_exceptions=True)
    for stop in left_threads:
        stop.set()
    for writer in left_writers:
        writer.transport.abort()
    left_tasks.clear()
    left_threads.clear()
    left_writers.clear()


MUTANTS: list[tuple[Callable[[], ToyDriver], Callable[[Any], Awaitable[None]], str]] = [
    (lambda: driver_of(FirstValueForEver), check.test_reads_good_values, "level is 34, and good"),
    (NeverConnectsAgain, check.test_reconnects_after_the_device_restarted, "level is 34, and good"),
    (lambda: driver_of(BelievesHalfLines), check.test_garbage_never_becomes_a_value, "level is stale or bad|became"),
    (lambda: driver_of(RaisesItsLibrarysErrors), check.test_failures_are_device_errors, "no DeviceError"),
    (lambda: driver_of(WaitsForEver), check.test_half_open_links_are_noticed, "did not end within"),
    (lambda: driver_of(TakesAnyAnswer), check.test_a_cancelled_read_disturbs_no_later_one, "the link gives"),
    (lambda: driver_of(SwallowsCancellation), check.test_a_cancelled_read_disturbs_no_later_one, "ended with OSError"),
    (EndsItsTasks, check.test_a_slow_device_is_not_asked_again_meanwhile, "do not wait for the device|more tasks"),
    (OneWaitsForAll, check.test_a_dead_unit_leaves_its_neighbour_alone, "and good"),
    (lambda: driver_of(OnlySaysItWrote), check.test_desired_values_are_applied_and_read_back, "counts as applied"),
    (WritesOnce, check.test_desired_values_are_applied_again_after_a_restart, "is written again"),
    (lambda: driver_of(NoLock), check.test_writes_and_reads_do_not_disturb_each_other, "beside|after a write"),
    (lambda: driver_of(PlansOnce), check.test_another_visitor_is_read_over_the_same_link, "level is 41, and good"),
    (lambda: driver_of(ReconnectsForAnyRead), check.test_another_visitor_is_read_over_the_same_link, "new link"),
    (KeepsTheFirstConfig, check.test_another_protocol_config_reconnects_once, "level is 34, and good"),
    (lambda: driver_of(LeavesATask), check.test_closing_leaves_nothing_behind, "task left"),
    (lambda: driver_of(LeavesAThread), check.test_closing_leaves_nothing_behind, "thread left"),
    (LeavesASocket, check.test_closing_leaves_nothing_behind, "file descriptor"),
    (ClosesSlowly, check.test_closing_leaves_nothing_behind, "did not close within"),
    (lambda: driver_of(HatesHaste), check.test_another_cycle_keeps_the_link, "new link|and good"),
    (lambda: driver_of(LeavesPropertiesOut), check.test_failures_are_device_errors, "no result for"),
    (
        lambda: driver_of(RaisesItsLibrarysErrors),
        check.test_half_open_links_are_noticed,
        "raised TimeoutError|may leave",
    ),
    (ClosesSlowly, check.test_reads_good_values, "had to contain the driver"),
    (lambda: driver_of(LeavesATask), check.test_reconnects_after_the_device_restarted, "tasks left behind a link: 1"),
    (lambda: driver_of(GoesOnThoughCancelled), check.test_a_cancelled_read_disturbs_no_later_one, "ended with {"),
    (NeverConnectsOnceCancelled, check.test_a_cancelled_read_disturbs_no_later_one, "a new link opens"),
    (ForgetsWhatIsOwedToTheLinkBefore, check.test_a_cancelled_read_disturbs_no_later_one, "the link gives"),
    (ReopensInNameOnly, check.test_a_cancelled_read_disturbs_no_later_one, "the link gives"),
    (lambda: driver_of(HangsOnASlowDevice), check.test_a_slow_device_is_not_asked_again_meanwhile, "2 more reads"),
    (
        lambda: driver_of(StopsReadingAfterASlowWrite),
        check.test_writes_and_reads_do_not_disturb_each_other,
        "3 more reads|read_many ends",
    ),
    (DiscoversNothing, check.test_what_is_discovered_can_be_declared, "nothing was discovered"),
    (DiscoversNonsense, check.test_what_is_discovered_can_be_declared, "discovered, and refused"),
]


@pytest.mark.parametrize(("broken", "test", "words"), MUTANTS)
async def test_a_broken_driver_fails(
    broken: Callable[[], ToyDriver], test: Callable[[ToySubject], Awaitable[None]], words: str
) -> None:
    async with toy_subject(broken()) as subject:
        subject.patience_s = 3.0
        with pytest.raises(AssertionError, match=words):
            await test(subject)


@pytest.mark.parametrize(
    ("broken", "words"),
    ((PushesNothing, "is pushed"), (PushesOn, "after the link was closed"), (ToyDriver, "no subscribe")),
)
async def test_a_driver_that_pushes_badly_fails(broken: Callable[[], ToyDriver], words: str) -> None:
    async with toy_subject(broken()) as subject:
        subject.patience_s = 3.0
        subject.pushed = "level"
        with pytest.raises(AssertionError, match=words):
            await check.test_pushes_what_changed(subject)


async def test_a_driver_that_does_not_say_which_setting_is_wrong_fails() -> None:
    async with toy_subject(RefusesVaguely()) as subject:
        subject.wrong_visitor = {"name": "nowhere"}
        with pytest.raises(AssertionError, match="refused without its path"):
            await check.test_wrong_settings_are_refused_with_their_path(subject)
        subject.wrong_visitor = {}
        subject.wrong_config = {"unit": "anything"}
        with pytest.raises(AssertionError, match="is accepted"):
            await check.test_wrong_settings_are_refused_with_their_path(subject)


async def test_values_that_a_stock_edge_core_drops_are_told_of() -> None:
    async with toy_subject(ToyDriver()) as subject:
        subject.model = msgspec.structs.replace(
            subject.model, properties=(ModelProperty("level", "STRING", "ReadOnly"), subject.model.properties[1])
        )
        subject.values = ("50%", "60%")
        with pytest.raises(AssertionError, match="'50%' is dropped silently"):
            await check.test_a_stock_edge_core_takes_the_reports(subject)


async def test_a_mapper_that_takes_too_long_to_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "SHUTDOWN_S", 1.0)
    async with toy_subject(BlocksTheLoopWhenItCloses()) as subject:
        with pytest.raises(AssertionError, match=r"the mapper took 1\.\d s to end"):
            await check.test_closing_leaves_nothing_behind(subject)


async def test_overruns_that_nobody_counts_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    take_due = Schedule.take_due

    def uncounted(self: Schedule, now: float) -> tuple[str, ...]:
        due = take_due(self, now)
        self.overruns = 0
        return due

    monkeypatch.setattr(Schedule, "take_due", uncounted)
    async with toy_subject(ToyDriver()) as subject:
        with pytest.raises(AssertionError, match="were not counted"):
            await check.test_a_slow_device_is_not_asked_again_meanwhile(subject)


async def test_a_driver_may_end_its_link_with_a_cancelled_read() -> None:
    async with toy_subject(driver_of(EndsTheLinkWhenCancelled)) as subject:
        await check.test_a_cancelled_read_disturbs_no_later_one(subject)


def collected(suite: type[DriverConformance]) -> set[str]:
    """What pytest takes for a test."""
    return {name for name in dir(suite) if name.startswith("test_") and callable(getattr(suite, name))}


def test_what_a_subject_lacks_is_not_collected() -> None:
    class Everything(DriverConformance):
        pass

    class ReadOnly(DriverConformance, lacks=("writable", "pushed")):
        pass

    class Alone(ReadOnly, lacks=("neighbour",)):
        pass

    assert collected(Everything) == collected(DriverConformance)
    assert collected(Everything) - collected(ReadOnly) == {
        "test_pushes_what_changed",
        "test_desired_values_are_applied_and_read_back",
        "test_desired_values_are_applied_again_after_a_restart",
        "test_writes_and_reads_do_not_disturb_each_other",
        "test_another_visitor_is_read_over_the_same_link",
    }
    assert collected(ReadOnly) - collected(Alone) == {"test_a_dead_unit_leaves_its_neighbour_alone"}
    with pytest.raises(TypeError, match="lacks 'hope', and there are only discovery, faults"):

        class Hopeless(DriverConformance, lacks=("hope",)):  # type: ignore[arg-type]  # on purpose
            pass


async def test_a_part_is_neither_forgotten_nor_denied() -> None:
    class Toy(DriverConformance, lacks=("discovery", "pushed")):
        pass

    class Reader(DriverConformance, lacks=("writable", "discovery", "pushed")):
        pass

    async with toy_subject(ToyDriver()) as subject:
        await Toy().test_the_subject_has_what_is_tested(subject)
        with pytest.raises(AssertionError, match="has writable, which is not tested"):
            await Reader().test_the_subject_has_what_is_tested(subject)
        subject.driver, inner = FaultyDriver(subject.driver), subject.driver
        await Toy().test_the_subject_has_what_is_tested(subject)  # what is around a driver discovers nothing itself
        subject.driver, subject.faults = inner, None
        with pytest.raises(AssertionError, match=r"no faults: .* lacks=\('discovery', 'faults', 'pushed'\)"):
            await Toy().test_the_subject_has_what_is_tested(subject)
