"""Resource paths as they are on the wire: `<namespace|null>/<type>/<name>`, and what devices report.

Paths are split on `/` and matched element by element. Upstream matches substrings in places, and so loses devices in
a namespace called `dev` and pods called `membership` (channel contract 8.1 #4, device contract W10).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from cloudedge.errors import MalformedMessage

__all__ = [
    "MEMBERSHIP",
    "MEMBERSHIP_DETAIL",
    "TWIN",
    "DeviceReport",
    "ObjectPath",
    "device_report",
    "object_path",
    "state_resource",
    "twin_resource",
]

MEMBERSHIP: Final = "membership"
MEMBERSHIP_DETAIL: Final = "membership/detail"
TWIN: Final = "twin"
"""Resource of the cloud's acknowledgement of a twin or state report."""

CLUSTER_SCOPED: Final = "null"


class ObjectPath(Struct, frozen=True):
    """One Kubernetes object, or with an empty name a collection. `type` is the lower-case kind."""

    namespace: str
    type: str
    name: str

    def __str__(self) -> str:
        head = f"{self.namespace or CLUSTER_SCOPED}/{self.type}"
        return f"{head}/{self.name}" if self.name else head


class DeviceReport(Struct, frozen=True):
    """What an edge-to-cloud message of source `twin` is about. `what`: `twin` or `state`."""

    namespace: str
    name: str
    what: str


def object_path(resource: str) -> ObjectPath:
    """`<namespace|null>/<type>[/<name>]` → parts.

    Raises:
        MalformedMessage: Not two or three non-empty elements.
    """
    parts = resource.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise MalformedMessage(f"{resource!r} is not of the form namespace/type/name")
    namespace = "" if parts[0] == CLUSTER_SCOPED else parts[0]
    return ObjectPath(namespace=namespace, type=parts[1], name=parts[2] if len(parts) == 3 else "")


def twin_resource(namespace: str, name: str) -> str:
    return f"device/{namespace}/{name}/twin/edge_updated"


def state_resource(namespace: str, name: str) -> str:
    return f"device/{namespace}/{name}/state/update"


def device_report(resource: str) -> DeviceReport | None:
    """`device/NS/D/twin/edge_updated` or `device/NS/D/state/update`; None for anything else."""
    match resource.split("/"):
        case ["device", namespace, name, "twin", "edge_updated"] if namespace and name:
            return DeviceReport(namespace, name, "twin")
        case ["device", namespace, name, "state", "update"] if namespace and name:
            return DeviceReport(namespace, name, "state")
    return None
