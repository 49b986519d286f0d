"""How often a node may be told everything: it asks, and what it costs falls on all nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Budget"]

RATE: Final = 1000.0
"""Objects that are gone through for one node, a second in the long run…"""
BURST: Final = 20_000.0
"""… and at once: what a node of 5,000 devices needs that comes back a few times in a row."""
REQUEST: Final = 10.0
"""What a request costs beside its objects."""
MAX_NODES: Final = 20_000


class Budget:
    """By node, over its connections. Times are the event loop's, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paid_until: dict[str, float] = {}

    def wait_s(self, node: str) -> float:
        """For how long the node is not to be told everything; 0: it may be now."""
        return max(0.0, self._paid_until.get(node, 0.0) - self._clock() - BURST / RATE)

    def spend(self, node: str, objects: int) -> None:
        now = self._clock()
        if len(self._paid_until) >= MAX_NODES:
            self._paid_until = {name: until for name, until in self._paid_until.items() if until > now}
        self._paid_until[node] = max(self._paid_until.get(node, 0.0), now) + (REQUEST + objects) / RATE
