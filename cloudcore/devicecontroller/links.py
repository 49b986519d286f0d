"""Which nodes are connected, and since when the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from cloudedge import Message

__all__ = ["GRACE_S", "Links", "NodeLink"]

GRACE_S: Final = 10.0
"""A node away for less is as good as connected: reconnects and restarts of the cloud core are no news."""


class NodeLink(Protocol):
    """A connected node, for sending. Neither method waits or fails."""

    @property
    def node(self) -> str: ...

    def post(self, message: Message, /) -> None:
        """Send once, before object messages that wait."""

    def put_object(self, message: Message, /) -> None:
        """Send until acknowledged, newest per resource."""


class Links:
    """Times are the event loop's, in seconds."""

    def __init__(self, clock: Callable[[], float], *, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._clock = clock
        self._started = clock()
        self._links: dict[str, NodeLink] = {}
        self._lost_at: dict[str, float] = {}

    def connected(self, link: NodeLink) -> None:
        """A newer link of a node replaces the one before."""
        self._links[link.node] = link
        self._lost_at.pop(link.node, None)

    def disconnected(self, link: NodeLink) -> bool:
        """Whether the node has no link any more; False when another took over."""
        if self._links.get(link.node) is not link:
            return False
        del self._links[link.node]
        self._lost_at[link.node] = self._clock()
        return True

    def grace_left_s(self, node: str) -> float:
        """How long an absent node still counts as connected; 0 when it is, or when its grace is over."""
        if node in self._links:
            return 0.0
        away_since = max(self._started, self._lost_at.get(node, self._started))
        return max(0.0, away_since + self.grace_s - self._clock())

    def trouble(self, node: str) -> str:
        """Why nothing can come from the node; empty when something can."""
        if node in self._links or self.grace_left_s(node) > 0:
            return ""
        return f'node "{node}" is not connected to CloudHub'
