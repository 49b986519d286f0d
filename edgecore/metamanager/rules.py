"""Which message wins: decisions on what is stored and what arrives, without I/O.

A resourceVersion grows with every change of an object, as a uint64; the uid says whether it is the same object still.
A cluster that was rebuilt starts at low versions again, but with other uids.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

from cloudedge import MalformedMessage, Message
from cloudedge.resources import MEMBERSHIP_DETAIL, object_path
from edgecore.store import StoredObject

__all__ = ["Decision", "Incoming", "Membership", "decide", "read_membership", "read_object"]

Operation = Literal["insert", "update", "delete"]
Decision = Literal["put", "replace", "delete", "ignore"]
"""`replace`: another object of the same name; what is known about the old one no longer holds."""

_OPERATIONS: Final[dict[str, Operation]] = {"insert": "insert", "update": "update", "delete": "delete"}
_UINT64_MAX: Final = 2**64 - 1


class Incoming(Struct, frozen=True):
    """An object message, parsed."""

    operation: Operation
    kind: str
    namespace: str
    name: str
    uid: str
    version: str
    body: bytes


class Membership(Struct, frozen=True):
    """All devices of this node: what is not here is not here."""

    devices: frozenset[tuple[str, str]]
    """(namespace, name)."""


class _ObjectMeta(Struct, frozen=True, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _Object(Struct, frozen=True):
    metadata: _ObjectMeta = _ObjectMeta()


class _ListedDevice(Struct, frozen=True):
    id: str


class _DeviceList(Struct, frozen=True):
    devices: list[_ListedDevice] | None


_encoder = msgspec.json.Encoder()


def read_object(message: Message) -> Incoming:
    """The object a group-`resource` message is about.

    Raises:
        MalformedMessage: No object path, an operation that is none, or content that is no object.
    """
    path = object_path(message.route.resource)
    operation = _OPERATIONS.get(message.route.operation)
    if operation is None or not path.name:
        raise MalformedMessage(f"{message.describe()}: not the insert, update or delete of one object")
    body = b""
    head = _Object()
    if operation != "delete" or bytes(message.content) != b"null":
        body = bytes(message.content)
        if body.startswith(b'"'):  # some cloud parts send an object as a text
            body = _encoder.encode(message.data())
        if not body.startswith(b"{"):
            raise MalformedMessage(f"content of {message.describe()}: not an object")
        head = message.data(_Object)
    return Incoming(
        operation=operation,
        kind=path.type.lower(),
        namespace=path.namespace,
        name=path.name,
        uid=head.metadata.uid,
        version=message.header.resourceversion or head.metadata.resource_version,
        body=body,
    )


def read_membership(message: Message) -> Membership | None:
    """The full list of a `membership/detail`. None for a plain `membership` message, which is only a hint: the device's
    own messages follow it, reliably, and say more.

    Raises:
        MalformedMessage: No list, or a member that is no `namespace/name`.
    """
    if message.route.resource != MEMBERSHIP_DETAIL:
        return None
    listed = message.data(_DeviceList).devices or []
    keys: set[tuple[str, str]] = set()
    for device in listed:
        namespace, slash, name = device.id.partition("/")
        if not (namespace and slash and name) or "/" in name:
            raise MalformedMessage(f"{message.describe()}: {device.id!r} is not of the form namespace/name")
        keys.add((namespace, name))
    return Membership(frozenset(keys))


def decide(stored: StoredObject | None, incoming: Incoming) -> Decision:
    """What to do. `ignore` is acknowledged like the rest: the cloud need not say it again."""
    if stored is None:
        return "ignore" if incoming.operation == "delete" else "put"
    same = not stored.uid or not incoming.uid or stored.uid == incoming.uid
    older = _older(incoming.version, stored.version)
    if incoming.operation == "delete":
        # A late delete of the object that had this name before must not take the one that has it now.
        return "delete" if same or older is False else "ignore"
    if not same:
        return "replace"
    return "ignore" if older else "put"


def _older(new: str, old: str) -> bool | None:
    """Whether `new` is before `old`; None when they cannot be compared."""
    new_number, old_number = _uint64(new), _uint64(old)
    if new_number is None or old_number is None:
        return None
    return new_number < old_number


def _uint64(text: str) -> int | None:
    if not text or len(text) > 20 or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= _UINT64_MAX else None
