"""Links break, hang and come back."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from mappers.sdk.driver import Property, ReadResult
from mappers.sdk.errors import DeviceError, DeviceUnreachable
from mappers.sdk.testing.conformance.bench import (
    CYCLE_MS,
    declared_of,
    expect_device_error,
    faults_of,
    is_off,
    open_link,
    patience,
    prepared,
    read_all,
    read_patiently,
    run_subject,
    text_of,
)
from mappers.sdk.testing.conformance.parts import needs
from mappers.sdk.testing.subject import Subject


class Links:
    async def test_reconnects_after_the_device_restarted(self, subject: Subject) -> None:
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        async with run_subject(subject) as run:
            await run.until_reads(first)
            await subject.stop()
            await run.until_lost()
            await run.until(lambda: run.core.state(run.id) == "offline", "the device is offline")
            await subject.set_value(subject.readable, second)
            await subject.start()
            await run.until_reads(second)
            await run.until(lambda: run.core.state(run.id) == "online", "the device is online again")

    async def test_failures_are_device_errors(self, subject: Subject) -> None:
        declared = declared_of(subject)
        properties = tuple(declared.properties.values())
        try:
            async with open_link(subject, declared) as link:
                await read_all(subject, link, properties)
                await subject.stop()
                for _ in range(3):
                    await expect_device_error(read_all(subject, link, properties), "read_many with the device off")
        except DeviceError as error:
            raise AssertionError(f"closing the link of a device that is off failed: {error}") from error

        async def connect_and_read() -> Mapping[str, ReadResult]:
            async with open_link(subject, declared) as link:
                return await read_all(subject, link, properties)

        await expect_device_error(connect_and_read(), "connect with the device off")

    @needs("faults")
    async def test_half_open_links_are_noticed(self, subject: Subject) -> None:
        faults = faults_of(subject)
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        declared = declared_of(subject)
        properties = tuple(declared.properties.values())
        async with open_link(subject, declared) as link:
            await read_all(subject, link, properties)
            faults.silent = True
            limit_s = 3 * subject.reply_timeout_s + 2
            reading = asyncio.create_task(link.read_many(properties))
            _, late = await asyncio.wait([reading], timeout=limit_s)
            reading.cancel()
            assert not late, f"read_many on a half-open link did not end within {limit_s} s"
            await expect_device_error(reading, "read_many on a half-open link")
        faults.clear()
        async with run_subject(subject) as run:
            await run.until_reads(first)
            faults.silent = True
            await run.until_lost()
            faults.clear()
            await subject.set_value(subject.readable, second)
            await run.until_reads(second)

    async def test_a_cancelled_read_disturbs_no_later_one(self, subject: Subject) -> None:
        """A driver may give the link up with the read, to be in step again; then the next link serves."""
        declared = declared_of(subject)
        properties = (declared.properties[subject.readable],)

        async def reopen() -> Any:
            await stack.aclose()
            async with patience(subject, "after a cancelled read, a new link opens"):
                while True:
                    try:
                        return await stack.enter_async_context(open_link(subject, declared))
                    except DeviceError:
                        await asyncio.sleep(0.05)

        async with AsyncExitStack() as stack:
            link = await reopen()
            for attempt in range(8):
                text = await cancel_a_read(subject, link, properties, attempt)
                if attempt % 4 == 3:
                    link = await reopen()  # as the runtime does
                try:
                    try:
                        results = await read_patiently(subject, link, properties)
                    except DeviceUnreachable:
                        link = await reopen()
                        results = await read_patiently(subject, link, properties)
                except DeviceError as error:
                    raise AssertionError(f"after a cancelled read the link is not usable: {error}") from error
                seen = text_of(results[subject.readable], properties[0])
                assert seen == text, f"after a cancelled read the link gives {seen!r}, and the device has {text!r}"

    @needs("faults")
    async def test_a_slow_device_is_not_asked_again_meanwhile(self, subject: Subject) -> None:
        faults = faults_of(subject)
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        async with run_subject(subject) as run:
            await run.until_reads(first)
            faults.delay_s = delay_s = max(min(subject.reply_timeout_s / 2, 0.3), 2 * CYCLE_MS / 1000)
            tasks, reads, overruns = len(asyncio.all_tasks()), run.watch.reads, run.stats().overruns
            await asyncio.sleep(8 * delay_s)
            most = 8 * len(run.core.devices) + 3
            ended = run.watch.reads - reads
            assert ended <= most, f"{ended} reads ended in the time of 8 replies: they do not wait for the device"
            more = len(asyncio.all_tasks()) - tasks
            assert more <= 5, f"{more} more tasks than before the device became slow"
            assert run.watch.most_reading <= 2, f"{run.watch.most_reading} reads were under way at once"
            await run.until_read_again(2)
            assert run.stats().overruns > overruns, "cycles that had to be left out were not counted"
            faults.clear()
            await subject.set_value(subject.readable, second)
            await run.until_reads(second)

    @needs("neighbour")
    async def test_a_dead_unit_leaves_its_neighbour_alone(self, subject: Subject) -> None:
        assert subject.neighbour is not None, "the subject has no neighbour"
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        dead = prepared(subject.neighbour)
        async with run_subject(subject, dead) as run:
            await run.until_reads(first)
            said = len(run.core.reports)
            for text in (second, first) * 3:
                await subject.set_value(subject.readable, text)
                await run.until_reads(text)
            await run.until(
                lambda: run.core.quality(dead.id, subject.readable) in ("stale", "bad") or is_off(run, dead),
                "the dead unit is told of",
            )
            assert not any(
                t.reported.quality != "good"
                for id_, twins in run.core.reports[said:]
                for t in twins
                if id_ == run.id and t.reported.collected_ms
            ), "values of the good unit were lost"


async def cancel_a_read(subject: Subject, link: Any, properties: Sequence[Property[Any]], attempt: int) -> str:
    """Begin to read one value, cancel that, a little later with each attempt, and return the value the device has from
    then on."""
    before, after = subject.values if attempt % 2 else reversed(subject.values)
    await subject.set_value(subject.readable, before)
    delay_s = min(subject.reply_timeout_s / 3, 0.15)
    if subject.faults is not None:
        subject.faults.delay_s = delay_s
    reading = asyncio.create_task(link.read_many(properties))
    for _ in range(attempt):
        await asyncio.sleep(0)
    if attempt % 2:
        await asyncio.sleep(delay_s / 3)
    if reading.cancel():
        _, late = await asyncio.wait([reading], timeout=subject.reply_timeout_s + 1)
        assert not late, "a cancelled read_many goes on"
        if not reading.cancelled():
            ended = reading.exception() or reading.result()
            raise AssertionError(f"a cancelled read_many ended with {ended!r}, not with CancelledError")
    await subject.set_value(subject.readable, after)
    return after
