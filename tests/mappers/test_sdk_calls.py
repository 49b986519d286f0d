"""The deadline and fence around calls of a driver, and the sleep that loops wait on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mappers.sdk import calls as module
from mappers.sdk.alarm import Alarm
from mappers.sdk.calls import CallClosed, Lane
from mappers.sdk.context import LinkScope, current_link, waiting_turn

SOON, LONG = 0.02, 60.0


def unexpected() -> None:
    raise AssertionError("stuck")


async def test_a_late_call_times_out_and_the_task_goes_on() -> None:
    lane = Lane(unexpected)
    for _ in range(2):
        with pytest.raises(TimeoutError), lane.within(SOON, None):
            await asyncio.Event().wait()
    with lane.within(LONG, None):
        await asyncio.sleep(SOON * 2)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    lane.close()


async def test_a_timer_armed_for_a_later_call_serves_a_sooner_one() -> None:
    lane = Lane(unexpected)
    with lane.within(LONG, None):
        pass
    with pytest.raises(TimeoutError), lane.within(SOON, None):
        await asyncio.Event().wait()
    lane.close()


async def test_an_earlier_timer_does_not_cut_a_later_call_short() -> None:
    lane = Lane(unexpected)
    with lane.within(SOON, None):
        pass
    with lane.within(LONG, None):
        await asyncio.sleep(SOON * 3)
    lane.close()


async def test_a_result_that_comes_in_spite_of_the_cut_is_taken() -> None:
    lane = Lane(unexpected)
    result = 0
    with lane.within(SOON, None):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # as a library may
            result = 7
    assert result == 7
    lane.close()


async def test_our_own_cancellation_gets_out_even_when_it_is_swallowed_or_comes_with_the_deadline() -> None:
    lane = Lane(unexpected)
    inside = asyncio.Event()

    async def swallow() -> None:
        with lane.within(LONG, None):
            inside.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(swallow())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

    inside.clear()
    task = asyncio.create_task(swallow())
    await inside.wait()
    lane.abort()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    lane.close()


async def test_abort_ends_the_call_and_no_other() -> None:
    lane = Lane(unexpected)
    lane.abort()
    inside = asyncio.Event()

    async def call() -> str:
        try:
            with lane.within(LONG, None):
                inside.set()
                await asyncio.Event().wait()
        except CallClosed:
            return "closed"
        return "done"

    task = asyncio.create_task(call())
    await inside.wait()
    lane.abort()
    lane.abort()
    assert await task == "closed"
    lane.close()


async def test_a_call_that_does_not_end_is_told_about_and_ends_as_cancelled_once_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STUCK_S", SOON)
    stuck, let_go = asyncio.Event(), asyncio.Event()
    lane = Lane(stuck.set)

    async def cling() -> None:
        with lane.within(SOON, None):
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

    task = asyncio.create_task(cling())
    await asyncio.wait_for(stuck.wait(), 5)
    lane.give_up()
    with pytest.raises(CallClosed), lane.within(LONG, None):
        pass
    let_go.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_waiting_for_the_turn_on_a_shared_line_does_not_count() -> None:
    lane, loop = Lane(unexpected), asyncio.get_running_loop()
    with lane.within(SOON, None):
        for _ in range(3):
            with waiting_turn(loop.time):
                await asyncio.sleep(SOON * 3)

    async def turn_without_end() -> None:
        with waiting_turn(loop.time):
            await asyncio.sleep(SOON * 3)
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError), lane.within(SOON, None):
        await turn_without_end()
    with pytest.raises(TimeoutError), lane.within(SOON, None):
        await asyncio.Event().wait()
    with waiting_turn(loop.time):  # outside a call
        pass
    lane.close()


async def test_the_scope_is_set_inside_only() -> None:
    lane, scope = Lane(unexpected), LinkScope()
    with lane.within(LONG, scope):
        assert current_link.get() is scope
    assert current_link.get() is None
    lane.close()


async def test_an_alarm_rings_at_its_time_when_rung_and_when_it_was_rung_before() -> None:
    loop, alarm = asyncio.get_running_loop(), Alarm()
    at = loop.time() + SOON
    await alarm.wait(at)
    assert loop.time() >= at - 0.01
    alarm.ring()
    await alarm.wait(loop.time() + LONG)
    sleeper = asyncio.create_task(alarm.wait())
    await asyncio.sleep(0)
    alarm.ring()
    alarm.ring()
    await sleeper
    sleeper = asyncio.create_task(alarm.wait())  # two rings for one sleep are one
    await asyncio.sleep(SOON)
    assert not sleeper.done()
    sleeper.cancel()
    await asyncio.wait([sleeper])
    await alarm.wait(0.0)
