"""Messages from this controller to nodes, as upstream's sends them (device contract 1.3, 2.4). Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final, Literal

from cloudcore.devicecontroller.kinds import MIRRORED
from cloudcore.kube import Key, Kind, Object, label, resource_version, spec_of
from cloudedge import Message, new_message, reply
from cloudedge.message import now_ms
from cloudedge.resources import MEMBERSHIP, MEMBERSHIP_DETAIL, TWIN, ObjectPath

__all__ = [
    "SOURCE",
    "Operation",
    "delete_message",
    "detail_message",
    "membership_message",
    "object_message",
    "ok",
    "report_ok",
]

SOURCE: Final = "devicecontroller"
"""On everything the twin of an edge core is to see: with another source it is stored and not acted on."""

Operation = Literal["insert", "update", "delete"]


def object_message(operation: Operation, kind: Kind, key: Key, obj: Object) -> Message:
    """A whole Device or DeviceModel; on delete the last one seen."""
    content: Object = {
        "kind": kind.kind,
        "apiVersion": kind.api_version,
        "metadata": obj.get("metadata") or {},
        "spec": spec_of(obj),
    }
    if kind.kind == "Device":
        content["spec"] = _with_desired(content["spec"])
        # What is mirrored there comes from the node.
        content["status"] = {k: v for k, v in (obj.get("status") or {}).items() if k not in MIRRORED}
    return new_message(
        source=SOURCE,
        group="resource",
        operation=operation,
        resource=str(ObjectPath(namespace=key.namespace, type=kind.kind.lower(), name=key.name)),
        content=content,
        resource_version=resource_version(obj),
    )


def delete_message(kind: Kind, key: Key, *, uid: str, version: str) -> Message:
    """The end of an object of which only this is known. With apiVersion and kind, which upstream's leaves out, so that
    its edge core keeps the object in its second store (channel contract 8.1 #18).
    """
    metadata = {"name": key.name, "namespace": key.namespace, "uid": uid}
    return object_message("delete", kind, key, {"metadata": {**metadata, "resourceVersion": version}})


def membership_message(
    *, added: Iterable[tuple[Key, Object]] = (), removed: Iterable[tuple[Key, Object]] = ()
) -> Message:
    """Devices that now belong to a node, or no longer do. A list without entries is `null`, as upstream's."""
    content = {
        **_event(),
        "added_devices": [_member(key, device) for key, device in added] or None,
        "removed_devices": [_member(key, device) for key, device in removed] or None,
    }
    return new_message(source=SOURCE, group="twin", operation="update", resource=MEMBERSHIP, content=content)


def detail_message(devices: Iterable[Key]) -> Message:
    """All devices of a node. Without a parent: an edge core takes a message with one for a mere confirmation."""
    content = {**_event(), "devices": [{"id": str(key), "name": key.name} for key in devices]}
    return new_message(source=SOURCE, group="twin", operation="update", resource=MEMBERSHIP_DETAIL, content=content)


def ok(to: Message) -> Message:
    """Confirms a request under its own resource."""
    return reply(to, source=SOURCE, group="twin")


def report_ok(report_id: str) -> Message:
    """Confirms a twin or state report: the API has it, or never will."""
    return new_message(source=SOURCE, group="twin", operation="response", resource=TWIN, content="OK", parent=report_id)


def _event() -> dict[str, Any]:
    return {"event_id": str(uuid.uuid4()), "timestamp": now_ms()}


def _member(key: Key, device: Object) -> dict[str, str]:
    member = {"id": str(key), "name": key.name}
    if description := label(device, "description"):
        member["description"] = description
    return member


def _with_desired(spec: Object) -> Object:
    """Every property with a `desired`, at least an empty one: upstream never leaves it out (device contract 1.4)."""
    properties = spec.get("properties")
    if not isinstance(properties, list):
        return spec
    filled = [
        {**p, "desired": {"value": ""}} if isinstance(p, dict) and not isinstance(p.get("desired"), dict) else p
        for p in properties
    ]
    return {**spec, "properties": filled}
