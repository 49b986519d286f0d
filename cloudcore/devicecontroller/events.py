"""Kubernetes Events for what happens to devices, few enough for any API server.

Noting one never waits. What many devices of a node go through within a second is one event about the Node. The same
thing that happens to a device again is counted in the event there is, and written at most every half minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from typing import Any, Final, Literal

from msgspec import Struct

from cloudcore.devicecontroller.kinds import DEVICES
from cloudcore.devicecontroller.shown import Shown, utc_text
from cloudcore.kube import Forbidden, Key, KeyedQueue, Kind, KubeClient, KubeError, NotFound, Object, identity
from cloudedge.message import now_ms

__all__ = ["EVENTS", "EventRecorder", "EventSettings", "Transition", "transitions"]

logger = logging.getLogger(__name__)

EVENTS: Final = Kind(group="", version="v1", plural="events", kind="Event")
COMPONENT: Final = "kubetwin-cloudcore"
MAX_MESSAGE_CHARACTERS: Final = 1000
"""The API refuses more than 1024 bytes of an event; most characters are one."""
MAX_NAME_CHARACTERS: Final = 230
"""Of the object's name in that of its event, which may have 253."""
_STATE_REASONS: Final = {
    "online": "DeviceOnline",
    "ok": "DeviceOnline",
    "offline": "DeviceOffline",
    "unhealthy": "DeviceUnhealthy",
    "unknown": "DeviceUnknown",
}
_OTHER_STATE: Final = "DeviceStateChanged"
_REASONS: Final = frozenset(
    {*_STATE_REASONS.values(), _OTHER_STATE, "DesiredFailed", "DesiredApplied", "DeclarationProblem"}
)


class EventSettings(Struct, frozen=True):
    window_s: float = 1.0
    """What happens within it to devices of one node is looked at together; when that is much, until it ends."""
    alone: int = 10
    """So many devices get events of their own; more at once are one event about their node."""
    repeat_s: float = 30.0
    """Least time between two writes about the same."""
    rate: float = 10.0
    """Writes a second in the long run."""
    burst: int = 50
    max_pending: int = 1000
    """Events that wait to be written. What comes beyond is dropped and counted."""
    max_remembered: int = 4096
    """Events written that can be counted on."""


class Transition(Struct, frozen=True):
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class _Subject(Struct, frozen=True):
    """What an event is about."""

    reason: str
    kind: str
    key: Key
    uid: str


class _Event:
    """One about a subject: what waits to be written, and what has been."""

    __slots__ = ("count", "first_ms", "last_ms", "name", "note", "pending", "written_at")

    def __init__(self, note: Transition) -> None:
        self.note = note
        self.count = 0
        self.pending = False
        self.first_ms = self.last_ms = now_ms()
        self.name = ""
        """Of the object in the API; empty: there is none yet."""
        self.written_at = float("-inf")


def transitions(before: Shown, after: Shown) -> list[Transition]:
    """What is worth telling about a device that was shown as `before`. One that was not shown at all is no news."""
    told: list[Transition] = []
    if before.state and after.state != before.state:
        reason = _STATE_REASONS.get(after.state, _OTHER_STATE)
        told.append(
            Transition(
                "Normal" if reason == "DeviceOnline" else "Warning",
                reason,
                f"{after.state}, was {before.state}" + (f": {after.reason}" if after.reason else ""),
            )
        )
    was, is_ = before.reason_of("InSync"), after.reason_of("InSync")
    if is_ == "WriteFailed" and was and was != is_:
        told.append(Transition("Warning", "DesiredFailed", after.conditions["InSync"].message))
    elif is_ == "Applied" and was in ("WriteFailed", "Pending"):
        told.append(Transition("Normal", "DesiredApplied", "the device has every desired value"))
    was, is_ = before.status_of("Declared"), after.status_of("Declared")
    if is_ == "False" and was == "True":
        told.append(Transition("Warning", "DeclarationProblem", after.conditions["Declared"].message))
    return told


class EventRecorder:
    """`note` at any time; `run` in one task."""

    def __init__(self, client: KubeClient, settings: EventSettings | None = None) -> None:
        self.written = 0
        self.dropped = 0
        """Not written: too many waited, or the API did not take them."""
        self.summarised = 0
        """Told in an event about the node instead of one of their own."""
        self._client = client
        self._settings = settings or EventSettings()
        self._loop = asyncio.get_running_loop()
        self._windows: dict[tuple[str, str], dict[_Subject, Transition]] = {}
        """By node and reason: what happened in the window that is open."""
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._waiting = 0
        """In all windows together."""
        self._events: OrderedDict[_Subject, _Event] = OrderedDict()
        self._queue: KeyedQueue[_Subject] = KeyedQueue()
        self._pending = 0
        self._refused = ""

    def note(self, node: str, key: Key, device: Object, told: Transition) -> None:
        """Something happened to a device. `node` may be empty."""
        if self._waiting >= 10 * self._settings.max_pending:
            self.dropped += 1
            return
        group = (node, told.reason)
        window = self._windows.get(group)
        if window is None:
            window = self._windows[group] = {}
            self._timers[group] = self._loop.call_later(self._settings.window_s, self._close_window, group, 0)
        subject = _Subject(told.reason, DEVICES.kind, key, identity(device))
        if subject not in window:
            self._waiting += 1
        window[subject] = told

    def forget(self, key: Key, device: Object) -> None:
        """The device is gone: what was written about it will not be counted on."""
        for reason in _REASONS:
            subject = _Subject(reason, DEVICES.kind, key, identity(device))
            event = self._events.get(subject)
            if event is not None and not event.pending:
                del self._events[subject]

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._queue.close()

    async def run(self) -> None:
        """Write what is due until cancelled."""
        free_at = self._loop.time() - self._settings.burst / self._settings.rate
        while True:
            subject = await self._queue.get()
            try:
                now = self._loop.time()
                free_at = max(free_at, now - self._settings.burst / self._settings.rate) + 1 / self._settings.rate
                await asyncio.sleep(max(0.0, free_at - now))
                await self._write(subject)
            except Exception:  # one event must not stop all others
                logger.exception("event %s of %s could not be written", subject.reason, subject.key)
                self._forget(subject)
            finally:
                self._queue.done(subject)

    def _close_window(self, group: tuple[str, str], before: int) -> None:
        """`before`: how much there was when the window was to be closed last."""
        node, reason = group
        if len(self._windows[group]) > max(before, self._settings.alone) and node:  # and perhaps there is more to come
            before = len(self._windows[group])
            self._timers[group] = self._loop.call_later(self._settings.window_s, self._close_window, group, before)
            return
        window = self._windows.pop(group)
        del self._timers[group]
        self._waiting -= len(window)
        if len(window) <= self._settings.alone or not node:
            for subject, told in window.items():
                self._put(subject, told)
            return
        self.summarised += len(window)
        first = next(iter(window.values()))
        names = ", ".join(str(subject.key) for subject in list(window)[:3])
        message = f"{len(window)} devices, {names} and {len(window) - 3} more: {first.message}"
        # The API keeps events of objects without a namespace in `default`; nodes have their name for a uid in events.
        about = _Subject(reason, "Node", Key("", node), node)
        self._put(about, Transition(first.type, reason, message))

    def _put(self, subject: _Subject, told: Transition) -> None:
        event = self._events.get(subject)
        if event is None:
            if self._pending >= self._settings.max_pending:
                self.dropped += 1
                return
            event = self._events[subject] = _Event(told)
        self._pending += not event.pending
        event.note, event.count, event.last_ms, event.pending = told, event.count + 1, now_ms(), True
        self._events.move_to_end(subject)
        self._queue.add(subject, delay_s=event.written_at + self._settings.repeat_s - self._loop.time())
        while len(self._events) > self._settings.max_remembered:
            oldest = next(iter(self._events))
            if self._events[oldest].pending:
                break
            del self._events[oldest]

    async def _write(self, subject: _Subject) -> None:
        event = self._events.get(subject)
        if event is None or not event.pending:
            return
        event.pending = False
        self._pending -= 1
        namespace = subject.key.namespace or "default"
        try:
            if event.name:
                try:
                    await self._client.patch(EVENTS, Key(namespace, event.name), _changes(event))
                except NotFound:  # the API forgets events after an hour
                    event.name, event.count, event.first_ms = "", 1, event.last_ms
            if not event.name:
                created = _event(subject, event)
                await self._client.create(EVENTS, created)
                event.name = created["metadata"]["name"]
        except KubeError as error:
            self._note_refusal(error)
            self._forget(subject)
            return
        event.written_at = self._loop.time()
        self.written += 1
        if self._refused:
            self._refused = ""
            logger.info("events can be written again")

    def _forget(self, subject: _Subject) -> None:
        event = self._events.pop(subject, None)
        if event is not None:
            self._pending -= event.pending
            self.dropped += 1

    def _note_refusal(self, error: KubeError) -> None:
        trouble = type(error).__name__
        if trouble != self._refused:
            self._refused = trouble
            hint = "; its role needs create and patch of events" if isinstance(error, Forbidden) else ""
            logger.warning("events cannot be written, and are dropped: %s%s", error, hint)


def _changes(event: _Event) -> Object:
    return {
        "count": event.count,
        "lastTimestamp": utc_text(event.last_ms),
        "message": event.note.message[:MAX_MESSAGE_CHARACTERS],
        "type": event.note.type,
    }


def _event(subject: _Subject, event: _Event) -> Object:
    namespace = subject.key.namespace
    about: dict[str, Any] = {"kind": subject.kind, "name": subject.key.name, "uid": subject.uid}
    about["apiVersion"] = DEVICES.api_version if subject.kind == DEVICES.kind else "v1"
    if namespace:
        about["namespace"] = namespace
    name = subject.key.name[:MAX_NAME_CHARACTERS].rstrip("-.")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{name}.{time.time_ns():x}{uuid.uuid4().hex[:4]}",
            "namespace": namespace or "default",
        },
        "involvedObject": about,
        "reason": subject.reason,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
        "firstTimestamp": utc_text(event.first_ms),
        **_changes(event),
    }
