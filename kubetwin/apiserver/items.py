"""Stored objects and what happened to them: `Item` (one version of one object, encoded) and `Event`.

An item keeps the JSON bytes as they are served, so that a get, a list or a watch of the stored version encodes nothing,
plus the few fields that selectors, garbage collection and preconditions ask for all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

JsonObject: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]  # (namespace, name); the namespace of cluster-scoped objects is ""
EventType: TypeAlias = Literal["ADDED", "MODIFIED", "DELETED"]

encode = msgspec.json.Encoder().encode
_decode_tree = msgspec.json.Decoder().decode


_canonical = msgspec.json.Encoder(order="sorted").encode


def same(one: JsonObject, other: JsonObject) -> bool:
    """Whether two trees are the same JSON. Python's `==` is not enough: to it, 1, 1.0 and true are equal."""
    return one == other and _canonical(one) == _canonical(other)


def decode(data: bytes) -> JsonObject:
    """A fresh tree of an encoded object."""
    tree: JsonObject = _decode_tree(data)
    return tree


class Owner(msgspec.Struct, frozen=True, rename="camel"):
    """One `metadata.ownerReferences` entry, as far as the garbage collector reads it."""

    uid: str = ""
    name: str = ""
    kind: str = ""
    api_version: str = ""
    block_owner_deletion: bool | None = None


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    labels: dict[str, str] | None = None
    owner_references: tuple[Owner, ...] | None = None
    finalizers: tuple[str, ...] | None = None
    deletion_timestamp: str | None = None


class _Head(msgspec.Struct, frozen=True):
    metadata: _Meta


_decode_head = msgspec.json.Decoder(_Head).decode
_NO_LABELS: dict[str, str] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One version of one object."""

    resource: str  # "devices.devices.kubeedge.io", "secrets"
    key: Key
    version: int
    data: bytes  # JSON in the kind's storage version
    uid: str
    labels: dict[str, str]
    owners: tuple[Owner, ...]
    finalizers: tuple[str, ...]
    deleting: bool

    @property
    def namespace(self) -> str:
        return self.key[0]

    @property
    def name(self) -> str:
        return self.key[1]

    def decode(self) -> JsonObject:
        """A fresh tree of the object, free to be changed."""
        return decode(self.data)


def make_item(resource: str, key: Key, version: int, data: bytes) -> Item:
    """An item of encoded JSON that carries `version` as its resourceVersion already."""
    meta = _decode_head(data).metadata
    return Item(
        resource,
        key,
        version,
        data,
        meta.uid,
        meta.labels or _NO_LABELS,
        meta.owner_references or (),
        meta.finalizers or (),
        meta.deletion_timestamp is not None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One write, as watches tell it."""

    type: EventType
    item: Item
    previous: Item | None
    _frame: list[bytes] = field(default_factory=list)

    @property
    def version(self) -> int:
        return self.item.version

    def seen_through(self, matches: Callable[[Item], bool]) -> tuple[EventType, Item] | None:
        """The event as a watcher with a selector sees it: an object can enter or leave its view by a modification."""
        now = self.type != "DELETED" and matches(self.item)
        before = self.previous is not None and matches(self.previous)
        if now:
            return ("MODIFIED" if before else "ADDED"), self.item
        return ("DELETED", self.item) if before else None

    def frame(self, seen: EventType) -> bytes:
        """The JSON line of this event in the storage version; made once for all watchers."""
        if seen != self.type:
            return watch_frame(seen, self.item.data)
        if not self._frame:
            self._frame.append(watch_frame(seen, self.item.data))
        return self._frame[0]

    def forget_frame(self) -> None:
        """Called when all watchers have it: the history keeps the item only."""
        self._frame.clear()


def watch_frame(seen: str, data: bytes) -> bytes:
    """One line of a watch stream."""
    return b'{"type":"%s","object":%s}\n' % (seen.encode(), data)
