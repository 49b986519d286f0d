"""A sleep that ends at a time or when somebody calls: what every loop of a device's runner waits on.

One object without any asyncio parts while it is idle, because a mapper has several for each of a thousand devices.
"""

from __future__ import annotations

import asyncio

__all__ = ["Alarm"]


class Alarm:
    """For one sleeper. A `ring` while nobody sleeps is kept for the next one who does."""

    __slots__ = ("_rung", "_sleeper")

    def __init__(self) -> None:
        self._sleeper: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        if self._sleeper is None:
            self._rung = True
        else:
            _wake(self._sleeper)

    async def wait(self, at: float | None = None) -> None:
        """Return once it was rung, or at the loop time `at`; None: only when rung. Lets others run at least once."""
        if self._rung:
            self._rung = False
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        self._sleeper = sleeper = loop.create_future()
        timer = loop.call_at(at, _wake, sleeper) if at is not None else None
        try:
            await sleeper
        finally:
            self._sleeper = None
            if timer is not None:
                timer.cancel()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
