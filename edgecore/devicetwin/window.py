"""How many messages may be on their way to the cloud at once: as many as it confirms in time. Pure.

What is on its way is old by the time the cloud gets to it, while what waits here is the newest when it leaves. So a
cloud that is behind is not given more than it works off: everything sent beyond that would only be in the way of newer
values, most of all when an overload is over.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Window"]

SMALLEST: Final = 64
FIRST: Final = 256
LARGEST: Final = 8192
GROWTH: Final = 1.5
EARLY_S: Final = 1.25
LATE_S: Final = 2.0
"""What a confirmation may take beyond the fastest. Up to a second of it a cloud that paces its writes waits with it."""


class Window:
    """`size` messages at once. Tell it of each confirmation, of being full, and call `adjust` once a second."""

    def __init__(self) -> None:
        self.size = FIRST
        self._was_full = False
        self._confirmed = 0
        self._took_s = 0.0
        self._fastest_s = float("inf")

    def restart(self) -> None:
        """Another connection: its confirmations may take another time."""
        self._fastest_s = float("inf")
        self._begin()

    def note_full(self) -> None:
        """Something waits for nothing but room."""
        self._was_full = True

    def note_confirmed(self, took_s: float) -> None:
        self._confirmed += 1
        self._took_s += took_s
        self._fastest_s = min(self._fastest_s, took_s)

    def adjust(self, in_flight: int, seconds: float) -> None:
        """Learn from the last `seconds`: grow where it was too small, shrink towards what is worked off in time."""
        if self._confirmed and seconds > 0:
            rate = self._confirmed / seconds
            took_s, will_take_s = self._took_s / self._confirmed, in_flight / rate
            if min(took_s, will_take_s) > self._fastest_s + LATE_S:
                self._resize(max(rate * (self._fastest_s + EARLY_S), self.size / 2))  # a short stall is no measure
            elif self._was_full and max(took_s, will_take_s) <= self._fastest_s + EARLY_S:
                self._resize(self.size * GROWTH)
        self._begin()

    def _resize(self, size: float) -> None:
        self.size = round(min(max(size, SMALLEST), LARGEST))

    def _begin(self) -> None:
        self._was_full = False
        self._confirmed = 0
        self._took_s = 0.0
