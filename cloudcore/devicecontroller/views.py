"""What one connection of a node has been told, and what the node said it has. Plain data and comparisons."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, Literal, Protocol

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.devicecontroller.links import NodeLink
from cloudcore.kube import Key, Kind, Object, identity, resource_version, spec_of
from cloudedge import MalformedMessage, Message
from cloudedge.inventory import StoredVersion
from cloudedge.resources import ObjectPath, object_path

__all__ = ["KINDS", "NoRecords", "NodeRecords", "Recorded", "View", "compare", "newest", "path_of", "resource_of"]

KINDS: Final = {kind.kind: kind for kind in (DEVICES, MODELS)}
_TYPES: Final = {kind.kind.lower(): kind for kind in (DEVICES, MODELS)}

Match = Literal["same", "ahead", "other"]


class Recorded(Protocol):
    """That a node has, or may have, an object."""

    @property
    def uid(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...


class NodeRecords(Protocol):
    """What nodes have, as it is remembered over restarts of this process. None of these waits."""

    def acknowledged(self, node: str, message: Message, /) -> None:
        """The node acknowledged this object message."""

    def stored(self, node: str, obj: Object, version: str, /) -> None:
        """The node says that it has `obj`, in that version."""

    def forget(self, node: str, uid: str, /) -> None:
        """The node does not have that object."""

    def get(self, node: str, uid: str, /) -> Recorded | None: ...

    def known(self, node: str, kinds: Collection[str], /) -> Iterable[Recorded]: ...


class NoRecords:
    """Nothing is remembered: an edge core that does not say what it has keeps what was deleted meanwhile."""

    def acknowledged(self, node: str, message: Message, /) -> None: ...

    def stored(self, node: str, obj: Object, version: str, /) -> None: ...

    def forget(self, node: str, uid: str, /) -> None: ...

    def get(self, node: str, uid: str, /) -> Recorded | None:  # noqa: ARG002 - the port's
        return None

    def known(self, node: str, kinds: Collection[str], /) -> Iterable[Recorded]:  # noqa: ARG002 - the port's
        return ()


class View:
    """One connection."""

    def __init__(self, link: NodeLink, timer: asyncio.TimerHandle) -> None:
        self.link = link
        self.timer = timer
        self.asked = False
        self.request: Message | None = None
        self.inventory: dict[str, StoredVersion] | None = None
        """As it was said in the request; None: the node does not say."""
        self.hold_until = 0.0
        """Loop time until which it may wait for our caches to have seen what it has."""
        self.ready = False
        """Told everything once; changes are told from then on."""
        self.rounds = 0
        self.forget()

    def forget(self) -> None:
        self.members: dict[Key, Object] = {}
        self.devices: dict[Key, Object] = {}
        self.models: dict[Key, Object] = {}
        self.uses: Counter[Key] = Counter()
        """Told devices by model."""
        self.has: dict[str, StoredVersion] = {}
        """Of the inventory what has not been told anew or found the same, by resource path."""
        self.deleting: set[str] = set()
        """Resource paths whose deletion is not acknowledged yet."""
        self.swept: set[str] = set()
        """Uids whose deletion was sent for a record's sake."""

    def told(self, kind: Kind) -> dict[Key, Object]:
        return self.devices if kind is DEVICES else self.models


def resource_of(kind: Kind, key: Key) -> str:
    return str(ObjectPath(namespace=key.namespace, type=kind.kind.lower(), name=key.name))


def path_of(resource: str) -> tuple[Kind, Key] | None:
    """The Device or DeviceModel that a resource path is of; None: it is of something else."""
    try:
        path = object_path(resource)
    except MalformedMessage:
        return None
    kind = _TYPES.get(path.type)
    return (kind, Key(path.namespace, path.name)) if kind is not None and path.name else None


def compare(has: StoredVersion, obj: Object, last: Object | None) -> Match:
    """What a node has with what the API has. `last`: the object as it was sent to a node last, by this process.

    Changes of the status alone are not sent, so a node may have an earlier version with the same spec. `ahead`: it has
    a newer one than this process knows.
    """
    if has.uid != identity(obj):
        return "other"
    if has.version == resource_version(obj):
        return "same"
    if (
        last is not None
        and identity(last) == has.uid
        and resource_version(last) == has.version
        and spec_of(last) == spec_of(obj)
    ):
        return "same"
    return "ahead" if _number(has.version) > _number(resource_version(obj)) else "other"


def newest(inventory: dict[str, StoredVersion], kind: Kind) -> int:
    """The highest version among the objects of a kind; 0: there are none."""
    like = f"/{kind.kind.lower()}/"
    return max((_number(has.version) for resource, has in inventory.items() if like in resource), default=0)


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) <= 20 else 0
