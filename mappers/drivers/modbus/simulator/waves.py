"""How a simulated value moves. Pure."""

from __future__ import annotations

import math
import random
from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["Wave", "WaveKind", "value_at"]

WaveKind = Literal["sine", "ramp", "random-walk", "counter", "square"]


class Wave(Struct, frozen=True):
    """A value between `low` and `high`, in the property's unit."""

    kind: WaveKind
    low: float = 0.0
    high: float = 100.0
    period_s: Annotated[float, Meta(gt=0)] = 60.0
    """One round of a sine, a ramp (from low to high, and at once back) or a square (half of it low, half high)."""
    step: float = 1.0
    """How far a counter goes each move, beginning again at low past high; and a random walk at most."""


def value_at(wave: Wave, elapsed_s: float, previous: float | None, rng: random.Random) -> float:
    """The value that long after the start.

    Args:
        previous: The value before; None: there is none yet. Counters and random walks go on from it.
    """
    low, high = wave.low, wave.high
    phase = elapsed_s / wave.period_s % 1.0
    match wave.kind:
        case "sine":
            return low + (high - low) * (1 + math.sin(2 * math.pi * phase)) / 2
        case "ramp":
            return low + (high - low) * phase
        case "square":
            return low if phase < 0.5 else high
        case "counter":
            if previous is None:
                return low
            following = previous + wave.step
            return following if low <= following <= high else low
        case "random-walk":
            if previous is None:
                return rng.uniform(low, high)
            return min(max(previous + rng.uniform(-wave.step, wave.step), low), high)
