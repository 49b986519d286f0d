"""Which nodes are connected, and since when the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from cloudedge import Message
from cloudedge.message import now_ms

__all__ = ["GRACE_S", "Alone", "Links", "NodeLink", "Writers"]

GRACE_S: Final = 10.0
"""A node away for less is as good as connected: reconnects and restarts of the cloud core are no news."""


MAX_LOST: Final = 10_000
"""Absent nodes whose loss is remembered, the newest ones: nodes come under new names for as long as a process runs."""


class NodeLink(Protocol):
    """A connected node, for sending. Neither method waits or fails."""

    @property
    def node(self) -> str: ...

    def post(self, message: Message, /) -> None:
        """Send once, before object messages that wait."""

    def put_object(self, message: Message, /) -> None:
        """Send until acknowledged, newest per resource."""


class Writers(Protocol):
    """Which of several replicas of the cloud core writes what is known of a node's devices."""

    def writes_for(self, node: str, /) -> bool:
        """Whether this one does. The node is empty for devices that name none."""

    async def granted(self) -> None:
        """Returns when this one may write at all: at once, or when it knows again what the others do."""


class Alone:
    """There is one replica: it writes."""

    def writes_for(self, node: str, /) -> bool:  # noqa: ARG002 - the protocol's
        return True

    async def granted(self) -> None: ...


class Links:
    """Times are the event loop's, in seconds, where they are not said to be epoch milliseconds."""

    def __init__(self, clock: Callable[[], float], *, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._clock = clock
        self._started = clock()
        self._links: dict[str, NodeLink] = {}
        self._lost_at: dict[str, float] = {}
        self._lost_ms: dict[str, int] = {}

    def connected(self, link: NodeLink) -> None:
        """A newer link of a node replaces the one before."""
        self._links[link.node] = link
        self._lost_at.pop(link.node, None)
        self._lost_ms.pop(link.node, None)

    def disconnected(self, link: NodeLink) -> bool:
        """Whether the node has no link any more; False when another took over."""
        if self._links.get(link.node) is not link:
            return False
        del self._links[link.node]
        self._note_loss(link.node)
        return True

    def orphaned(self, node: str) -> None:
        """The replica that had the node is gone. Unless the node is connected here, it may be any moment."""
        if node not in self._links:
            self._note_loss(node)

    def get(self, node: str) -> NodeLink | None:
        return self._links.get(node)

    def lost_ms(self, node: str) -> int:
        """Epoch milliseconds of the loss of an absent node; 0: it has not been here since the start."""
        return self._lost_ms.get(node, 0)

    def grace_left_s(self, node: str) -> float:
        """How long an absent node still counts as connected; 0 when it is, or when its grace is over."""
        if node in self._links:
            return 0.0
        away_since = max(self._started, self._lost_at.get(node, self._started))
        return max(0.0, away_since + self.grace_s - self._clock())

    def _note_loss(self, node: str) -> None:
        self._lost_at.pop(node, None)  # to the end
        self._lost_at[node], self._lost_ms[node] = self._clock(), now_ms()
        while len(self._lost_at) > MAX_LOST:
            oldest = next(iter(self._lost_at))
            del self._lost_at[oldest], self._lost_ms[oldest]
