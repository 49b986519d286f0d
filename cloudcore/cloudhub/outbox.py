"""What waits for one node: messages sent once and in order, and messages sent until the node has them.

Per object there is one slot: the message in flight and the newest one behind it, so a node that is slow or away for a
moment gets states, not a history. Plain data, driven with the time from outside.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import Final

import msgspec
from msgspec import Struct

from cloudedge import Message

__all__ = ["MAX_BYTES", "MAX_PLAIN", "MAX_RESEND_S", "RESEND_S", "WINDOW", "Acknowledged", "Outbox"]

RESEND_S: Final = 5.0
"""A message without an acknowledgement is sent again after this, as upstream does (channel contract 4.3)…"""
MAX_RESEND_S: Final = 60.0
"""… and then after twice as long each time, up to this: a node that is slow does not get faster by it."""
ANSWER_TRIES: Final = 5
"""For an answer that nobody may be waiting for any more. Upstream's edge core waits 60 s (channel contract 5.6)."""
WINDOW: Final = 32
"""Messages in flight. Upstream's edge drops the oldest of more than 100 unread messages (channel contract 8.1 #1)."""
MAX_PLAIN: Final = 4096
"""Unsent messages of the other class before the node counts as not reading."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""What waits for one node, before it counts as not reading."""
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""Of answers, which a node can have as many of as it asks for."""
OVERHEAD: Final = 1024
"""Of a message that waits, in bytes: a node can have us send it very many small ones."""
_DELETE: Final = "delete"


class Acknowledged(Struct, frozen=True):
    message: Message
    after_s: float
    """Since it was sent for the first time."""


class _Slot:
    __slots__ = ("due", "sent", "sent_at", "tries", "waiting")

    def __init__(self) -> None:
        self.sent: Message | None = None
        self.sent_at = 0.0
        self.due = 0.0
        self.tries = 0
        self.waiting: list[Message] = []
        """The newest of the object, behind the deletion of one that had its name before."""


class _Metadata(Struct, frozen=True):
    uid: str = ""


class _Identified(Struct, frozen=True):
    metadata: _Metadata = _Metadata()


_identified: Final = msgspec.json.Decoder(_Identified)


class Outbox:
    """Takes in messages with `post`, `put_object` and `put_answer`, gives them out with `next`."""

    __slots__ = (
        "_deadlines",
        "_in_flight",
        "_order",
        "_plain",
        "_ready",
        "_resend_s",
        "_slots",
        "_window",
        "answer_bytes",
        "given_up",
        "held_bytes",
        "resent",
        "superseded",
    )

    def __init__(self, *, window: int = WINDOW, resend_s: float = RESEND_S) -> None:
        self.resent = 0
        self.given_up = 0
        """Answers that were never acknowledged."""
        self.superseded = 0
        """Messages that a newer one of their object took the place of, or that were older than one that waits."""
        self.held_bytes = 0
        """Of messages that wait or are in flight."""
        self.answer_bytes = 0
        """Of these, answers to what the node sent."""
        self._window = window
        self._resend_s = resend_s
        self._plain: deque[Message] = deque()
        self._slots: dict[str, _Slot] = {}
        """By resource path: a deleted object and its successor of the same name must not overtake one another. Answers
        have one each, under their id, and so have late deletions (see `_put_deletion`)."""
        self._ready: dict[str, None] = {}
        """Slots with something to send and nothing in flight, oldest first."""
        self._in_flight: dict[str, str] = {}
        """Message id → slot."""
        self._deadlines: list[tuple[float, int, str]] = []
        self._order = count()

    def post(self, message: Message) -> None:
        """Send once, before any object message."""
        self._plain.append(message)
        self._hold(message)

    def put_object(self, message: Message) -> None:
        """Send until acknowledged. Replaces what waits for the same object, unless that is newer: an update that is
        older than what waits or is in flight, or the same, is left out.
        """
        key = message.route.resource
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        elif _is_of_another(slot, message):
            self._put_deletion(slot, message)
            return
        elif not self._make_way(slot, message):
            self.superseded += 1
            return
        slot.waiting.append(message)
        self._hold(message)
        self._made_ready(key, slot)

    def _put_deletion(self, slot: _Slot, message: Message) -> None:
        """Of an object that another one has the name of by now, or had: a slot of its own, and in nobody's way."""
        key = f"{message.route.resource}\n{_uid(message)}"
        if key in self._slots or any(_is_again(before, message) for before in (slot.sent, *slot.waiting)):
            self.superseded += 1
            return
        self._slots[key] = slot = _Slot()
        slot.waiting.append(message)
        self._hold(message)
        self._ready = {key: None, **self._ready}  # before its successor, if that has not been sent

    def put_answer(self, message: Message) -> None:
        """Send until acknowledged, a few times at most."""
        slot = self._slots[message.id] = _Slot()
        slot.waiting.append(message)
        self._hold(message)
        self._made_ready(message.id, slot)

    @property
    def overflowing(self) -> bool:
        too_much = self.held_bytes > MAX_BYTES or self.answer_bytes > MAX_ANSWER_BYTES
        return len(self._plain) > MAX_PLAIN or (too_much and len(self) > 1)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def oldest_s(self, now: float) -> float:
        """For how long the node has owed an acknowledgement; 0: for nothing."""
        return max((now - self._slots[key].sent_at for key in self._in_flight.values()), default=0.0)

    def unsent(self) -> list[Message]:
        """Messages of the class that is sent once."""
        return list(self._plain)

    def next(self, now: float) -> Message | None:
        """The message to write to the socket now, if any."""
        if self._plain:
            message = self._plain.popleft()
            self._release(message)
            return message
        if (again := self._due(now)) is not None:
            return again
        if self._ready and len(self._in_flight) < self._window:
            key = next(iter(self._ready))
            del self._ready[key]
            return self._send(key, self._slots[key], now)
        return None

    def acknowledge(self, message_id: str, now: float) -> Acknowledged | None:
        """The message in flight of that id; None for late and repeated acknowledgements."""
        key = self._in_flight.pop(message_id, None)
        if key is None:
            return None
        slot = self._slots[key]
        message = slot.sent
        assert message is not None, key  # noqa: S101 - it is in flight
        after_s = now - slot.sent_at
        self._drop_sent(slot)
        self._next_of(key, slot)
        return Acknowledged(message, after_s)

    def wait_s(self, now: float) -> float | None:
        """How long until `next` may have something though nothing happens; None: for ever."""
        while self._deadlines and not self._counts(*self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return max(0.0, self._deadlines[0][0] - now) if self._deadlines else None

    def __len__(self) -> int:
        """Messages that wait or are in flight."""
        return len(self._plain) + len(self._slots)

    def _hold(self, message: Message, *, sign: int = 1) -> None:
        size = sign * (message.size + OVERHEAD)
        self.held_bytes += size
        if message.header.parent_msg_id:
            self.answer_bytes += size

    def _release(self, message: Message) -> None:
        self._hold(message, sign=-1)

    def _make_way(self, slot: _Slot, message: Message) -> bool:
        """Take out what `message` replaces; False: something newer than it waits or is in flight."""
        before = slot.waiting[-1] if slot.waiting else slot.sent
        if before is None:
            return True
        deletes = message.route.operation == _DELETE
        same = _uid(before) == _uid(message)
        if same and not deletes and _is_older(message, before):
            return False
        if not slot.waiting:
            return True
        if before.route.operation == _DELETE and not same:
            # Its deletion goes first, unless the node has never heard of it.
            if len(slot.waiting) == 2 or (slot.sent is not None and _uid(slot.sent) != _uid(before)):
                self._drop_newest(slot)
        else:
            self._drop_newest(slot)
        return True

    def _drop_newest(self, slot: _Slot) -> None:
        self._release(slot.waiting.pop())
        self.superseded += 1

    def _drop_sent(self, slot: _Slot) -> None:
        if slot.sent is not None:
            self._release(slot.sent)
        slot.sent, slot.tries = None, 0

    def _made_ready(self, key: str, slot: _Slot) -> None:
        if slot.sent is None:
            self._ready.pop(key, None)  # to the end, behind what was put before it, such as its model
            self._ready[key] = None
        elif slot.tries > 1:  # something newer does not wait for the back-off of what was sent
            self._set_due(slot, slot.sent.id, min(slot.due, slot.sent_at + self._resend_s))

    def _next_of(self, key: str, slot: _Slot) -> None:
        if slot.waiting:
            self._ready[key] = None
        else:
            del self._slots[key]

    def _counts(self, due: float, _order: int, message_id: str) -> bool:
        """Whether a deadline still is one."""
        key = self._in_flight.get(message_id)
        return key is not None and self._slots[key].due == due

    def _due(self, now: float) -> Message | None:
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline = heapq.heappop(self._deadlines)
            if not self._counts(*deadline):
                continue
            key = self._in_flight.pop(deadline[2])
            slot = self._slots[key]
            if slot.sent is not None and slot.sent.header.parent_msg_id and slot.tries >= ANSWER_TRIES:
                self.given_up += 1
                self._drop_sent(slot)
                self._next_of(key, slot)
                continue
            return self._send(key, slot, now)
        return None

    def _send(self, key: str, slot: _Slot, now: float) -> Message:
        """The next message of a slot, or the one sent before, under its old id."""
        if slot.waiting:
            if slot.sent is not None:
                self.superseded += 1
            self._drop_sent(slot)
            slot.sent = slot.waiting.pop(0)
            slot.sent_at = now
        else:
            self.resent += 1
        message = slot.sent
        assert message is not None, key  # noqa: S101 - a slot without either is deleted
        delay_s: float = min(MAX_RESEND_S, self._resend_s * 2 ** min(slot.tries, 16))  # more tries in a day than fit
        slot.tries += 1
        self._in_flight[message.id] = key
        self._set_due(slot, message.id, now + delay_s)
        return message

    def _set_due(self, slot: _Slot, message_id: str, due: float) -> None:
        slot.due = due
        heapq.heappush(self._deadlines, (due, next(self._order), message_id))


def _is_of_another(slot: _Slot, message: Message) -> bool:
    """Whether it deletes another object of the name than the newest of the slot."""
    newest = slot.waiting[-1] if slot.waiting else slot.sent
    return message.route.operation == _DELETE and newest is not None and _uid(newest) != _uid(message)


def _is_again(before: Message | None, message: Message) -> bool:
    """Whether this deletion has been put before."""
    return before is not None and before.route.operation == _DELETE and _uid(before) == _uid(message)


def _is_older(message: Message, before: Message) -> bool:
    """Or the same; after a deletion the same is news again: a model whose last device went is sent for the next one."""
    new, old = _version(message), _version(before)
    if new is None or old is None:
        return False
    return new < old or (new == old and before.route.operation != _DELETE)


def _version(message: Message) -> int | None:
    text = message.header.resourceversion
    return int(text) if text.isascii() and text.isdigit() else None


def _uid(message: Message) -> str:
    try:
        return _identified.decode(message.content).metadata.uid
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""  # no Kubernetes object
