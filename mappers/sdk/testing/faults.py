"""What can go wrong between a driver and its device; switched while a test runs."""

from __future__ import annotations

__all__ = ["Faults"]


class Faults:
    """Switches that `TcpFaultProxy`, `UdpFaultProxy`, `PtyFaultProxy` and `FaultyDriver` look at. All off at first.

    Set the attributes at any time; they hold from then on. `clear` switches all of them off.
    """

    delay_s: float
    """Each reply comes so much later."""
    drop: bool
    """Replies get lost; requests arrive."""
    drop_requests: bool
    """Requests get lost."""
    garbage: bool
    """Replies are replaced by random bytes of the same number."""
    corrupt: bool
    """One bit of every reply is turned over."""
    truncate: bool
    """Only the first half of every reply arrives."""
    silent: bool
    """Half-open: connections stay, new ones are taken, and nothing passes either way."""
    refuse: bool
    """New connections are refused, those there are stay."""
    bytes_per_s: float
    """Replies come no faster than this; 0: as fast as they can."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.delay_s = 0.0
        self.drop = self.drop_requests = False
        self.garbage = self.corrupt = self.truncate = False
        self.silent = self.refuse = False
        self.bytes_per_s = 0.0
