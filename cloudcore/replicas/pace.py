"""How fast Leases of nodes are written: when thousands of nodes come for the first time, the API server must go on
answering everybody else, and above all the renewals that say that this replica lives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["Pace"]

MOST: Final = 32
SLOW_S: Final = 0.5
"""An API server that takes longer to answer has enough to do."""


class Pace:
    """`async with pace.turn():` around each write. In order of asking, and as many at a time as are answered quickly:
    one more for every round of quick answers, half as many after a slow one, one at least.
    """

    def __init__(self, settled: Callable[[], Awaitable[None]], *, most: int = MOST, slow_s: float = SLOW_S) -> None:
        """`settled` returns when the renewals on their way, or in the watch's, have come: a turn begins after it."""
        self._settled = settled
        self._most = most
        self._slow_s = slow_s
        self._clock = asyncio.get_running_loop().time
        self._width = float(most)
        self._slowed_at = float("-inf")
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def width(self) -> int:
        """Writes at a time, now."""
        return int(self._width)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One write, with whatever is read for it."""
        await self._enter()
        try:
            await self._settled()
            began = self._clock()
            try:
                yield
            finally:
                self._learn(began)
        finally:
            self._running -= 1
            self._admit()

    async def _enter(self) -> None:
        if self._running < self.width and not self._waiting:
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was our turn already
                self._running -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._running < self.width:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._running += 1

    def _learn(self, began: float) -> None:
        now = self._clock()
        if now - began <= self._slow_s:
            self._width = min(float(self._most), self._width + 1 / self._width)
        elif began > self._slowed_at:  # those that were on their way when it was noticed say nothing new
            self._slowed_at = now
            self._width = max(1.0, self._width / 2)
