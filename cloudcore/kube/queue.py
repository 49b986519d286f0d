"""A queue of keys, not of events: what is due is looked up when its turn comes, so nothing piles up.

A key is in it once however often it is added, and is never given to two workers at a time. Bounded by the number of
keys.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["KeyedQueue"]

K = TypeVar("K", bound=Hashable)


class KeyedQueue(Generic[K]):
    """`add` keys, now or after a delay; workers `get` one, work, and say `done`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._is_ready: set[K] = set()
        self._running: set[K] = set()
        self._again: dict[K, float] = {}
        """Keys added while a worker had them → when they are due."""
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: K, *, delay_s: float = 0.0) -> None:
        """Have the key worked on after `delay_s`; an earlier time that is set already stays."""
        when = self._loop.time() + max(0.0, delay_s)
        if key in self._running:
            self._again[key] = min(when, self._again.get(key, when))
        elif key not in self._is_ready:
            self._schedule(key, when, now=delay_s <= 0)

    async def get(self) -> K:
        """The next key that is due. Say `done` afterwards, whatever happened."""
        key = await self._ready.get()
        self._is_ready.discard(key)
        self._running.add(key)
        return key

    def done(self, key: K) -> None:
        self._running.discard(key)
        when = self._again.pop(key, None)
        if when is not None:
            self._schedule(key, when, now=when <= self._loop.time())

    def __contains__(self, key: K) -> bool:
        """Whether it is waiting or being worked on."""
        return key in self._due or key in self._is_ready or key in self._running

    def __len__(self) -> int:
        """Keys that are waiting or being worked on."""
        return len(self._due) + len(self._is_ready) + len(self._running)

    @property
    def waiting(self) -> int:
        """Keys that are due, and that no worker has had time for."""
        return len(self._is_ready)

    def close(self) -> None:
        """Forget what is not due yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()
        self._heap.clear()

    def _schedule(self, key: K, when: float, *, now: bool) -> None:
        if now:
            self._due.pop(key, None)  # what the heap still has of it is passed over
            self._is_ready.add(key)
            self._ready.put_nowait(key)
            return
        if self._due.get(key, float("inf")) <= when:
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, key))
        self._arm()

    def _arm(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._timer is not None:
            if self._heap and self._timer.when() <= self._heap[0][0]:
                return  # it rings first, and looks again
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self._is_ready.add(key)
                self._ready.put_nowait(key)
        self._arm()
