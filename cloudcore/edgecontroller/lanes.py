"""Requests of nodes in bounded lanes, one a node, so that none waits behind another node's slow or many ones."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

__all__ = ["AT_ONCE", "LANE", "Lanes"]

T = TypeVar("T")

AT_ONCE: Final = 4
"""Requests of one node that are worked on at a time; the others of it wait in order."""
LANE: Final = 256
"""Requests of one node that wait. A stock edge core sends 30 a second at most and waits for most answers."""
WAITING: Final = 50_000
"""Requests of all nodes that wait."""
LARGE: Final = 64 * 1024
RATE: Final = 512 * 1024
"""Bytes a second: after a request that is `LARGE` the node's next in its place has to wait so long, or a node that
sends such ones for ever would have most of the process."""
LANE_BYTES: Final = 8 * 1024 * 1024
WAITING_BYTES: Final = 128 * 1024 * 1024


class Lanes(Generic[T]):
    """`add` from anywhere in the loop; each `work` task serves one request after the other until cancelled."""

    def __init__(
        self,
        serve: Callable[[T], Awaitable[None]],
        *,
        at_once: int = AT_ONCE,
        lane: int = LANE,
        size_of: Callable[[T], int] = lambda _: 0,
    ) -> None:
        """`serve` raises nothing. `size_of`: how many bytes a request holds."""
        self._serve = serve
        self._size_of = size_of
        self._bytes: Counter[str] = Counter()
        """By node, of requests that wait."""
        self._all_bytes = 0
        self._at_once = at_once
        self._lane = lane
        self._waiting: dict[str, deque[T]] = {}
        self._running: Counter[str] = Counter()
        self._turns: asyncio.Queue[str] = asyncio.Queue()
        """A node's name for each request of it that may start."""
        self._turns_of: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._count

    @property
    def running(self) -> int:
        return sum(self._running.values())

    def add(self, node: str, request: T) -> bool:
        """False when too many wait already."""
        if len(self._waiting.get(node, ())) >= self._lane or self._count >= WAITING:
            return False
        size = self._size_of(request)
        if self._bytes[node] + size > LANE_BYTES or self._all_bytes + size > WAITING_BYTES:
            return False
        self._waiting.setdefault(node, deque()).append(request)
        self._count += 1
        self._bytes[node] += size
        self._all_bytes += size
        self._offer(node)
        return True

    def _offer(self, node: str) -> None:
        """Give the node a turn if it has something to do with it."""
        busy = self._running[node] + self._turns_of[node]
        if busy < self._at_once and self._turns_of[node] < len(self._waiting.get(node, ())):
            self._turns_of[node] += 1
            self._turns.put_nowait(node)

    async def work(self) -> None:
        while True:
            node = await self._turns.get()
            self._less(self._turns_of, node)
            lane = self._waiting[node]  # there are no more turns of a node than requests of it that wait
            request = lane.popleft()
            self._count -= 1
            self._bytes[node] -= self._size_of(request)
            self._all_bytes -= self._size_of(request)
            if not lane:
                del self._waiting[node], self._bytes[node]
            self._running[node] += 1
            try:
                await self._serve(request)
            finally:
                if (size := self._size_of(request)) > LARGE:
                    asyncio.get_running_loop().call_later(size / RATE, self._done, node)
                else:
                    self._done(node)

    def _done(self, node: str) -> None:
        self._less(self._running, node)
        self._offer(node)

    @staticmethod
    def _less(counts: Counter[str], node: str) -> None:
        counts[node] -= 1
        if not counts[node]:
            del counts[node]
