"""Who is next on a line that several devices share. Pure: no clock, no event loop.

Writes go before reads, reads before probes of devices that do not answer. Within each, the devices take turns: none
gets a second one while another has been waiting for its first. Nobody waits for ever: after so many turns of others,
one of the lower rank is let in.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, Literal, TypeVar

__all__ = ["PATIENCE", "Rank", "Turns"]

W = TypeVar("W")

Rank = Literal["write", "read", "probe"]

_ORDER: Final[tuple[Rank, ...]] = ("write", "read", "probe")
PATIENCE: Final[dict[Rank, int]] = {"write": 0, "read": 16, "probe": 64}
"""Turns of a higher rank after which one of this rank is let in all the same. Writes have nobody before them."""


class Turns(Generic[W]):
    """Those who wait, by rank and device; `W` is whatever stands for one that waits, compared by identity."""

    def __init__(self) -> None:
        self._waiting: dict[Rank, dict[str, deque[W]]] = {rank: {} for rank in _ORDER}
        """The first device of a rank is its next; one that was served and waits for more goes to the end."""
        self._passed_over: dict[Rank, int] = dict.fromkeys(_ORDER, 0)

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def waits(self, *ranks: Rank) -> bool:
        return any(self._waiting[rank] for rank in ranks)

    def add(self, waiter: W, device: str, rank: Rank) -> None:
        self._waiting[rank].setdefault(device, deque()).append(waiter)

    def remove(self, waiter: W, device: str, rank: Rank) -> None:
        """Take out one that waits no longer; one that is not there is none."""
        queue = self._waiting[rank].get(device)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        if not queue:
            del self._waiting[rank][device]

    def take(self) -> W | None:
        """Take out the next one; None when nobody waits."""
        rank = self._next_rank()
        if rank is None:
            return None
        self._passed_over[rank] = 0
        for lower in _ORDER[_ORDER.index(rank) + 1 :]:
            self._passed_over[lower] = self._passed_over[lower] + 1 if self._waiting[lower] else 0
        devices = self._waiting[rank]
        device = next(iter(devices))
        queue = devices.pop(device)
        waiter = queue.popleft()
        if queue:
            devices[device] = queue
        return waiter

    def drain(self, device: str | None = None) -> list[W]:
        """Take out all of them, or all of a device."""
        out: list[W] = []
        for devices in self._waiting.values():
            for name in list(devices) if device is None else [device]:
                out += devices.pop(name, ())
        return out

    def _next_rank(self) -> Rank | None:
        present = [rank for rank in _ORDER if self._waiting[rank]]
        patience_ended = (r for r in reversed(present) if r != "write" and self._passed_over[r] >= PATIENCE[r])
        return next(patience_ended, present[0] if present else None)
