"""What waits for one node: messages sent once and in order, and object messages, sent until the node has them.

Per object there is one slot: the message in flight and the newest one behind it, so a node that is slow or away for a
moment gets states, not a history. Plain data, driven with the time from outside.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from cloudedge import Message

__all__ = ["RESEND_S", "WINDOW", "Outbox"]

RESEND_S: Final = 5.0
"""An object message without an acknowledgement is sent again after this, as upstream does (channel contract 4.3)."""
WINDOW: Final = 32
"""Object messages in flight. Upstream's edge drops the oldest of more than 100 unread messages (contract 8.1 #1)."""
MAX_PLAIN: Final = 4096
"""Unsent messages of the other class before the node counts as not reading."""


class _Slot:
    __slots__ = ("newest", "sent")

    def __init__(self) -> None:
        self.sent: Message | None = None
        self.newest: Message | None = None


class Outbox:
    """Takes in messages with `post` and `put_object`, gives them out with `next`."""

    def __init__(self, *, window: int = WINDOW, resend_s: float = RESEND_S) -> None:
        self.resent = 0
        self._window = window
        self._resend_s = resend_s
        self._plain: deque[Message] = deque()
        self._slots: dict[str, _Slot] = {}
        """By resource path: a deleted object and its successor of the same name must not overtake one another."""
        self._ready: dict[str, None] = {}
        """Resources with something to send and nothing in flight, oldest first."""
        self._in_flight: dict[str, str] = {}
        """Message id → resource."""
        self._deadlines: deque[tuple[float, str]] = deque()

    def post(self, message: Message) -> None:
        """Send once, before any object message."""
        self._plain.append(message)

    def put_object(self, message: Message) -> None:
        """Send until acknowledged; replaces what waits for the same resource."""
        resource = message.route.resource
        slot = self._slots.setdefault(resource, _Slot())
        slot.newest = message
        if slot.sent is None:
            self._ready.pop(resource, None)  # to the end, behind what was put before it, such as its model
            self._ready[resource] = None

    @property
    def overflowing(self) -> bool:
        return len(self._plain) > MAX_PLAIN

    def next(self, now: float) -> Message | None:
        """The message to write to the socket now, if any."""
        if self._plain:
            return self._plain.popleft()
        if (again := self._due(now)) is not None:
            self.resent += 1
            return again
        if self._ready and len(self._in_flight) < self._window:
            resource = next(iter(self._ready))
            del self._ready[resource]
            return self._send(resource, now)
        return None

    def acknowledge(self, message_id: str) -> bool:
        """Whether the id is of a message in flight; late and repeated acknowledgements are not."""
        resource = self._in_flight.pop(message_id, None)
        if resource is None:
            return False
        slot = self._slots[resource]
        slot.sent = None
        if slot.newest is None:
            del self._slots[resource]
        else:
            self._ready[resource] = None
        return True

    def wait_s(self, now: float) -> float | None:
        """How long until `next` may have something though nothing happens; None: for ever."""
        while self._deadlines and self._deadlines[0][1] not in self._in_flight:
            self._deadlines.popleft()
        return max(0.0, self._deadlines[0][0] - now) if self._deadlines else None

    def __len__(self) -> int:
        """Messages that wait or are in flight."""
        return len(self._plain) + len(self._slots)

    def _due(self, now: float) -> Message | None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, message_id = self._deadlines.popleft()
            resource = self._in_flight.pop(message_id, None)
            if resource is not None:
                return self._send(resource, now)
        return None

    def _send(self, resource: str, now: float) -> Message:
        """The newest message of a slot, or the one sent before, under its old id."""
        slot = self._slots[resource]
        message = slot.newest or slot.sent
        assert message is not None, resource  # noqa: S101 - a slot without either is deleted
        slot.sent, slot.newest = message, None
        self._in_flight[message.id] = resource
        self._deadlines.append((now + self._resend_s, message.id))
        return message
