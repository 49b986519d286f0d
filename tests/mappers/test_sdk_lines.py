"""Shared lines with a bus of plain coroutines: opening, turns, loss, cancellation."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mappers.sdk import (
    ConfigError,
    DeviceError,
    DeviceId,
    DeviceProtocolError,
    DeviceTimeout,
    DeviceUnreachable,
    Line,
    SharedLines,
)
from tests.mappers.lines_world import A, B, Bus, C, Opener, ended, line_of, silent


@pytest.fixture
def opener() -> Opener:
    return Opener()


# opening and closing


async def test_the_first_opens_and_the_last_closes(opener: Opener) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    async with lines.use("x", opener, device_id=A) as first:
        async with lines.use("x", opener, device_id=B) as second:
            assert first is second
        assert (opener.opened, opener.closed) == (1, 0)
        async with lines.use("y", opener, device_id=B) as other:
            assert other is not first
    assert (opener.opened, opener.closed) == (2, 2)
    async with lines.use("x", opener, device_id=A) as again:
        assert again is not first
    assert opener.closed == 3


async def test_it_is_opened_once_for_all_who_come_meanwhile(opener: Opener) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener.may_open.clear()

    async def use(device: DeviceId) -> Line[Bus]:
        async with lines.use("x", opener, device_id=device) as line:
            await asyncio.sleep(0)
            return line

    async with asyncio.TaskGroup() as tasks:
        used = [tasks.create_task(use(d)) for d in (A, B, C)]
        await opener.opening.wait()
        opener.may_open.set()
    assert len({id(u.result()) for u in used}) == 1
    assert (opener.opened, opener.closed) == (1, 1)


@pytest.mark.parametrize(
    ("failure", "told"),
    (
        (DeviceUnreachable(A, "no such port"), DeviceUnreachable),
        (DeviceTimeout(A, "no such port"), DeviceTimeout),
        (DeviceProtocolError(A, "no such port"), DeviceProtocolError),
        (ConfigError("serialName", "no such port"), ConfigError),
    ),
)
async def test_a_failure_to_open_is_told_to_all_under_their_own_names(
    opener: Opener, failure: DeviceError | ConfigError, told: type[Exception]
) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener.may_open.clear()
    opener.fails = failure

    async def use(device: DeviceId) -> Exception | None:
        try:
            async with lines.use("x", opener, device_id=device):
                return None
        except (DeviceError, ConfigError) as error:
            return error

    async with asyncio.TaskGroup() as tasks:
        users = [tasks.create_task(use(d)) for d in (A, B)]
        await opener.opening.wait()
        opener.may_open.set()
    for device, user in zip((A, B), users, strict=True):
        error = user.result()
        assert type(error) is told
        assert "no such port" in str(error)
        if isinstance(error, DeviceError):
            assert error.device_id == device
    opener.fails = None
    async with lines.use("x", opener, device_id=A):
        assert opener.opened == 1


async def test_who_leaves_while_it_opens_harms_nobody(opener: Opener) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener.may_open.clear()

    async def use(device: DeviceId) -> None:
        async with lines.use("x", opener, device_id=device):
            pass

    first, second = asyncio.create_task(use(A)), asyncio.create_task(use(B))
    await opener.opening.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    opener.may_open.set()
    await ended(second)  # type: ignore[arg-type]  # a task is awaitable
    assert opener.opened == 1


async def test_nobody_left_while_it_opens_ends_the_opening(opener: Opener) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener.may_open.clear()

    async def use() -> None:
        async with lines.use("x", opener, device_id=A):
            pass

    only = asyncio.create_task(use())
    await opener.opening.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    opener.may_open.set()
    async with lines.use("x", opener, device_id=A):
        assert opener.opened == 1


async def test_other_parameters_are_refused_with_both_names_and_values(opener: Opener) -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    async with lines.use("x", opener, device_id=A, parameters={"baudRate": 9600, "parity": "N"}):
        with pytest.raises(ConfigError, match=r"plant/b has 19200, but device plant/a uses .* 9600") as caught:
            async with lines.use("x", opener, device_id=B, parameters={"baudRate": 19200, "parity": "N"}):
                pass
        assert caught.value.path == "baudRate"
        async with lines.use("x", opener, device_id=C, parameters={"baudRate": 9600, "parity": "N"}):
            pass
    async with lines.use("x", opener, device_id=B, parameters={"baudRate": 19200, "parity": "N"}):
        assert opener.opened == 2


# turns


async def test_one_at_a_time_writes_first_and_devices_in_turn() -> None:
    async with asyncio.timeout(20), line_of(A, B, C) as (line, _):

        async def use(device: DeviceId, name: str, *, write: bool = False) -> None:
            async with line.turn(device, write=write) as bus:
                await bus.ask(name)

        async with asyncio.TaskGroup() as tasks, line.turn(A) as bus:
            for name in ("a1", "a2", "a3"):
                tasks.create_task(use(A, name))
            tasks.create_task(use(B, "b1"))
            tasks.create_task(use(C, "c1"))
            tasks.create_task(use(C, "c-write", write=True))
            await asyncio.sleep(0.01)
            assert not bus.log
        assert bus.log == ["c-write", "a1", "b1", "c1", "a2", "a3"]


async def test_a_rest_is_kept_between_transactions() -> None:
    async with line_of(A, B) as (line, _):
        loop = asyncio.get_running_loop()
        async with line.turn(A, gap_s=0.05):
            pass
        ended_at = loop.time()
        async with line.turn(B):
            assert loop.time() - ended_at >= 0.045


# loss


async def test_silence_of_all_breaks_the_line() -> None:
    async with line_of(A, B) as (line, _):
        await silent(line, A)
        await silent(line, A)
        with pytest.raises(DeviceUnreachable, match="3 requests in a row"):
            async with line.turn(B):
                raise DeviceTimeout(B, "nothing")
        assert line.failure


async def test_a_broken_line_ends_all_and_the_next_use_opens_anew() -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener = Opener()
    held = asyncio.Event()

    async def hold() -> None:
        async with lines.use("x", opener, device_id=A) as line, line.turn(A):
            held.set()
            await asyncio.sleep(60)

    async def wait() -> None:
        async with lines.use("x", opener, device_id=B) as line, line.turn(B):
            raise AssertionError("it is broken")

    async def listen() -> str:
        async with lines.use("x", opener, device_id=C) as line:
            return await line.wait_broken()

    async with asyncio.timeout(20):
        users = [asyncio.create_task(hold()), asyncio.create_task(wait()), asyncio.create_task(listen())]
        await held.wait()
        await asyncio.sleep(0.01)
        opener.broken("pulled out")
        results = await asyncio.gather(*users, return_exceptions=True)
        assert isinstance(results[0], DeviceUnreachable)
        assert isinstance(results[1], DeviceUnreachable)
        assert results[1].device_id == B
        assert results[2] == "pulled out"
        async with lines.use("x", opener, device_id=B) as line, line.turn(B) as bus:
            await bus.ask("b")
    assert (opener.opened, opener.closed) == (2, 2)


async def test_a_new_user_of_a_broken_line_waits_for_its_close() -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener = Opener()
    async with lines.use("x", opener, device_id=A) as old:
        opener.broken("pulled out")
        async with lines.use("x", opener, device_id=B) as new:
            assert new is not old
            assert (opener.opened, opener.closed) == (2, 1)
        with pytest.raises(DeviceUnreachable, match="pulled out"):
            async with old.turn(A):
                pass


async def test_an_unreachable_device_in_a_turn_breaks_the_line() -> None:
    async with line_of(A, B) as (line, _):
        with pytest.raises(DeviceUnreachable):
            async with line.turn(A):
                raise DeviceUnreachable(A, "connection lost")
        with pytest.raises(DeviceUnreachable, match="plant/b: connection lost"):
            async with line.turn(B):
                pass


# cancellation


@given(st.lists(st.tuples(st.sampled_from((A, B, C)), st.booleans(), st.integers(0, 12)), min_size=1, max_size=12))
async def test_cancelled_anywhere_the_line_stays_usable(uses: list[tuple[DeviceId, bool, int]]) -> None:
    """Each use is cancelled after so many steps of the loop, 0 for not at all."""
    async with asyncio.timeout(20), line_of(A, B, C) as (line, _):
        served = itertools.count()

        async def use(device: DeviceId, write: bool) -> None:
            async with line.turn(device, write=write) as bus:
                await bus.ask("x")
                next(served)

        tasks = [(asyncio.create_task(use(device, write)), after) for device, write, after in uses]
        for step in range(1, 14):
            await asyncio.sleep(0)
            for task, after in tasks:
                if after == step:
                    task.cancel()
        results = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert sum(r is None for r in results) == next(served)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
        assert all(r is None for r, (_, after) in zip(results, tasks, strict=True) if not after)
        async with line.turn(A) as bus:
            await bus.ask("after")


async def test_a_cancelled_turn_says_nothing_about_the_device() -> None:
    async with line_of(A, B) as (line, _):

        async def use() -> None:
            async with line.turn(A) as bus:
                bus.reply.clear()
                await bus.ask("a")

        task = asyncio.create_task(use())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with line.turn(A) as bus:
            bus.reply.set()
            await bus.ask("a")
