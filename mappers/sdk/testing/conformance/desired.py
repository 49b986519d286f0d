"""What is desired gets onto the device."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import asyncio

from dmi.values import parse_value
from mappers.sdk.errors import DeviceError
from mappers.sdk.testing.conformance.bench import (
    declared_of,
    open_link,
    patience,
    read_all,
    run_subject,
    text_of,
    writable_of,
)
from mappers.sdk.testing.conformance.parts import needs
from mappers.sdk.testing.subject import Subject


class DesiredValues:
    @needs("writable")
    async def test_desired_values_are_applied_and_read_back(self, subject: Subject) -> None:
        name = writable_of(subject)
        async with run_subject(subject) as run:
            for text in subject.desired:
                await run.core.set_desired(run.id, name, text)
                await run.until_applied(text)
                held = await subject.get_value(name)
                assert held == text, f"{name} {text} counts as applied, and the device has {held!r}"
                await run.until(lambda text=text: run.shows(name, text), f"{name} reads {text}")  # type: ignore[misc]

    @needs("writable")
    async def test_desired_values_are_applied_again_after_a_restart(self, subject: Subject) -> None:
        name = writable_of(subject)
        wanted, lost = subject.desired
        async with run_subject(subject) as run:
            await run.core.set_desired(run.id, name, wanted)
            await run.until_applied(wanted)
            await subject.stop()
            await run.until(lambda: run.core.state(run.id) == "offline", "the device is offline")
            await subject.set_value(name, lost)  # it forgot
            await subject.start()
            async with patience(subject, f"{name} {wanted} is written again"):
                while await subject.get_value(name) != wanted:  # noqa: ASYNC110  # the device announces nothing
                    await asyncio.sleep(0.02)

    @needs("writable")
    async def test_writes_and_reads_do_not_disturb_each_other(self, subject: Subject) -> None:
        name = writable_of(subject)
        await subject.set_value(subject.readable, subject.values[0])
        declared = declared_of(subject)
        properties = tuple(declared.properties[n] for n in dict.fromkeys((subject.readable, name)))
        target = declared.properties[name]
        async with open_link(subject, declared) as link:
            for attempt in range(10):
                text = subject.desired[attempt % 2]
                reading = asyncio.create_task(read_all(subject, link, properties))
                for _ in range(attempt % 4):
                    await asyncio.sleep(0)
                try:
                    async with patience(subject, "a write beside a read ends"):
                        await link.write(target, parse_value(text, target.model.type))
                    results = await reading
                    after = await read_all(subject, link, (target,))
                except DeviceError as error:
                    raise AssertionError(f"a write beside a read: {error}") from error
                finally:
                    reading.cancel()
                    await asyncio.wait([reading])
                if subject.readable != name:
                    seen = text_of(results[subject.readable], properties[0])
                    assert seen == subject.values[0], f"beside a write, {subject.readable} reads {seen!r}"
                assert text_of(after[name], target) == text, f"after a write of {text}, {name} reads {after[name]!r}"
        async with run_subject(subject) as run:
            await run.until_reads(subject.values[0])
            if subject.faults is not None:
                subject.faults.delay_s = min(subject.reply_timeout_s / 3, 0.2)
            await run.core.set_desired(run.id, name, subject.desired[0])
            await run.until_applied(subject.desired[0])
            await run.until_read_again()
