"""Devices of a shared line that do not answer: held back, probed, heard again, and let go."""

from __future__ import annotations

import asyncio

import pytest

from mappers.sdk import (
    DeviceTimeout,
    DeviceUnreachable,
    SharedLines,
)
from mappers.sdk.silence import MAX_GRACE_S, PATIENT_EVERY
from tests.mappers.lines_world import A, B, Bus, Opener, line_of, silent


async def test_a_silent_device_is_held_back_while_others_use_the_line() -> None:
    async with line_of(A, B) as (line, _):
        with pytest.raises(DeviceTimeout, match=r"^device plant/a: nothing"):
            async with line.turn(A):
                raise DeviceTimeout(A, "nothing")
        reasons = set()
        for _ in range(3):
            with pytest.raises(DeviceTimeout, match="no reply since 20") as caught:
                async with line.turn(A):
                    raise AssertionError("the wire was touched")
            reasons.add(caught.value.problem)
        assert len(reasons) == 1  # so that it is reported once
        async with line.turn(B) as bus:
            await bus.ask("b")


async def test_a_device_alone_is_not_held_back() -> None:
    async with line_of(A) as (line, _):
        with pytest.raises(DeviceTimeout):
            async with line.turn(A):
                raise DeviceTimeout(A, "nothing")
        async with line.turn(A) as bus:
            await bus.ask("a")


async def test_what_a_device_wants_besides_costs_no_second_timeout() -> None:
    async with line_of(A, B) as (line, _):

        async def second() -> None:
            async with line.turn(A, write=True):
                raise AssertionError("the wire was touched")

        async def first() -> None:
            async with line.turn(A):
                others.append(asyncio.create_task(second()))
                await asyncio.sleep(0)
                raise DeviceTimeout(A, "nothing")

        others: list[asyncio.Task[None]] = []
        async with asyncio.timeout(20):
            with pytest.raises(DeviceTimeout):
                await first()
            with pytest.raises(DeviceTimeout, match="no reply since"):
                await others[0]


async def test_a_probe_is_given_up_for_another_and_an_answer_ends_the_silence() -> None:
    async with line_of(A, B) as (line, _):
        await silent(line, A)
        on_the_wire = asyncio.Event()

        async def probe() -> None:
            async with line.turn(A) as bus:
                on_the_wire.set()
                await bus.ask("probe", seconds=60)

        probing = asyncio.create_task(probe())
        await on_the_wire.wait()
        async with asyncio.timeout(20):  # not the probe's minute
            async with line.turn(B) as bus:
                await bus.ask("b")
            with pytest.raises(DeviceTimeout, match="no reply since"):
                await probing
        assert bus.log == ["probe", "b"]
        silence = line._silences.of(A)
        assert silence is not None
        silence.until = 0.0
        async with line.turn(A) as bus:
            await bus.ask("answered")
        assert line._silences.of(A) is None


async def test_a_probe_that_finds_others_waiting_is_given_up_too() -> None:
    async with line_of(A, B) as (line, _):
        await silent(line, A)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:

            async def greedy() -> None:
                for _ in range(200):
                    async with line.turn(B) as bus:
                        await asyncio.sleep(0)
                        bus.log.append("b")

            async def probe() -> None:
                async with line.turn(A) as bus:
                    assert not all(w.done() for w in workers)  # it got its turn, though others always wait
                    await bus.ask("probe", seconds=60)

            workers = [tasks.create_task(greedy()) for _ in range(2)]
            with pytest.raises(DeviceTimeout):
                await probe()


async def test_a_slow_device_that_was_never_heard_is_heard_in_the_end() -> None:
    """The others never leave the line alone, and it takes longer than the grace."""
    async with line_of(A, B) as (line, _):
        await silent(line, A)

        async def greedy() -> None:
            while line._silences.of(A) is not None:
                async with line.turn(B) as bus:
                    await asyncio.sleep(0)
                    bus.log.append("b")

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(greedy())
            given_up = 0
            while (silence := line._silences.of(A)) is not None:
                silence.until = 0.0
                try:
                    async with line.turn(A) as bus:
                        await bus.ask("slow", seconds=2 * MAX_GRACE_S)
                except (DeviceTimeout, DeviceUnreachable):
                    given_up += 1
        assert given_up == PATIENT_EVERY - 1


async def test_a_request_in_doubt_is_given_up_and_its_device_is_not_silent_for_it() -> None:
    async with line_of(A, B) as (line, _):
        on_the_wire = asyncio.Event()

        async def doubtful() -> None:
            async with line.turn(A, doubtful=True) as bus:
                on_the_wire.set()
                await bus.ask("doubtful", seconds=60)

        for _ in range(4):  # however often
            on_the_wire.clear()
            asking = asyncio.create_task(doubtful())
            async with asyncio.timeout(20):
                await on_the_wire.wait()
                async with line.turn(B) as bus:
                    await bus.ask("b")
                with pytest.raises(DeviceTimeout):
                    await asking
        for _ in range(4):
            with pytest.raises(DeviceTimeout):
                async with line.turn(A, doubtful=True):
                    raise DeviceTimeout(A, "nothing")
        async with line.turn(A) as bus:
            await bus.ask("a")
        assert not line.failure


async def test_a_silent_device_that_is_declared_anew_is_asked_at_once() -> None:
    lines: SharedLines[str, Bus] = SharedLines()
    opener = Opener()
    async with lines.use("x", opener, device_id=B) as line:
        async with lines.use("x", opener, device_id=A, settings="slaveID 3"):
            with pytest.raises(DeviceTimeout, match="nothing"):
                async with line.turn(A):
                    raise DeviceTimeout(A, "nothing")
        async with lines.use("x", opener, device_id=A, settings="slaveID 3"):
            with pytest.raises(DeviceTimeout, match="no reply since"):
                async with line.turn(A):
                    raise AssertionError("the wire was touched")
        async with lines.use("x", opener, device_id=A, settings="slaveID 1"), line.turn(A) as bus:
            await bus.ask("a")
        assert bus.log == ["a"]


async def test_the_third_miss_ends_the_link_of_the_device_alone() -> None:
    async with line_of(A, B) as (line, opener):
        await silent(line, A)
        await silent(line, A)
        with pytest.raises(DeviceUnreachable, match="no reply since"):
            async with line.turn(A):
                raise DeviceTimeout(A, "nothing")
        async with line.turn(B) as bus:
            await bus.ask("b")
        assert opener.closed == 0
