"""Watch streams: from a point in the history to now and on, one bounded queue for each watcher.

A watcher that reads too slowly is dropped: its connection is cut and counted, and the client lists again. It never
slows a write or another watcher down.

Reference: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from kubetwin.apiserver.items import Event, Item, watch_frame
from kubetwin.apiserver.selectors import Match
from kubetwin.apiserver.store import Store
from kubetwin.apiserver.views import View

logger = logging.getLogger(__name__)

QUEUE_EVENTS = 8192
QUEUE_BYTES = 8 << 20
CHUNK_BYTES = 64 << 10
BOOKMARK_INTERVAL_S = 30.0


class Watcher:
    """One watch: its filter, its view and what it has not sent yet."""

    def __init__(
        self, store: Store, view: View, namespace: str | None, match: Match | None, drop: Callable[[], None]
    ) -> None:
        self._store = store
        self._view = view
        self._namespace = namespace
        self._match = match
        self._drop = drop
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._ready = asyncio.Event()
        self._state = store.state(view.target.kind.resource)
        self.dropped = False
        self.closed = False

    def attach(self) -> None:
        """Start taking events."""
        self._state.listeners.add(self._take)

    def close(self) -> None:
        """Take no more events and end the stream once the queue is sent."""
        self._state.listeners.discard(self._take)
        self.closed = True
        self._ready.set()

    def _matches(self, item: Item) -> bool:
        return self._match is None or self._match(item)

    def frame(self, event: Event) -> bytes | None:
        """The line this watcher gets for an event, if any."""
        if self._namespace is not None and event.item.namespace != self._namespace:
            return None
        if self._match is None:
            return self._view.event(event.type, event)
        seen = event.seen_through(self._match)
        return self._view.event(seen[0], event) if seen is not None else None

    def _take(self, event: Event) -> None:
        try:
            frame = self.frame(event)
        except Exception:  # a stream with a gap is worse than none, and the write must be answered all the same
            logger.exception("a watch of %s is cut at version %d", event.item.resource, event.version)
            self._cut()
            return
        if frame is None:
            return
        if len(self._queue) >= QUEUE_EVENTS or (self._queue and self._queued_bytes + len(frame) > QUEUE_BYTES):
            self._cut()
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._ready.set()

    def _cut(self) -> None:
        self.dropped = True
        self._queue.clear()
        self.close()
        self._drop()

    def existing(self) -> Iterator[bytes]:
        """An ADDED line for each object there is now. Taken at the call, made into lines as they are sent."""
        items = list(self._state.sorted_items(self._namespace))
        return (watch_frame("ADDED", self._view.one(item.data)) for item in items if self._matches(item))

    def missed(self, version: int) -> Iterator[bytes]:
        """The lines of what happened after `version`; raises ApiError 410 at the call when that is too long ago."""
        events = self._store.events_since(self._view.target.kind.resource, version)
        return (frame for event in events if (frame := self._frame_of_history(event)) is not None)

    def _frame_of_history(self, event: Event) -> bytes | None:
        frame = self.frame(event)
        event.forget_frame()
        return frame

    async def stream(
        self, first: Iterator[bytes], write: Callable[[bytes], Awaitable[None]], *, timeout_s: float, bookmarks: bool
    ) -> None:
        """Send `first`, then events as they come, until the timeout, `close`, or a failed write."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        for chunk in _chunks(first):
            await write(chunk)
        next_bookmark = asyncio.get_running_loop().time() + BOOKMARK_INTERVAL_S
        while not self.dropped:
            if self._queue:
                await write(self._drain())
                continue
            if self.closed:
                return
            self._ready.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, next_bookmark) if bookmarks else deadline):
                    await self._ready.wait()
            now = asyncio.get_running_loop().time()
            if now >= deadline and not self._queue:
                return
            if bookmarks and now >= next_bookmark and not self._queue:
                await write(self._view.bookmark(self._store.version))
                next_bookmark = now + BOOKMARK_INTERVAL_S

    def _drain(self) -> bytes:
        chunk: list[bytes] = []
        size = 0
        while self._queue and size < CHUNK_BYTES:
            frame = self._queue.popleft()
            size += len(frame)
            chunk.append(frame)
        self._queued_bytes -= size
        return b"".join(chunk)


def _chunks(frames: Iterator[bytes]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    size = 0
    for frame in frames:
        chunk.append(frame)
        size += len(frame)
        if size >= CHUNK_BYTES:
            yield b"".join(chunk)
            chunk, size = [], 0
    if chunk:
        yield b"".join(chunk)
