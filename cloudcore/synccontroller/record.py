"""One record: that a node has an object, in which version. How it looks in the API, and what to write. Pure.

An object of a namespace is recorded as ObjectSync in that namespace, one of the cluster as ClusterObjectSync; the name
is `<node>.<uid of the object>` (channel contract 4.4). Upstream's sync loop passes over a record without a status for
ever (8.1 #3) and ends the process for a version that is no number (8.3 #8); here both count as version 0.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from cloudcore.kube import Key, Kind, Object, identity, key_of, resource_version
from cloudedge import MalformedMessage, Message
from cloudedge.resources import object_path

__all__ = [
    "CLUSTER_RECORDS",
    "NEVER",
    "RECORDS",
    "Acknowledged",
    "Record",
    "RecordId",
    "Step",
    "acknowledged_object",
    "kind_of",
    "later",
    "newer",
    "next_step",
    "read_record",
    "record_key",
    "record_object",
    "record_of",
    "slim",
]

GROUP: Final = "reliablesyncs.kubeedge.io"
RECORDS: Final = Kind(group=GROUP, version="v1alpha1", plural="objectsyncs", kind="ObjectSync")
CLUSTER_RECORDS: Final = Kind(group=GROUP, version="v1alpha1", plural="clusterobjectsyncs", kind="ClusterObjectSync")
NEVER: Final = "0"
"""Version of a record whose object no node has acknowledged yet."""

Step = Literal["create", "update", "delete", "nothing"]


class RecordId(Struct, frozen=True, gc=False):
    node: str
    uid: str
    """Of the object."""


class Record(Struct, frozen=True, gc=False):
    id: RecordId
    namespace: str
    """Of the object; empty: it is the cluster's."""
    api_version: str
    kind: str
    name: str
    version: str
    """resourceVersion that the node has; `NEVER`: none yet."""

    @property
    def uid(self) -> str:
        return self.id.uid


class Acknowledged(Struct, frozen=True):
    """What the acknowledgement of a message says."""

    record: Record
    deleted: bool


class _Metadata(Struct, frozen=True, rename="camel"):
    uid: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Object(Struct, frozen=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: _Metadata = _Metadata()


def acknowledged_object(node: str, message: Message) -> Acknowledged | None:
    """What the node has now that it acknowledged `message`, one of ours; None: it is about no object with a uid."""
    try:
        path = object_path(message.route.resource)
        obj = message.data(_Object)
    except MalformedMessage:
        return None
    if not (path.name and obj.metadata.uid):
        return None
    version = message.header.resourceversion or obj.metadata.resource_version
    # The object says whether it is the cluster's: a VolumeAttachment is, and its path names a namespace (8.1 #19).
    namespace = path.namespace if obj.metadata.namespace else ""
    record = Record(RecordId(node, obj.metadata.uid), namespace, obj.api_version, obj.kind, path.name, version or NEVER)
    return Acknowledged(record, deleted=message.route.operation == "delete")


def record_of(node: str, obj: Object, version: str) -> Record:
    """That `node` has `obj` in that version."""
    key = key_of(obj)
    return Record(
        RecordId(node, identity(obj)), key.namespace, str(obj["apiVersion"]), str(obj["kind"]), key.name, version
    )


def kind_of(record: Record) -> Kind:
    return RECORDS if record.namespace else CLUSTER_RECORDS


def record_key(record: Record) -> Key:
    return Key(record.namespace, f"{record.id.node}.{record.id.uid}")


def record_object(record: Record) -> Object:
    """For creating; the status is a write of its own."""
    key = record_key(record)
    return {
        "apiVersion": RECORDS.api_version,
        "kind": kind_of(record).kind,
        "metadata": {"name": key.name, **({"namespace": key.namespace} if key.namespace else {})},
        "spec": {"objectAPIVersion": record.api_version, "objectKind": record.kind, "objectName": record.name},
    }


def slim(obj: Object) -> Object:
    """What a cache keeps: everything that `read_record` asks for, without a dictionary for each part."""
    spec, status = _part(obj, "spec"), _part(obj, "status")
    key = key_of(obj)
    return {
        "metadata": {
            "namespace": sys.intern(key.namespace),
            "name": key.name,
            "uid": identity(obj),
            "resourceVersion": resource_version(obj),
        },
        "object": (
            sys.intern(_text(spec.get("objectAPIVersion"))),
            sys.intern(_text(spec.get("objectKind"))),
            _text(spec.get("objectName")),
            _text(status.get("objectResourceVersion")),
        ),
    }


def read_record(slimmed: Object) -> Record | None:
    """None: its name is none of a record's."""
    key = key_of(slimmed)
    node, dot, uid = key.name.rpartition(".")
    if not (node and dot and uid):
        return None
    api_version, kind, name, version = slimmed["object"]
    return Record(RecordId(node, uid), key.namespace, api_version, kind, name, version or NEVER)


def newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is after another; what is no number is before all."""
    return _number(version) > _number(than)


def next_step(found: Object | None, wanted: Record | None) -> Step:
    """What to write when the API has `found`, slimmed, and `wanted` is what is known; None: the record is to go.

    A version never goes back: who knows an older one has heard of it late.
    """
    if wanted is None:
        return "nothing" if found is None else "delete"
    if found is None:
        return "create"
    recorded: str = found["object"][3]
    return "update" if newer(wanted.version, recorded) or not recorded else "nothing"


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) <= 20 else 0


def _part(obj: Object, name: str) -> dict[str, Any]:
    value = obj.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def later(one: Record | None, other: Record) -> Record:
    """Of two pieces of news about one object the later one."""
    if one is None or not newer(one.version, other.version):
        return other
    return msgspec.structs.replace(other, version=one.version)
