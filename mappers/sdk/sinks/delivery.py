"""Sending a run of records over one connection: in the target's batches, several routes at a time where it can, and
one wrong record found among many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mappers.sdk.sinks.record import AnyRecord, AnyTarget, Route, Sender, SinkRejected, SinkUnavailable

__all__ = ["SEND_DEADLINE_S", "Delivery"]

SEND_DEADLINE_S: Final = 30.0
"""For one `send`, whatever timeouts its library has."""


class Delivery:
    """One run. `done` grows while it goes on, and is right at any moment, also after a cancellation."""

    def __init__(
        self, target: AnyTarget, records: Sequence[AnyRecord], on_rejected: Callable[[str, int], None]
    ) -> None:
        self.done: set[int] = set()
        """Indices of the records that are delivered, or never will be."""
        self.sent = 0
        self._target = target
        self._records = records
        self._on_rejected = on_rejected

    async def run(self, sender: Sender[Route]) -> None:
        """Raises:
        SinkUnavailable: Some are not delivered.
        """
        lines = self._lines()
        workers = min(self._target.parallel, len(lines))
        if workers == 1:
            for line in lines:
                await self._send_line(sender, line)
            return
        failures: list[SinkUnavailable] = []

        async def work() -> None:
            while lines and not failures:
                try:
                    await self._send_line(sender, lines.popleft())
                except SinkUnavailable as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for number in range(workers):
                tasks.create_task(work(), name=f"send {self._target.kind} {number}")
        if failures:
            raise failures[0]

    def _lines(self) -> deque[list[int]]:
        """What must stay in order: all, or where calls may overlap, the records of one route and property."""
        if self._target.parallel == 1 or len(self._records) == 1:
            return deque([list(range(len(self._records)))])
        lines: dict[tuple[Route, str, str], list[int]] = {}
        for index, record in enumerate(self._records):
            key = (record.route, record.sample.device, record.sample.property_name)
            lines.setdefault(key, []).append(index)
        return deque(lines.values())

    async def _send_line(self, sender: Sender[Route], line: list[int]) -> None:
        size = self._target.batch
        batches = deque(line[start : start + size] for start in range(0, len(line), size))
        while batches:
            batch = batches.popleft()
            try:
                async with asyncio.timeout(SEND_DEADLINE_S):
                    await sender.send([self._records[index] for index in batch])
            except TimeoutError:
                raise SinkUnavailable(f"no answer within {SEND_DEADLINE_S:g} s") from None
            except SinkRejected as error:
                if error.count is None and len(batch) > 1:
                    middle = len(batch) // 2
                    batches.extendleft((batch[middle:], batch[:middle]))
                    continue
                unwanted = min(error.count or 1, len(batch))
                self._on_rejected(str(error), unwanted)
                self.sent -= unwanted
            self.sent += len(batch)
            self.done.update(batch)
