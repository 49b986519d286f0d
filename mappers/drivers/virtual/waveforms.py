"""Waveforms: pure functions from time to value, made once per property and cheap to call.

The same settings, seed and time give the same value, in every process.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from dmi.types import ModelProperty
from dmi.values import Value, parse_value
from mappers.drivers.virtual.settings import VirtualVisitor, start_value

__all__ = ["Sampler", "Table", "follow", "sampler"]

Sampler = Callable[[float], Value]
"""Epoch seconds → value.

Raises:
    ConversionError: A row of the replayed file does not hold a value of the property's type.
"""

_WALK_OCTAVES: Final = 4
_FINITE_STEPS: Final = 2**53
"""Where floats stop telling neighbouring whole numbers apart."""


class Table(Struct, frozen=True):
    """One column of a CSV file. With `times`, seconds from the first row, rising; without, a row a period."""

    values: Sequence[str]
    times: Sequence[float] = ()

    def at(self, elapsed_s: float, period_s: float) -> str:
        """The value after so many seconds; after the last row's share of time it starts over."""
        if not self.times:
            return self.values[int(elapsed_s // period_s) % len(self.values)]
        # The last row lasts as long as the one before it did.
        last_s = self.times[-1] - self.times[-2] if len(self.times) > 1 else period_s
        return self.values[bisect_right(self.times, elapsed_s % (self.times[-1] + last_s)) - 1]


_NO_TABLE: Final = Table(())


def sampler(
    visitor: VirtualVisitor, model: ModelProperty, *, seed: str, started_s: float, table: Table = _NO_TABLE
) -> Sampler:
    """The waveform of a resolved visitor. `seed` is any text, `started_s` the epoch time `counter` and `replay` begin
    at, `table` the file of `replay`."""
    if visitor.waveform == "constant":
        held = start_value(visitor, model)
        return lambda _: held
    period_s = visitor.period / 1000
    if visitor.waveform == "replay":
        return lambda now_s: parse_value(table.at(max(now_s - started_s, 0.0), period_s), model.type)
    if visitor.waveform == "counter":
        return _typed(_counter(visitor, period_s, started_s), visitor, model, low=0.0, high=0.0)
    low = visitor.minimum or 0.0
    high = visitor.maximum if visitor.maximum is not None else low + 100
    return _typed(_wave(visitor, period_s, low, high, seed), visitor, model, low=low, high=high)


def follow(value: float, goal: float, elapsed_s: float, lag_s: float) -> float:
    """Where a first-order lag is after `elapsed_s`: 63 % of the way after `lag_s`."""
    return goal + (value - goal) * math.exp(-elapsed_s / lag_s) if lag_s > 0 else goal


def _typed(
    number: Callable[[float], float], visitor: VirtualVisitor, model: ModelProperty, *, low: float, high: float
) -> Sampler:
    decimals = visitor.decimals
    match model.type:
        case "INT":
            return lambda now_s: round(number(now_s))
        case "BOOLEAN":
            middle = (low + high) / 2
            return lambda now_s: number(now_s) > middle
        case _:
            return lambda now_s: round(number(now_s), decimals)


def _wave(visitor: VirtualVisitor, period_s: float, low: float, high: float, seed: str) -> Callable[[float], float]:
    phase, span = visitor.phase, high - low
    match visitor.waveform:
        case "sine":
            middle, half, turn, sin = (low + high) / 2, span / 2, 2 * math.pi, math.sin
            return lambda now_s: middle + half * sin(turn * ((now_s / period_s + phase) % 1.0))
        case "ramp":
            return lambda now_s: low + span * ((now_s / period_s + phase) % 1.0)
        case "triangle":
            return lambda now_s: low + span * (1 - abs(2 * ((now_s / period_s + phase) % 1.0) - 1))
        case "square":
            return lambda now_s: high if (now_s / period_s + phase) % 1.0 < 0.5 else low
        case _:
            return _walk(period_s, phase, low, span, zlib.crc32(f"{seed}/{visitor.seed}".encode()))


def _counter(visitor: VirtualVisitor, period_s: float, started_s: float) -> Callable[[float], float]:
    low, high, step = visitor.minimum or 0.0, visitor.maximum, visitor.step

    def count(now_s: float) -> float:
        counted = step * min(math.floor(max(now_s - started_s, 0.0) / period_s + visitor.phase), _FINITE_STEPS)
        return low + (counted if high is None else counted % (high - low))

    return count


def _walk(period_s: float, phase: float, low: float, span: float, seed: int) -> Callable[[float], float]:
    """A wandering value that needs no memory: noise of periods that double, each with half the weight of the longer
    one, between random points that follow from seed and time."""
    weights = [2.0**octave for octave in range(_WALK_OCTAVES)]
    total = sum(weights)

    def walk(now_s: float) -> float:
        tick = math.floor(now_s / period_s + phase)  # between two steps the value stands
        height = 0.0
        for octave, weight in enumerate(weights):
            place, offset = divmod(tick, 1 << octave)
            share = offset / (1 << octave)
            height += weight * ((1 - share) * _noise(place, octave, seed) + share * _noise(place + 1, octave, seed))
        return low + span * height / total

    return walk


def _noise(place: int, octave: int, seed: int) -> float:
    """0 ≤ x < 1, seemingly at random, always the same for the same three numbers (the mixer of SplitMix64)."""
    mixed = (place * 0x9E3779B97F4A7C15 + octave * 0xD1B54A32D192ED03 + seed * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) / 2**64
