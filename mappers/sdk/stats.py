"""What is counted of one device while it runs. Plain numbers with one writer, the device's runner; `web` shows them."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

__all__ = ["BUCKETS_S", "DeviceStats", "Histogram"]

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets, seconds; one more is open."""


class Histogram:
    """Durations by bucket."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, duration_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.total_s += duration_s

    def add(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s


class DeviceStats:
    """All counters only grow."""

    __slots__ = (
        "driver_errors",
        "leaked_tasks",
        "overruns",
        "read_failures",
        "read_latency",
        "reads",
        "reconnects",
        "reported_ms",
        "restarts",
        "values_bad",
        "values_good",
        "write_failures",
        "writes",
    )

    def __init__(self) -> None:
        self.reads = 0
        """Collect cycles carried out: calls of `read_many`."""
        self.read_failures = 0
        """Of those, the ones that brought no good value."""
        self.read_latency = Histogram()
        self.values_good = 0
        self.values_bad = 0
        self.writes = 0
        """Attempts to write a desired value, or one from the HTTP API."""
        self.write_failures = 0
        self.overruns = 0
        """Collect cycles left out because the one before took too long."""
        self.reconnects = 0
        """Links opened after the first."""
        self.driver_errors = 0
        """Exceptions that no driver should raise, calls that did not end, and links whose tasks piled up."""
        self.restarts = 0
        """Times the device's runtime itself failed and was started over."""
        self.leaked_tasks = 0
        """Tasks the driver left running behind a closed link; they were cancelled."""
        self.reported_ms = 0
        """Epoch milliseconds of the oldest value in the last report the edge core took; 0: none yet."""
