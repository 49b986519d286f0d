"""A driver that blocks the loop is named, once per block, with its device and place; nobody else is."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from dmi.types import DeviceId
from mappers.sdk.context import current_device
from mappers.sdk.driver import Driver, Link
from mappers.sdk.stats import BUCKETS_S
from mappers.sdk.watchdog import driver_packages, find_culprit, watch_loop
from tests.mappers.web_world import until


class NoConfig(msgspec.Struct, frozen=True):
    pass


class BlockingDriver(Driver[NoConfig, NoConfig]):
    protocol = "blocking"
    protocol_config = NoConfig
    visitor_config = NoConfig

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: NoConfig) -> AsyncIterator[Link[NoConfig]]:
        raise NotImplementedError
        yield  # type: ignore[unreachable]  # makes it a generator


def sleep_badly(seconds: float) -> None:
    time.sleep(seconds)


async def read_many(seconds: float) -> None:
    current_device.set("plant/pump-1")
    sleep_badly(seconds)


async def compute() -> None:
    """Hold the interpreter for about a second or more: the watching thread stands still too."""
    sum(range(60_000_000))


async def told(caplog: pytest.LogCaptureFixture, count: int = 1) -> list[logging.LogRecord]:
    def found() -> list[logging.LogRecord]:
        return [r for r in caplog.records if r.name == "mappers.sdk.watchdog"]

    await until(lambda: len(found()) >= count)
    return found()


async def test_driver_that_sleeps_is_named_with_device_duration_and_place(caplog: pytest.LogCaptureFixture) -> None:
    async with watch_loop([BlockingDriver()]) as watchdog:
        await asyncio.create_task(read_many(0.9), name="collect plant/pump-1")
        (record,) = await told(caplog)
        await asyncio.sleep(0.3)
    assert record.levelno == logging.ERROR
    message = record.getMessage()
    assert message.startswith("driver blocking blocked the loop for ")
    assert " s in tests/mappers/test_watchdog.py:" in message
    assert message.endswith(" sleep_badly (device plant/pump-1)")
    assert dict(watchdog.blocks) == {"blocking": 1}
    assert watchdog.blocked_s["blocking"] > 0.4
    assert len(await told(caplog)) == 1, "once per block"


async def test_driver_that_holds_the_interpreter_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    async with watch_loop([BlockingDriver()]):
        async with asyncio.timeout(30):
            while not caplog.records:  # a machine with too much to do can look like one that stood still
                await asyncio.create_task(compute(), name="collect plant/pump-1")
                await asyncio.sleep(0.2)
        record, *_ = await told(caplog)
    assert "compute (device plant/pump-1)" in record.getMessage()


async def test_each_block_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with watch_loop([BlockingDriver()]) as watchdog:
        for count in (1, 2):
            await read_many(0.9)
            await told(caplog, count)
    assert watchdog.blocks["blocking"] == 2


async def test_block_that_lasts_is_told_before_it_ends_and_only_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mappers.sdk.watchdog.LASTING_S", 0.4)
    async with watch_loop([BlockingDriver()]) as watchdog:
        deadline = time.monotonic() + 30
        while not caplog.records and time.monotonic() < deadline:  # blocking the loop all the time
            sleep_badly(0.05)
        assert "is blocking the loop, so far for" in caplog.text
        await asyncio.sleep(0.3)
    assert len(await told(caplog)) == 1
    assert watchdog.blocked_s["blocking"] >= 0.4


async def test_code_outside_the_drivers_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    async with watch_loop([]) as watchdog:
        sleep_badly(0.9)
        (record,) = await told(caplog)
    assert record.getMessage().startswith("code outside the drivers blocked the loop")
    assert dict(watchdog.blocks) == {"": 1}


async def test_busy_loop_that_turns_is_not_a_block(caplog: pytest.LogCaptureFixture) -> None:
    async with watch_loop([BlockingDriver()], threshold_s=5.0) as watchdog:
        ends = time.monotonic() + 0.6
        while time.monotonic() < ends:  # noqa: ASYNC110  # busy on purpose
            await asyncio.sleep(0)
        assert sum(watchdog.lag.counts) >= 1
    assert not caplog.records
    assert not watchdog.blocks


async def test_thread_ends_with_the_block_even_during_one() -> None:
    async with watch_loop([BlockingDriver()]):
        assert "watchdog" in {t.name for t in threading.enumerate()}
        sleep_badly(0.5)
    assert "watchdog" not in {t.name for t in threading.enumerate()}


async def test_watching_costs_next_to_nothing() -> None:
    async with watch_loop([]):
        before, started = time.process_time(), time.monotonic()
        await asyncio.sleep(2.0)
        spent, lasted = time.process_time() - before, time.monotonic() - started
    assert spent / lasted < 0.02, "a thousandth is usual, other threads of the test run may add to it"


def test_thread_that_waits_for_events_is_no_culprit() -> None:
    frames: list[object] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            frame = sys._current_frames()[thread.ident or 0]
            if frame.f_globals["__name__"] == "selectors":
                frames.append(find_culprit(frame, {}, ""))
                break
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert frames == [None]


def test_code_of_a_driver_is_found_by_its_package() -> None:
    assert driver_packages([BlockingDriver()]) == {"tests.mappers": "blocking"}


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "mappers.sdk.watchdog" and r.levelno >= logging.WARNING]


async def start_device() -> None:
    time.sleep(0.003)  # noqa: ASYNC251  # on purpose


async def test_many_short_steps_are_nobodys_fault(caplog: pytest.LogCaptureFixture) -> None:
    """As when a thousand devices start: the loop answers late, and whoever was on the stack just then did nothing."""
    async with watch_loop([]) as watchdog, asyncio.TaskGroup() as tasks:
        for _ in range(300):
            tasks.create_task(start_device())
    assert watchdog.busy[""] >= 1
    assert not watchdog.blocks
    assert not warnings(caplog)


async def test_driver_whose_short_blocking_calls_add_up_is_named_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each device is read in 10 ms without giving way, which no single one can be blamed for."""
    async with watch_loop([BlockingDriver()]) as watchdog:
        for _ in range(2):
            async with asyncio.TaskGroup() as tasks:
                for number in range(100):
                    tasks.create_task(read_many(0.01), name=f"collect plant/pump-{number}")
    assert watchdog.busy["blocking"] >= 2
    assert not watchdog.blocks
    (record,) = warnings(caplog)
    assert "most of them of driver blocking, such as tests/mappers/test_watchdog.py:" in record.getMessage()
    assert "(device plant/pump-" in record.getMessage()


async def test_one_task_that_blocks_in_short_slices_shows_in_the_lag() -> None:
    async with watch_loop([BlockingDriver()]) as watchdog:
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            sleep_badly(0.12)
            await asyncio.sleep(0)
    assert sum(watchdog.lag.counts[bisect_left(BUCKETS_S, 0.011) :]) >= 2, "between 0 and 0.12 s late, each time"


async def test_driver_that_waits_for_a_program_blocks_too(caplog: pytest.LogCaptureFixture) -> None:
    """`subprocess` waits in `selectors`, as the loop itself does while all is well."""
    command = [sys.executable, "-c", "import time; time.sleep(1.2)"]
    async with watch_loop([BlockingDriver()]) as watchdog:
        subprocess.run(command, capture_output=True, check=True)  # noqa: ASYNC221  # on purpose
        (record,) = await told(caplog)
    assert "driver blocking blocked the loop" in record.getMessage()
    assert watchdog.blocks["blocking"] == 1
