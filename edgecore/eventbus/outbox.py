"""What waits for a broker: bounded in number and bytes; the oldest is dropped first, and counted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

__all__ = ["Outbox", "Outgoing"]

_T = TypeVar("_T")


class Outgoing(Struct, frozen=True):
    topic: str
    payload: bytes
    qos: int | None = None
    """None: as the broker's settings say."""
    retain: bool | None = None
    attempts: int = 0
    """Connections that were lost with it under way."""


class Outbox(Generic[_T]):
    """First in, first out. One under a key takes the place of the one that waits under it, and of its turn."""

    def __init__(
        self, *, max_items: int, max_bytes: int, size: Callable[[_T], int], dropped: Callable[[], None]
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size = size
        self._dropped = dropped
        self._waiting: OrderedDict[object, _T] = OrderedDict()
        self._bytes = 0
        self._number = 0
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: _T, key: str | None = None) -> None:
        """Never waits. What alone is larger than everything may be is dropped itself."""
        size = self._size(item)
        if size > self._max_bytes:
            self._dropped()
            return
        slot: object = key
        if key is None:
            self._number += 1
            slot = self._number
        before = self._waiting.get(slot)
        self._waiting[slot] = item
        self._bytes += size - (0 if before is None else self._size(before))
        while len(self._waiting) > self._max_items or self._bytes > self._max_bytes:
            self._take()
            self._dropped()
        self._ready.set()
        self._note_room()

    async def get(self) -> tuple[object, _T]:
        """The oldest, and its slot for `put_back`. Nothing is lost when this is cancelled."""
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        taken = self._take()
        self._note_room()
        return taken

    def put_back(self, slot: object, item: _T) -> None:
        """It did not get out: it is the next again, unless a newer one waits in its slot or there is no room."""
        if slot in self._waiting:
            return
        size = self._size(item)
        if len(self._waiting) >= self._max_items or self._bytes + size > self._max_bytes:
            self._dropped()
            return
        self._waiting[slot] = item
        self._waiting.move_to_end(slot, last=False)
        self._bytes += size
        self._ready.set()

    @property
    def is_roomy(self) -> bool:
        """Less than half is taken."""
        return self._room.is_set()

    async def has_room(self) -> None:
        """For what can be made later: returns when it is roomy."""
        await self._room.wait()

    def _take(self) -> tuple[object, _T]:
        slot, item = self._waiting.popitem(last=False)
        self._bytes -= self._size(item)
        return slot, item

    def _note_room(self) -> None:
        if len(self._waiting) * 2 < self._max_items and self._bytes * 2 < self._max_bytes:
            self._room.set()
        else:
            self._room.clear()
