"""What the cloud is still to be told, and what is on its way: bookkeeping without I/O, values or queues.

A key is a device and one of two subjects, its twins or its state. Per key at most one message is in flight; whatever
changes meanwhile makes the key due again, once, when that message is confirmed. What is sent is read from the store at
the time of sending, so it is always the newest. No more is on its way at once than the cloud confirms in time
(`window`); what has waited longest goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

from msgspec import Struct

from dmi import DeviceId
from edgecore.devicetwin.window import Window

__all__ = ["InFlight", "Key", "Outbox", "Subject"]

ACK_TIMEOUT_S: Final = 10.0

Subject = Literal["twins", "state"]
_SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)


class Key(Struct, frozen=True, gc=False):
    device: DeviceId
    subject: Subject


class InFlight(Struct, frozen=True):
    """A message that was handed to the channel."""

    key: Key
    message_id: str
    versions: Mapping[str, int]
    """By property; for a state under the empty name."""
    sent_at: float


class Outbox:
    def __init__(self) -> None:
        self._due: dict[Key, None] = {}
        self._again: set[Key] = set()
        """In flight or being read for sending, and changed since."""
        self._taken: set[Key] = set()
        self._in_flight: dict[Key, InFlight] = {}
        self._by_id: dict[str, Key] = {}
        self._unconfirmed_since: dict[Key, float] = {}
        """First sent at; sending again does not count."""
        self._heard_at = 0.0
        """When something was confirmed last, or missed."""
        self.window = Window()

    @property
    def due(self) -> int:
        return len(self._due)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def unconfirmed_since(self, device: DeviceId) -> float | None:
        """When what the cloud has not confirmed of the device was first sent; None: nothing is on its way."""
        times = (self._unconfirmed_since.get(Key(device, subject)) for subject in _SUBJECTS)
        return min((at for at in times if at is not None), default=None)

    def mark(self, key: Key) -> bool:
        """Something of it changed, or is to be said again; whether it goes next, with nothing of it on its way."""
        if key in self._in_flight or key in self._taken:
            self._again.add(key)
            return False
        self._due[key] = None
        return True

    def take(self, limit: int) -> list[Key]:
        """Keys to send now, those that have waited longest first; each must end in `sent` or `nothing_to_send`."""
        room = self.window.size - len(self._in_flight) - len(self._taken)
        if room < min(limit, len(self._due)):
            self.window.note_full()
        keys = [key for key, _ in zip(self._due, range(min(limit, room)), strict=False)]
        for key in keys:
            del self._due[key]
            self._taken.add(key)
        return keys

    def sent(self, flight: InFlight) -> None:
        """Call before the message goes out: its confirmation may be there before the next line runs."""
        self._taken.discard(flight.key)
        self._in_flight[flight.key] = flight
        self._by_id[flight.message_id] = flight.key
        self._unconfirmed_since.setdefault(flight.key, flight.sent_at)

    def nothing_to_send(self, key: Key) -> None:
        """There is nothing, or it could not be sent and is marked again."""
        self._taken.discard(key)
        if key not in self._again:
            self._unconfirmed_since.pop(key, None)
        self._due_again(key)

    def confirmed(self, message_id: str, now: float) -> InFlight | None:
        """None for a message that was given up: its successor carries the same or newer."""
        self._heard_at = now
        self.window.note_alive()
        key = self._by_id.pop(message_id, None)
        if key is None:
            return None
        flight = self._in_flight.pop(key)
        self.window.note_confirmed(now - flight.sent_at)
        self._unconfirmed_since.pop(key, None)
        self._due_again(key)
        return flight

    def expire(self, now: float) -> int:
        """Make due again what was not confirmed in time; returns how many."""
        late = [flight for flight in self._in_flight.values() if now - flight.sent_at >= ACK_TIMEOUT_S]
        if late and now - self._heard_at >= ACK_TIMEOUT_S:
            self._heard_at = now
            self.window.note_silence()
        for flight in late:
            self._give_up(flight)
        return len(late)

    def restart(self, keys: Iterable[Key]) -> None:
        """A new connection: nothing is on its way, and these are to be said."""
        self.window.restart()
        self._heard_at = 0.0
        for flight in list(self._in_flight.values()):
            self._give_up(flight)
        for key in keys:
            self.mark(key)

    def give_up(self, key: Key) -> None:
        """What is on its way of it is not true any more: its confirmation counts for nothing, and it is due again."""
        if flight := self._in_flight.get(key):
            self._give_up(flight)

    def forget(self, device: DeviceId) -> None:
        """The device is gone. A message on its way may still be confirmed, in vain."""
        for key in (Key(device, "twins"), Key(device, "state")):
            self._due.pop(key, None)
            self._again.discard(key)
            self._unconfirmed_since.pop(key, None)
            flight = self._in_flight.pop(key, None)
            if flight is not None:
                del self._by_id[flight.message_id]

    def _give_up(self, flight: InFlight) -> None:
        del self._in_flight[flight.key]
        del self._by_id[flight.message_id]
        self._again.discard(flight.key)
        self._due[flight.key] = None

    def _due_again(self, key: Key) -> None:
        if key in self._again:
            self._again.discard(key)
            self._due[key] = None
