"""How many messages may be on their way to the cloud at once: as many as it confirms in time. Pure.

What is on its way is old by the time the cloud gets to it, while what waits here is the newest when it leaves. So a
cloud that is behind is not given more than it works off: everything sent beyond that would only be in the way of newer
values, most of all when an overload is over.

A new connection is tried with few messages: a cloud that waits for its API server holds some 256 of them for a node,
and reads no more, not even our pings, when it has more. What was learned before counts again at the first confirmation.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Window"]

SMALLEST: Final = 64
FIRST: Final = 256
LARGEST: Final = 8192
UNTRIED: Final = 64
"""On a connection over which nothing was confirmed yet; a quarter of it after each time that all stayed unconfirmed,
down to one.
"""
GROWTH: Final = 1.5
EARLY_S: Final = 1.25
LATE_S: Final = 2.0
"""What a confirmation may take beyond the fastest. Up to a second of it a cloud that paces its writes waits with it."""


class Window:
    """`size` messages at once. Tell it of each confirmation, of being full, and call `adjust` once a second."""

    def __init__(self) -> None:
        self._learned = FIRST
        self._trial = UNTRIED
        """The most while nothing is confirmed; 0: something was."""
        self._was_full = False
        self._confirmed = 0
        self._took_s = 0.0
        self._fastest_s = float("inf")

    @property
    def size(self) -> int:
        return min(self._learned, self._trial or self._learned)

    def restart(self) -> None:
        """Another connection: whether anything is confirmed there, and in what time, is to be seen."""
        self._fastest_s = float("inf")
        self._trial = UNTRIED
        self._begin()

    def note_alive(self) -> None:
        """Something was confirmed, be it what was given up long ago."""
        self._trial = 0

    def note_silence(self) -> None:
        """Nothing was confirmed for as long as a confirmation may take: what is sent again may only add to a heap."""
        self._trial = max(1, (self._trial or UNTRIED) // 4)

    def note_full(self) -> None:
        """Something waits for nothing but room."""
        self._was_full = True

    def note_confirmed(self, took_s: float) -> None:
        self.note_alive()
        self._confirmed += 1
        self._took_s += took_s
        self._fastest_s = min(self._fastest_s, took_s)

    def adjust(self, in_flight: int, seconds: float) -> None:
        """Learn from the last `seconds`: grow where it was too small, shrink towards what is worked off in time."""
        if self._confirmed and seconds > 0:
            rate = self._confirmed / seconds
            took_s, will_take_s = self._took_s / self._confirmed, in_flight / rate
            if min(took_s, will_take_s) > self._fastest_s + LATE_S:
                self._resize(max(rate * (self._fastest_s + EARLY_S), self._learned / 2))  # a short stall is no measure
            elif self._was_full and max(took_s, will_take_s) <= self._fastest_s + EARLY_S:
                self._resize(self._learned * GROWTH)
        self._begin()

    def _resize(self, size: float) -> None:
        self._learned = round(min(max(size, SMALLEST), LARGEST))

    def _begin(self) -> None:
        self._was_full = False
        self._confirmed = 0
        self._took_s = 0.0
