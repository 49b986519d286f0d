"""Durations and times as Kubernetes writes them."""

from __future__ import annotations

import re
import time
from typing import Final

__all__ = ["duration_s", "micro_time", "second_time"]

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def duration_s(text: str) -> float:
    """Seconds of a Go duration, such as `10s` or `1m30s`.

    Raises:
        ValueError: It is none, or not longer than nothing.
    """
    parts = _PART.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"{text!r} is no duration such as 10s or 1m30s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all")
    return seconds


def second_time(at: float) -> str:
    """Epoch seconds → `metav1.Time`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def micro_time(at: float) -> str:
    """Epoch seconds → `metav1.MicroTime`, as in a Lease."""
    whole, part = divmod(int(at * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:06d}Z"
