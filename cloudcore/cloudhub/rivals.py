"""Notices that two machines seem to have one node's name."""

from __future__ import annotations

from typing import Final

__all__ = ["Rivals"]

WITHIN_S: Final = 600.0
TIMES: Final = 4
"""A machine that starts anew, or a link that is cut, takes over once or twice. Two machines go on, with pauses."""
MAX_NODES: Final = 1024
"""Remembered; the node that was first seen longest ago gives way."""


class Rivals:
    """Counts, by node, how often a connection took the place of one that was in use."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[float, int]] = {}
        """Since when is counted, and how many times."""

    def suspect(self, node: str, now: float) -> bool:
        """Count one more. True at the `TIMES`th within `WITHIN_S` seconds, once in that time."""
        since, times = self._nodes.get(node, (now, 0))
        if now - since > WITHIN_S:
            since, times = now, 0
            del self._nodes[node]
        self._nodes[node] = since, times + 1
        if len(self._nodes) > MAX_NODES:
            del self._nodes[next(iter(self._nodes))]
        return times + 1 == TIMES
