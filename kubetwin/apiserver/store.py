"""All objects in memory, their recent events, and the one place where resourceVersions are given out.

Two views of the same objects: *committed* (on disk, what reads and watches see) and *staged* (newest, including writes
on their way to disk, what the next write is computed from). A write is staged and numbered in the event loop without
an await in between, so writers never race; readers see it once it is durable. Should the disk refuse it, every write
still staged fails with it and the staged view falls back to the committed one.

Each resource keeps a ring of its newest events, bounded in count and bytes. Watches resume from it, and lists of an
older resourceVersion are made by undoing it. The ring is on disk too (see `storage`), so both work after a
restart.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kubetwin.apiserver import errors
from kubetwin.apiserver.items import Event, EventType, Item, JsonObject, Key, encode, make_item
from kubetwin.apiserver.storage import Row, Storage, Write

logger = logging.getLogger(__name__)

RING_EVENTS = 4096  # per resource: 40 s of a hundred writes a second
RING_BYTES = 8 << 20
MAX_OBJECT_BYTES = 3 << 20  # as a request body; patches must not grow an object past it, step by step


@dataclass(slots=True)
class ResourceState:
    """The committed objects of one resource, in key order, and its newest events."""

    items: dict[Key, Item] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    ring: deque[Event] = field(default_factory=deque)
    ring_bytes: int = 0
    compacted: int = 0  # events up to this version are gone
    listeners: set[Callable[[Event], None]] = field(default_factory=set)

    def apply(self, event: Event) -> None:
        """Take one committed event into objects and ring."""
        key = event.item.key
        if event.type == "DELETED":
            if self.items.pop(key, None) is not None:
                del self.keys[bisect.bisect_left(self.keys, key)]
        else:
            if key not in self.items:
                bisect.insort(self.keys, key)
            self.items[key] = event.item
        self.ring.append(event)
        self.ring_bytes += len(event.item.data)

    def evict(self) -> Iterator[int]:
        """Shorten the ring to its bounds; yields the versions of the rows that nobody needs any more."""
        while len(self.ring) > RING_EVENTS or (self.ring_bytes > RING_BYTES and len(self.ring) > 1):
            event = self.ring.popleft()
            self.ring_bytes -= len(event.item.data)
            self.compacted = event.version
            if event.previous is not None:
                yield event.previous.version
            if event.type == "DELETED":
                yield event.version

    def sorted_items(self, namespace: str | None) -> Iterator[Item]:
        """Items by (namespace, name), of one namespace or all."""
        keys: Iterable[Key] = self.keys
        if namespace is not None:
            start = bisect.bisect_left(self.keys, (namespace, ""))
            stop = bisect.bisect_left(self.keys, (namespace + "\0", ""))
            keys = self.keys[start:stop]
        return (self.items[key] for key in keys)


class Store:
    """See the module's docstring. All methods belong to the event loop that called `open`."""

    def __init__(self, path: Path) -> None:
        self._storage = Storage(path, self._written)
        self._loop = asyncio.get_running_loop()
        self._resources: dict[str, ResourceState] = {}
        self._by_uid: dict[str, Item] = {}
        self._staged: dict[tuple[str, Key], tuple[Item | None, asyncio.Future[None]]] = {}
        self._in_flight: deque[tuple[Event, asyncio.Future[None]]] = deque()
        self._forget: list[int] = []
        self._marks: dict[str, int] = {}
        self._epoch = 0
        self._last = 0  # newest version given out
        self.version = 0  # newest version committed
        self.observers: list[Callable[[Event], None]] = []  # called for each committed event, before the watches

    def open(self) -> None:
        """Load the file and start writing."""
        rows, marks = self._storage.load()
        for resource, mark in marks.items():
            self.state(resource).compacted = mark
        previous: dict[int, Item] = {}
        for row in rows:
            state = self.state(row.resource)
            item = make_item(row.resource, (row.namespace, row.name), row.version, bytes(row.data))
            before = previous.pop(row.previous, None)
            if before is not None and row.version <= state.compacted:
                self._forget.append(before.version)  # its deletion was lost with a refused write
            if not row.deleted:
                previous[row.version] = item
            elif row.version <= state.compacted:
                self._forget.append(row.version)
            kind: EventType = "DELETED" if row.deleted else ("ADDED" if row.previous == 0 else "MODIFIED")
            state.apply(Event(kind, item, before))
            if row.version <= state.compacted:
                state.ring.clear()
                state.ring_bytes = 0
        for state in self._resources.values():
            self._by_uid.update({item.uid: item for item in state.items.values()})
        self._last = self.version = max(itertools.chain((row.version for row in rows), marks.values()), default=0)
        self._storage.start()

    def close(self) -> None:
        """Finish the writes under way and close the file."""
        self._storage.close()

    def state(self, resource: str) -> ResourceState:
        """The committed objects of a resource."""
        found = self._resources.get(resource)
        if found is None:
            found = self._resources[resource] = ResourceState()
        return found

    def get(self, resource: str, key: Key) -> Item | None:
        """The committed object."""
        return self.state(resource).items.get(key)

    def newest(self, resource: str, key: Key) -> Item | None:
        """The object as the next write must see it: committed, or staged on its way to disk."""
        staged = self._staged.get((resource, key))
        return staged[0] if staged is not None else self.get(resource, key)

    def by_uid(self, uid: str) -> Item | None:
        """The committed object with this uid."""
        return self._by_uid.get(uid)

    def all_items(self) -> Iterator[Item]:
        """Every committed object of every resource."""
        for state in list(self._resources.values()):
            yield from list(state.items.values())

    def counts(self) -> dict[str, int]:
        """Committed objects by resource."""
        return {resource: len(state.items) for resource, state in self._resources.items()}

    def list_at(self, resource: str, namespace: str | None, version: int) -> list[Item]:
        """The objects as they were at `version`.

        Raises:
            ApiError: 410 when the history does not reach back that far.
        """
        state = self.state(resource)
        if version >= self.version:
            return list(state.sorted_items(namespace))
        if version < state.compacted:
            raise errors.expired(f"The resourceVersion for the provided list is too old: {version}")
        undone: dict[Key, Item | None] = {}
        for event in reversed(state.ring):
            if event.version <= version:
                break
            undone[event.item.key] = event.previous
        items = {item.key: item for item in state.sorted_items(namespace)}
        for key, before in undone.items():
            if namespace is not None and key[0] != namespace:
                continue
            if before is None:
                items.pop(key, None)
            else:
                items[key] = before
        return [items[key] for key in sorted(items)]

    def events_since(self, resource: str, version: int) -> list[Event]:
        """What happened to a resource after `version`.

        Raises:
            ApiError: 410 when the history does not reach back that far, or `version` lies in the future (the client
                knows another database).
        """
        state = self.state(resource)
        if version < state.compacted:
            raise errors.expired(f"too old resource version: {version} ({state.compacted})")
        if version > self.version:
            raise errors.expired(f"resource version {version} is newer than any here ({self.version})")
        found: list[Event] = []
        for event in reversed(state.ring):
            if event.version <= version:
                break
            found.append(event)
        found.reverse()
        return found

    def put(self, resource: str, key: Key, obj: JsonObject) -> tuple[Item, asyncio.Future[None]]:
        """Stage an object. Its resourceVersion is set here; the future ends when it is durable and published."""
        before = self.newest(resource, key)
        return self._stage(resource, key, obj, "ADDED" if before is None else "MODIFIED", before)

    def remove(self, before: Item) -> tuple[Item, asyncio.Future[None]]:
        """Stage the removal of an object; the item returned is its last state, at the version of the removal."""
        return self._stage(before.resource, before.key, before.decode(), "DELETED", before)

    async def settled(self, item: Item) -> None:
        """Wait until what `newest` returned is durable."""
        staged = self._staged.get((item.resource, item.key))
        if staged is not None:
            await asyncio.shield(staged[1])

    def _stage(
        self, resource: str, key: Key, obj: JsonObject, kind: EventType, before: Item | None
    ) -> tuple[Item, asyncio.Future[None]]:
        version = self._last + 1
        obj["metadata"]["resourceVersion"] = str(version)
        try:
            data = encode(obj)
        except (OverflowError, ValueError, TypeError) as exc:
            raise errors.bad_request(f"the object cannot be written as JSON: {exc}") from None
        if len(data) > MAX_OBJECT_BYTES and kind != "DELETED":
            raise errors.too_large(MAX_OBJECT_BYTES)
        item = make_item(resource, key, version, data)
        self._last = version
        done: asyncio.Future[None] = self._loop.create_future()
        done.add_done_callback(_retrieve)
        self._staged[resource, key] = (None if kind == "DELETED" else item, done)
        self._in_flight.append((Event(kind, item, before), done))
        row = Row(version, resource, *key, kind == "DELETED", before.version if before is not None else 0, item.data)
        write = Write(row, tuple(self._forget), tuple(self._marks.items()), self._epoch)
        self._forget.clear()
        self._marks.clear()
        self._storage.submit(write)
        return item, done

    def _written(self, writes: list[Write], error: Exception | None) -> None:
        """In the writer thread: hand the outcome to the loop."""
        try:
            self._loop.call_soon_threadsafe(self._finish, len(writes), writes[0].epoch, error)
        except RuntimeError:  # the loop is gone: nobody waits for an answer any more
            logger.debug("event loop closed before %d writes were answered", len(writes))

    def _finish(self, count: int, epoch: int, error: Exception | None) -> None:
        if error is not None:
            if epoch == self._epoch:
                logger.error("the data file refused %d writes: %s", count, error)
                self._epoch += 1
                self._staged.clear()
            for _ in range(count):
                self._answer(self._in_flight.popleft()[1], errors.internal(f"the write could not be stored: {error}"))
            return
        for _ in range(count):
            event, done = self._in_flight.popleft()
            self._publish(event)
            self._answer(done, None)
            staged = self._staged.get((event.item.resource, event.item.key))
            if staged is not None and staged[1] is done:
                del self._staged[event.item.resource, event.item.key]

    @staticmethod
    def _answer(done: asyncio.Future[None], error: Exception | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def _publish(self, event: Event) -> None:
        item = event.item
        state = self.state(item.resource)
        state.apply(event)
        self.version = event.version
        if event.type == "DELETED":
            self._by_uid.pop(item.uid, None)
        else:
            self._by_uid[item.uid] = item
        forgotten = list(state.evict())
        if forgotten:
            self._forget.extend(forgotten)
            self._marks[item.resource] = state.compacted
        for observer in self.observers:
            try:
                observer(event)
            except Exception:  # the writes behind this one must be answered
                logger.exception("version %d of %s: not followed up", event.version, item.resource)
        for listener in tuple(state.listeners):
            listener(event)
        event.forget_frame()


def _retrieve(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()  # whoever asked may have gone away; the failure was logged where it happened
