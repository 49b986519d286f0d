"""What reading a device has taught: addresses it refuses, how much it takes at once, what it leaves unanswered. Pure.

It makes reads cheaper and never changes what is read, so that it may be kept for longer than a link. Times are the
loop's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mappers.drivers.modbus.plan import MAX_GAP, Address, ReadRequest, RequestKey, gaps, plan_reads
from mappers.drivers.modbus.settings import BITS, MAX_BITS, MAX_REGISTERS, ModbusVisitor
from mappers.sdk.schedule import backoff

__all__ = ["Doubt", "Learned"]

RETRY_S: Final = (1.0, 60.0)
SURE_AFTER: Final = 4
"""Misses in a row of one request, while the device answered others, before less is asked for at once: fewer can be
chance on a noisy line."""
_MOST_DOUBTS: Final = 1024


class Doubt:
    """A request that was left unanswered."""

    def __init__(self, misses: int = 1) -> None:
        self.misses = misses
        """In a row."""
        self.until = 0.0
        """When it is tried again."""
        self._delays: Iterator[float] = backoff(*RETRY_S)

    def again(self, now: float) -> None:
        self.misses += 1
        self.until = now + next(self._delays)


class Learned:
    """About one device, for all its links.

    Args:
        most: Registers it takes at once, as its settings have it; of bits 16 times as many.
        gap: Unwanted registers to read along, as its settings have it.
    """

    def __init__(self, most: int = MAX_REGISTERS, gap: int = MAX_GAP) -> None:
        self.holes: set[Address] = set()
        """Refused: no request of several properties covers one."""
        self.cuts: set[Address] = set()
        """Where a new request has to begin."""
        self.most = most
        self.most_bits = min(16 * most, MAX_BITS)
        self.doubts: dict[RequestKey, Doubt] = {}
        self.silent = False
        """The last request had no answer, and was none that the device ignores."""
        self.next_sample = 0
        """Which property is read next to see whether it is there."""
        self._gap = gap

    def plan(self, items: Iterable[tuple[str, ModbusVisitor]]) -> tuple[ReadRequest, ...]:
        return plan_reads(
            items, holes=self.holes, cuts=self.cuts, most=self.most, most_bits=self.most_bits, gap=self._gap
        )

    def too_long(self, request: ReadRequest) -> int:
        """The device refuses no part of it, but all at once. How much is asked for from now on."""
        if request.register in BITS:
            self.most_bits = most = max(1, min(self.most_bits, request.count) // 2)
        else:
            self.most = most = max(1, min(self.most, request.count) // 2)
        return most

    def missed(self, request: ReadRequest) -> None:
        """It was not answered, nor was anything behind it asked: most likely the device is away."""
        self.silent = True
        if len(self.doubts) >= _MOST_DOUBTS:  # of plans that are no more
            self.doubts.clear()
        self.doubts.setdefault(request.key, Doubt())

    def answered(self, request: ReadRequest) -> None:
        self.doubts.pop(request.key, None)

    def ignored(self, request: ReadRequest, now: float) -> bool:
        """It was not answered, while the device answers others; True if reads have to be planned anew. First nothing
        unwanted is read along, then it is halved, until what is ignored is asked for alone."""
        doubt = self.doubts.setdefault(request.key, Doubt(0))
        doubt.again(now)
        if doubt.misses < SURE_AFTER or len(request.items) == 1:
            return False
        if between := set(gaps(request)):
            self.holes |= between
        else:
            middle = request.items[len(request.items) // 2][1]
            self.cuts.add((middle.register, middle.offset))
        del self.doubts[request.key]
        self.doubts.update((part.key, Doubt(SURE_AFTER - 1)) for part in self.plan(request.items))
        return True
