"""`reportCycle`: at most one sample of a property in a cycle, the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mappers.sdk.samples import Sample

__all__ = ["Gate"]


class Gate:
    """Lets the first sample through at once; of those that follow within a cycle, the newest when the cycle ends."""

    __slots__ = ("_due", "_emit", "_held", "_loop", "_timer", "cycle_s")

    def __init__(self, cycle_s: float, emit: Callable[[Sample], None]) -> None:
        self.cycle_s = cycle_s
        """0: every sample passes."""
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._held: Sample | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, sample: Sample) -> None:
        now = self._loop.time()
        if self._timer is None and now >= self._due:
            # On the grid while samples keep coming, so that cycles do not stretch.
            late = self._due + self.cycle_s
            self._due = late if late > now else now + self.cycle_s
            self._emit(sample)
            return
        self._held = sample
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._end_cycle)

    def _end_cycle(self) -> None:
        self._due += self.cycle_s
        self.flush()

    def flush(self) -> None:
        """Let pass what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, None
        if held is not None:
            self._emit(held)
