"""Which reported values are worth a row, and what waits to be written. No I/O and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct

from dmi import DeviceId, Reported

__all__ = ["CONFIRM_MS", "Buffer", "Last", "Point", "is_news"]

CONFIRM_MS: Final = 60_000
"""A value that does not change is kept at most this often: enough to see that the device was there."""
_OVERHEAD_BYTES: Final = 200
"""Of a waiting point beside its texts."""


class Point(Struct, frozen=True, gc=False):
    """One reported value of a property."""

    device: DeviceId
    name: str
    """Of the property."""
    value: str
    type: str
    collected_ms: int
    quality: str

    @property
    def size(self) -> int:
        """Bytes, roughly and never too few."""
        return _OVERHEAD_BYTES + len(self.name) + len(self.value) * (1 if self.value.isascii() else 4)


class Last(Struct, frozen=True, gc=False):
    """What is kept of a property's newest point, to tell whether the next one says anything new."""

    digest: int
    collected_ms: int


def digest(value: str, quality: str) -> int:
    """Not kept anywhere: two processes make different ones."""
    return hash((value, quality))


def is_news(last: Last | None, reported: Reported) -> bool:
    """Whether a report is to be kept: another value or quality, or a confirmation after a while. A side that was never
    read is not.
    """
    if not reported.collected_ms:
        return False
    if last is None or last.digest != digest(reported.value, reported.quality):
        return True
    return abs(reported.collected_ms - last.collected_ms) >= CONFIRM_MS  # also after the clock was set back


class Buffer:
    """Points that wait for the file, oldest first, bounded by number and size; the oldest make room."""

    def __init__(self, *, max_points: int, max_bytes: int) -> None:
        self._points: deque[Point] = deque()
        self._bytes = 0
        self._max_points = max_points
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._points)

    def add(self, point: Point) -> int:
        """How many had to go for it."""
        self._points.append(point)
        self._bytes += point.size
        return self._shrink()

    def take(self, max_bytes: int) -> list[Point]:
        """The oldest, one at least, of no more than `max_bytes` together."""
        taken: list[Point] = []
        size = 0
        while self._points and (not taken or size + self._points[0].size <= max_bytes):
            point = self._points.popleft()
            size += point.size
            taken.append(point)
        self._bytes -= size
        return taken

    def put_back(self, points: Iterable[Point]) -> int:
        """What could not be written waits again, before all others. How many had to go."""
        before = list(points)
        self._points.extendleft(reversed(before))
        self._bytes += sum(point.size for point in before)
        return self._shrink()

    def newest_first(self, device: DeviceId, name: str) -> list[Point]:
        """Those of a device that wait; `name`: of one property, empty: of all."""
        return [p for p in reversed(self._points) if p.device == device and name in ("", p.name)]

    def forget(self, kept: Mapping[DeviceId, Collection[str]]) -> None:
        """Drop those of these devices, but for properties that are to be kept."""
        if not kept:
            return
        points, self._points = self._points, deque()
        for point in points:
            if point.name in kept.get(point.device, (point.name,)):
                self._points.append(point)
            else:
                self._bytes -= point.size

    def _shrink(self) -> int:
        dropped = 0
        while len(self._points) > self._max_points or (self._bytes > self._max_bytes and len(self._points) > 1):
            self._bytes -= self._points.popleft().size
            dropped += 1
        return dropped
