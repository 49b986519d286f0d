"""Columns of `kubectl get` for the built-in kinds, with kube-apiserver's names and order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubetwin.apiserver.columns import AGE, NAME, age_of
from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.kinds import Column

_ROLE_LABEL = "node-role.kubernetes.io/"


def _at(obj: JsonObject, *path: str) -> Any:
    value: Any = obj
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _path(*path: str, default: Any = None) -> Callable[[JsonObject], Any]:
    def value(obj: JsonObject) -> Any:
        found = _at(obj, *path)
        return default if found is None else found

    return value


def _entries(*fields: str) -> Callable[[JsonObject], int]:
    return lambda obj: sum(len(_at(obj, field) or ()) for field in fields)


def _phase(obj: JsonObject) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return str(_at(obj, "status", "phase") or "")


def _node_status(obj: JsonObject) -> str:
    ready = [c for c in _at(obj, "status", "conditions") or () if isinstance(c, dict) and c.get("type") == "Ready"]
    texts = {"True": "Ready"}
    text = texts.get(ready[0].get("status", ""), "NotReady") if ready else "Unknown"
    return f"{text},SchedulingDisabled" if _at(obj, "spec", "unschedulable") is True else text


def _node_roles(obj: JsonObject) -> str:
    labels = _at(obj, "metadata", "labels") or {}
    roles = {label.removeprefix(_ROLE_LABEL) for label in labels if label.startswith(_ROLE_LABEL)}
    if labels.get("kubernetes.io/role"):
        roles.add(labels["kubernetes.io/role"])
    return ",".join(sorted(roles - {""})) or "<none>"


def _node_address(kind: str) -> Callable[[JsonObject], str]:
    def value(obj: JsonObject) -> str:
        for address in _at(obj, "status", "addresses") or ():
            if isinstance(address, dict) and address.get("type") == kind:
                return str(address.get("address"))
        return "<none>"

    return value


def _event_seen(obj: JsonObject) -> str:
    return age_of(obj.get("lastTimestamp") or obj.get("eventTime") or obj.get("firstTimestamp"))


def _event_object(obj: JsonObject) -> str:
    about = obj.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _containers_ready(obj: JsonObject) -> str:
    states = _at(obj, "status", "containerStatuses") or ()
    ready = sum(1 for state in states if isinstance(state, dict) and state.get("ready") is True)
    return f"{ready}/{len(_at(obj, 'spec', 'containers') or ())}"


def _restarts(obj: JsonObject) -> str:
    states = _at(obj, "status", "containerStatuses") or ()
    return str(sum(int(state.get("restartCount") or 0) for state in states if isinstance(state, dict)))


def _volume_claim(obj: JsonObject) -> str:
    claim = _at(obj, "spec", "claimRef")
    return f"{claim.get('namespace')}/{claim.get('name')}" if isinstance(claim, dict) else ""


def _signing_state(obj: JsonObject) -> str:
    told = [str(c.get("type")) for c in _at(obj, "status", "conditions") or () if isinstance(c, dict)]
    if _at(obj, "status", "certificate"):
        told.append("Issued")
    return ",".join(told) or "Pending"


def _none(*path: str) -> Callable[[JsonObject], Any]:
    return _path(*path, default="<none>")


NAMESPACE = (NAME, Column("Status", value=_phase), AGE)
NODE = (
    NAME,
    Column("Status", value=_node_status),
    Column("Roles", value=_node_roles),
    AGE,
    Column("Version", value=_path("status", "nodeInfo", "kubeletVersion", default="")),
    Column("Internal-IP", priority=1, value=_node_address("InternalIP")),
    Column("OS-Image", priority=1, value=_path("status", "nodeInfo", "osImage", default="<unknown>")),
    Column("Kernel-Version", priority=1, value=_path("status", "nodeInfo", "kernelVersion", default="<unknown>")),
)
SECRET = (NAME, Column("Type", value=_path("type", default="")), Column("Data", "integer", value=_entries("data")), AGE)
CONFIG_MAP = (NAME, Column("Data", "integer", value=_entries("data", "binaryData")), AGE)
SERVICE_ACCOUNT = (NAME, Column("Secrets", "integer", value=_entries("secrets")), AGE)
EVENT = (
    Column("Last Seen", value=_event_seen),
    Column("Type", value=_path("type", default="")),
    Column("Reason", value=_path("reason", default="")),
    Column("Object", value=_event_object),
    Column("Source", priority=1, value=_path("source", "component", default="")),
    Column("Message", value=lambda obj: str(obj.get("message") or "").strip()),
    Column("Count", "integer", priority=1, value=_path("count", default=1)),
    Column("Name", format="name", priority=1, value=NAME.value),
)
POD = (
    NAME,
    Column("Ready", value=_containers_ready),
    Column("Status", value=_phase),
    Column("Restarts", value=_restarts),
    AGE,
    Column("IP", priority=1, value=_none("status", "podIP")),
    Column("Node", priority=1, value=_none("spec", "nodeName")),
)
CLAIM = (
    NAME,
    Column("Status", value=_phase),
    Column("Volume", value=_path("spec", "volumeName", default="")),
    Column("StorageClass", value=_path("spec", "storageClassName", default="")),
    AGE,
)
VOLUME = (
    NAME,
    Column("Status", value=_phase),
    Column("Claim", value=_volume_claim),
    Column("StorageClass", value=_path("spec", "storageClassName", default="")),
    AGE,
)
VOLUME_ATTACHMENT = (
    NAME,
    Column("Attacher", value=_path("spec", "attacher", default="")),
    Column("Node", value=_path("spec", "nodeName", default="")),
    Column("Attached", "boolean", value=_path("status", "attached", default=False)),
    AGE,
)
SIGNING_REQUEST = (
    NAME,
    AGE,
    Column("SignerName", value=_path("spec", "signerName", default="<none>")),
    Column("Requestor", value=_path("spec", "username", default="")),
    Column("Condition", value=_signing_state),
)
LEASE = (NAME, Column("Holder", value=_path("spec", "holderIdentity", default="")), AGE)
CRD = (NAME, Column("Created At", "date", value=_path("metadata", "creationTimestamp")))
