"""When what is due: back-off delays, and the grid of collect cycles. Pure; times are seconds of the loop's clock."""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

__all__ = ["MIN_CYCLE_S", "Schedule", "backoff", "cycle_s", "epoch_ms", "phase_of"]

MIN_CYCLE_S: Final = 0.01
"""The shortest cycle that is kept: a declared 1 ms would do nothing but burn the processor."""


def backoff(first_s: float, cap_s: float, *, jitter: float = 0.2) -> Iterator[float]:
    """Delays that double from `first_s` to `cap_s` and stay there, each up to `jitter` shorter, so that devices lost
    together do not come back together."""
    delay = first_s
    while True:
        yield delay * (1 - jitter * random.random())  # noqa: S311  # spreads load, hides nothing
        delay = min(delay * 2, cap_s)


def cycle_s(cycle_ms: int, default_ms: int = 1000) -> float:
    """A declared cycle in milliseconds, 0 meaning the default, as seconds."""
    return max((cycle_ms or default_ms) / 1000, MIN_CYCLE_S)


def phase_of(id_: str) -> float:
    """0 ≤ x < 1, the same for the same device every time: where in a cycle it starts."""
    return zlib.crc32(id_.encode()) / 2**32


def epoch_ms() -> int:
    return time.time_ns() // 1_000_000


class Schedule:
    """Collect cycles of one device's properties on a fixed grid, so that they do not drift.

    All properties share one phase; cycles that are multiples of each other fall due together and go into one read.
    """

    def __init__(self, phase: float) -> None:
        self._phase = phase
        self._cycles: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._offset_s = 0.0
        self.overruns = 0
        """Cycles that fell due while an earlier one was still being read; they are not made up for."""

    @property
    def cycles(self) -> Mapping[str, float]:
        return self._cycles

    def retime(self, cycles: Mapping[str, float], now: float) -> None:
        """Take over the cycles, in seconds, by property. Those that did not change keep their next due time."""
        self._offset_s = self._phase * min(cycles.values(), default=0.0)
        due = {
            name: self._due[name] if self._cycles.get(name) == cycle else self._after(now, cycle)
            for name, cycle in cycles.items()
        }
        self._cycles, self._due = dict(cycles), due

    def expedite(self, now: float, names: Iterable[str] | None = None) -> None:
        """Make the names, or everything as after a connect, due at once; the grid stays."""
        for name in self._due if names is None else names:
            self._due[name] = now

    def next_due(self) -> float | None:
        return min(self._due.values(), default=None)

    def take_due(self, now: float) -> tuple[str, ...]:
        """What is due by now, moved on to its next time on the grid."""
        names = tuple(name for name, due in self._due.items() if due <= now)
        for name in names:
            cycle = self._cycles[name]
            self.overruns += max(0, math.floor((now - self._due[name]) / cycle))
            self._due[name] = self._after(now, cycle)
        return names

    def _after(self, now: float, cycle: float) -> float:
        ticks = math.floor((now - self._offset_s) / cycle) + 1
        due = self._offset_s + ticks * cycle
        return due if due > now else due + cycle  # rounding may give back `now` itself
