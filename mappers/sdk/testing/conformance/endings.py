"""What is closed is gone, and what is reported is in shape."""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from mappers.sdk.testing.conformance.bench import (
    CYCLE_MS,
    Run,
    declared_of,
    open_link,
    prepared,
    read_all,
)
from mappers.sdk.testing.edgecore import FakeEdgeCore
from mappers.sdk.testing.harness import running
from mappers.sdk.testing.leaks import no_leaks
from mappers.sdk.testing.subject import Subject
from mappers.sdk.testing.watched import WatchedDriver

SHUTDOWN_S: Final = 3.0
CLOSE_S: Final = 1.0
"""What a link may take to close."""


class Endings:
    async def test_closing_leaves_nothing_behind(self, subject: Subject) -> None:
        declared = declared_of(subject)
        properties = tuple(declared.properties.values())
        loop = asyncio.get_running_loop()
        async with no_leaks(grace_s=1.0):
            for silent in (False, True):
                link_manager = open_link(subject, declared)
                link = await link_manager.__aenter__()
                await read_all(subject, link, properties)
                if silent and subject.faults is not None:
                    subject.faults.silent = True
                reading = asyncio.create_task(link.read_many(properties))
                await asyncio.sleep(0.01)
                reading.cancel()
                _, late = await asyncio.wait([reading], timeout=CLOSE_S)
                assert not late, "a cancelled read_many goes on"
                leaving = loop.time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await link_manager.__aexit__(None, None, None)
                assert loop.time() - leaving < CLOSE_S, f"the link did not close within {CLOSE_S} s"
            if subject.faults is not None:
                subject.faults.clear()
            async with FakeEdgeCore(devices=[prepared(subject.device)], models=[subject.model]) as core:
                async with running(subject.driver, core):
                    await core.until(
                        lambda: core.quality(subject.device.id, subject.readable) == "good", subject.patience_s
                    )
                    if subject.faults is not None:
                        subject.faults.silent = True
                    await asyncio.sleep(2 * CYCLE_MS / 1000)
                    leaving = loop.time()
                took_s = loop.time() - leaving
            assert took_s < SHUTDOWN_S, f"the mapper took {took_s:.1f} s to end"
            if subject.faults is not None:
                subject.faults.clear()

    async def test_a_stock_edge_core_takes_the_reports(self, subject: Subject) -> None:
        await subject.set_value(subject.readable, subject.values[0])
        device = prepared(subject.device)
        async with FakeEdgeCore(devices=[device], models=[subject.model], stock=True) as core:
            async with running(subject.driver, core) as mapper:
                run = Run(subject, core, mapper, WatchedDriver(subject.driver), device)
                await run.until_reads(subject.values[0])
                if subject.writable:
                    await core.set_desired(device.id, subject.writable, subject.desired[0])
                    await run.until_applied(subject.desired[0])
                await subject.stop()
                await run.until_lost()
            assert not core.violations, f"a stock edge core minds: {core.violations}"
