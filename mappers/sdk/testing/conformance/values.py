"""What is read is what the device has, or it is not good."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mappers.sdk.driver import CanSubscribe, ReadResult
from mappers.sdk.testing.conformance.bench import (
    declared_of,
    faults_of,
    open_link,
    patience,
    run_subject,
    text_of,
)
from mappers.sdk.testing.conformance.parts import needs
from mappers.sdk.testing.subject import Subject


class Values:
    async def test_reads_good_values(self, subject: Subject) -> None:
        first, second = subject.values
        await subject.set_value(subject.readable, first)
        async with run_subject(subject) as run:
            await run.until_reads(first)
            await run.until(lambda: run.core.state(run.id) == "online", "the device is online")
            await subject.set_value(subject.readable, second)
            await run.until_reads(second)

    @needs("pushed")
    async def test_pushes_what_changed(self, subject: Subject) -> None:
        pushes: asyncio.Queue[Mapping[str, ReadResult]] = asyncio.Queue()
        declared = declared_of(subject)
        property_ = declared.properties[subject.pushed]
        async with open_link(subject, declared) as link:
            assert isinstance(link, CanSubscribe), "the link has no subscribe"
            names = await link.subscribe(list(declared.properties.values()), pushes.put_nowait)
            assert subject.pushed in names, f"{subject.pushed} is not among what is pushed: {sorted(names)}"
            for text in subject.values:
                await subject.set_value(subject.pushed, text)
                async with patience(subject, f"{subject.pushed} {text} is pushed"):
                    while text_of((await pushes.get()).get(subject.pushed), property_) != text:
                        pass
        while not pushes.empty():
            pushes.get_nowait()
        await subject.set_value(subject.pushed, subject.values[0])
        await asyncio.sleep(0.3)
        assert pushes.empty(), "a value was pushed after the link was closed"

    @needs("faults")
    async def test_garbage_never_becomes_a_value(self, subject: Subject) -> None:
        faults = faults_of(subject)
        first, second = subject.values
        for kind in ("garbage", "truncate"):
            faults.clear()
            await subject.set_value(subject.readable, first)
            async with run_subject(subject) as run:
                await run.until_reads(first)
                said = len(run.core.reports)
                setattr(faults, kind, True)
                await run.until_lost()
                faults.clear()
                await subject.set_value(subject.readable, second)
                await run.until_reads(second)
                for _, twins in run.core.reports[said:]:
                    for twin in twins:
                        if twin.property_name == subject.readable and twin.reported.quality == "good":
                            value = twin.reported.value
                            assert value in (first, second), f"{kind} became the value {value!r}"
