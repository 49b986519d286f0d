"""Counts by address what somebody may do only so often."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["Attempts"]

MAX_ADDRESSES: Final = 4096
"""Beyond, the address that was heard of longest ago is forgotten."""


class Attempts:
    """So many in so many seconds; then none until those are over."""

    def __init__(self, limit: int, *, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By address: when its window ends, and how many in it."""

    def wait_s(self, address: str) -> int:
        """How many seconds the address has to wait; 0: none."""
        end, count = self._counts.get(address, (0.0, 0))
        left_s = end - self._clock()
        return max(1, round(left_s)) if count >= self._limit and left_s > 0 else 0

    def add(self, address: str) -> None:
        now = self._clock()
        end, count = self._counts.pop(address, (0.0, 0))
        self._counts[address] = (end, count + 1) if end > now else (now + self._window_s, 1)
        if len(self._counts) > MAX_ADDRESSES:
            self._counts.popitem(last=False)
