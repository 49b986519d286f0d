"""What this edge core has asked the cloud, to tell answers in time from those that come late (channel contract 5.6)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cloudedge import Message

__all__ = ["TIMEOUT_S", "Asked"]

TIMEOUT_S: Final = 60.0
"""Upstream's `remoteQueryTimeout`."""
_MOST: Final = 1024
"""Remembered; answers to what was asked before the last so many count as late."""


class Asked:
    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()

    def note(self, message: Message, now: float) -> None:
        """It is being sent. Messages of group `meta` are questions; an event is one that nobody answers."""
        if message.route.group != "meta":
            return
        self._at[message.id] = now
        while len(self._at) > _MOST:
            self._at.popitem(last=False)

    def is_late(self, reply: Message, now: float) -> bool:
        """Whether nobody can be waiting for it any more: too old, answered already, or of before a restart."""
        at = self._at.pop(reply.header.parent_msg_id, None)
        return at is None or now - at > TIMEOUT_S
