"""When what is due: back-off delays, and the grid of collect cycles. Pure; times are seconds of the loop's clock."""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

__all__ = ["MIN_CYCLE_S", "Schedule", "backoff", "cycle_s", "epoch_ms", "phase_of"]

MIN_CYCLE_S: Final = 0.01
"""The shortest cycle that is kept: a declared 1 ms would do nothing but burn the processor."""


SLOT_S: Final = 0.02
"""Devices start in slots of this length: those of one slot are read, and report, in one go, which costs a mapper of a
thousand devices a third less than a thousand wake-ups a second."""


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


wall_clock_ns: Callable[[], int] = time.time_ns
"""Nanoseconds since the epoch. The test kit puts a clock of its own here."""


def epoch_ms() -> int:
    """Now, in milliseconds since the epoch."""
    return wall_clock_ns() // 1_000_000


class _Group:
    """The properties of one cycle."""

    __slots__ = ("cycle", "due", "names")

    def __init__(self, cycle: float, due: float, names: tuple[str, ...]) -> None:
        self.cycle = cycle
        self.due = due
        self.names = names


class Schedule:
    """Collect cycles of one device's properties on a fixed grid, so that they do not drift.

    All properties share one phase; cycles that are multiples of each other fall due together and go into one read.
    """

    __slots__ = ("_cycles", "_groups", "_offset_s", "_phase", "_sooner", "overruns")

    def __init__(self, phase: float) -> None:
        self._phase = phase
        self._cycles: Mapping[str, float] = {}
        self._groups: tuple[_Group, ...] = ()
        self._sooner: dict[str, float] = {}
        """Due before its turn: by property, since when."""
        self._offset_s = 0.0
        self.overruns = 0
        """Cycles that fell due while an earlier one was still being read; they are not made up for."""

    @property
    def cycles(self) -> Mapping[str, float]:
        return self._cycles

    def retime(self, cycles: Mapping[str, float], now: float) -> None:
        """Take over the cycles, in seconds, by property. A cycle that was there before keeps its next due time."""
        self._offset_s = math.floor(self._phase * min(cycles.values(), default=0.0) / SLOT_S) * SLOT_S
        known = {group.cycle: group.due for group in self._groups}
        names: dict[float, list[str]] = {}
        for name, cycle in cycles.items():
            names.setdefault(cycle, []).append(name)
        self._cycles = dict(cycles)
        self._groups = tuple(
            _Group(cycle, known[cycle] if cycle in known else self._after(now, cycle), tuple(members))
            for cycle, members in names.items()
        )
        self._sooner = {name: due for name, due in self._sooner.items() if name in cycles}

    def expedite(self, now: float, names: Iterable[str] | None = None) -> None:
        """Make the names, or everything as after a connect, due at once; the grid stays."""
        self._sooner.update(dict.fromkeys(self._cycles if names is None else names, now))

    def next_due(self) -> float | None:
        grid = min((group.due for group in self._groups), default=None)
        return grid if grid is None or not self._sooner else min(grid, *self._sooner.values())

    def take_due(self, now: float) -> tuple[str, ...]:
        """What is due by now, moved on to its next time on the grid."""
        due: tuple[str, ...] = ()
        for group in self._groups:
            if group.due <= now:
                due += group.names
                self.overruns += max(0, math.floor((now - group.due) / group.cycle))
                group.due = self._after(now, group.cycle)
        if self._sooner:
            sooner = [name for name, at in self._sooner.items() if at <= now]
            for name in sooner:
                del self._sooner[name]
            due += tuple(name for name in sooner if name not in due)
        return due

    def _after(self, now: float, cycle: float) -> float:
        ticks = math.floor((now - self._offset_s) / cycle) + 1
        due = self._offset_s + ticks * cycle
        return due if due > now else due + cycle  # rounding may give back `now` itself
