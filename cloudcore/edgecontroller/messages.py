"""Messages from this controller to nodes, as upstream's sends them (channel contract 1.2, 5.3). Pure."""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import Raw

from cloudcore.edgecontroller.kinds import path_of
from cloudcore.kube import Key, Kind, KubeError, Object, resource_version
from cloudedge import Message, new_message
from cloudedge.message import OK

__all__ = [
    "SOURCE",
    "Operation",
    "confirmation",
    "failure",
    "found",
    "gone",
    "object_failure",
    "object_message",
    "outcome",
]

SOURCE: Final = "edgecontroller"

Operation = Literal["insert", "update"]


def _answer(
    to: Message, content: Any, *, operation: str = "response", version: str = "", source: str = SOURCE
) -> Message:
    return new_message(
        source=source,
        group="resource",
        operation=operation,
        resource=to.route.resource,
        content=content,
        parent=to.id,
        resource_version=version,
    )


def confirmation(to: Message) -> Message:
    return _answer(to, OK)


def found(to: Message, content: Any, *, version: str = "", source: str = SOURCE) -> Message:
    """What was asked for, as it is."""
    return _answer(to, content, version=version, source=source)


def outcome(to: Message, obj: Object, *, versioned: bool) -> Message:
    """An ObjectResp of what was made, changed or looked up. `versioned`: with the version in the header too."""
    version = resource_version(obj) if versioned else ""
    return _answer(to, {"Object": obj, "Err": None}, version=version)


def object_failure(to: Message, error: KubeError) -> Message:
    """An ObjectResp of what the API refused. Its `ErrStatus` is never empty: an edge core takes an empty one for a
    success, looks at the object, and ends in a panic (channel contract 1.2).
    """
    status = {
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason or "ServiceUnavailable",
        "code": error.status or 503,
    }
    return _answer(to, {"Object": None, "Err": {"ErrStatus": status}})


def failure(to: Message, text: str) -> Message:
    """Operation `error` and a text, which fails the call and is stored nowhere. An API error as JSON would be stored
    as the ConfigMap asked for (channel contract 8.1 #14).
    """
    return _answer(to, text[:2048], operation="error")


def object_message(operation: Operation, kind: Kind, key: Key, body: Raw, version: str) -> Message:
    """A whole object, `apiVersion` and `kind` included."""
    return new_message(
        source=SOURCE,
        group="resource",
        operation=operation,
        resource=path_of(kind, key),
        content=body,
        resource_version=version,
    )


def gone(kind: Kind, key: Key, uid: str) -> Message:
    """An object that the node is to forget: enough of it to be found in both of an edge core's stores (contract 8.1
    #7, #18).
    """
    metadata = {"name": key.name, "uid": uid} | ({"namespace": key.namespace} if key.namespace else {})
    content = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
    return new_message(
        source=SOURCE, group="resource", operation="delete", resource=path_of(kind, key), content=content
    )
