"""A token bucket, for `edgeHub.messageQPS` and `messageBurst`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["TokenBucket"]


class TokenBucket:
    """`take` returns at once while there are tokens, and else in the order of the calls, `rate` times a second."""

    def __init__(self, rate: float, burst: int, *, waited: Callable[[], None] = lambda: None) -> None:
        """`waited` is called for each that has to wait."""
        self._waited = waited
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at = 0.0
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        async with self._turn:
            now = asyncio.get_running_loop().time()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
            self._tokens -= 1
            if self._tokens < 0:
                self._waited()
                await asyncio.sleep(-self._tokens / self._rate)
