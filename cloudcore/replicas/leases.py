"""The Leases in namespace `kubeedge` that replicas meet in: how they are named, written and read. Pure.

| name | holder | written |
|---|---|---|
| `kubetwin-replica.<replica>` | that replica | every few seconds, by itself |
| `kubetwin-node.<node>` | the replica that the node is connected to | when that is another one |
| `kubetwin-leader` | the replica that does what needs to be done once | when that is another one |

The fields are client-go's (coordination.k8s.io/v1). A Lease of the last two kinds counts while its holder renews its
own.
"""

from __future__ import annotations

import datetime
import hashlib
import sys
from typing import Final

from cloudcore.kube import Key, Kind, Object, Scope, resource_version

__all__ = [
    "EVERY_LEASE",
    "LEADER",
    "LEASES",
    "NAMESPACE",
    "holder_of",
    "incarnation_of",
    "leader_lease",
    "micro_time",
    "namespace",
    "node_key",
    "node_lease",
    "node_of",
    "renewal_of",
    "replica_key",
    "replica_lease",
    "replica_of",
    "slim",
]

NAMESPACE: Final = "kubeedge"
LEASES: Final = Kind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
_LABEL: Final = "kubetwin.devices.kubeedge.io/lease"
EVERY_LEASE: Final = Scope(namespace=NAMESPACE, labels=_LABEL)
_INCARNATION: Final = "kubetwin.devices.kubeedge.io/incarnation"
_NODE: Final = "kubetwin.devices.kubeedge.io/node"
LEADER: Final = Key(NAMESPACE, "kubetwin-leader")
_REPLICA_PREFIX: Final = "kubetwin-replica."
_NODE_PREFIX: Final = "kubetwin-node."
_MAX_NAME: Final = 253


def replica_key(replica: str) -> Key:
    return Key(NAMESPACE, _REPLICA_PREFIX + replica)


def node_key(node: str) -> Key:
    """Of the node's Lease. Names too long for the prefix are shortened to their hash; the Lease says the whole one."""
    name = _NODE_PREFIX + node
    if len(name) > _MAX_NAME:
        name = _NODE_PREFIX + hashlib.sha256(node.encode()).hexdigest()
    return Key(NAMESPACE, name)


def replica_of(key: Key) -> str:
    """The replica whose own Lease it is; empty: another kind of Lease."""
    return key.name.removeprefix(_REPLICA_PREFIX) if key.name.startswith(_REPLICA_PREFIX) else ""


def node_of(key: Key, lease: Object) -> str:
    """The node that the Lease is about; empty: another kind of Lease."""
    return (_annotation(lease, _NODE) or key.name.removeprefix(_NODE_PREFIX)) if _is_node(key) else ""


def _is_node(key: Key) -> bool:
    return key.name.startswith(_NODE_PREFIX)


def holder_of(lease: Object | None) -> str:
    """The replica that holds it; empty: none."""
    return _spec_text(lease, "holderIdentity")


def renewal_of(lease: Object) -> str:
    """When it was renewed last, in its holder's words: good for telling renewals apart, never for comparing clocks."""
    return _spec_text(lease, "renewTime")


def incarnation_of(lease: Object) -> str:
    """Which process of all that ever bore the replica's name renews it."""
    return _annotation(lease, _INCARNATION)


def replica_lease(replica: str, *, incarnation: str, renewal: str, lease_s: float, before: Object | None) -> Object:
    """A replica's own; `before` is what is stored."""
    transitions = _transitions(before)
    if before is not None and incarnation_of(before) != incarnation:
        transitions += 1
    key = replica_key(replica)
    return _lease(key, "replica", replica, renewal, lease_s, transitions, before, {_INCARNATION: incarnation})


def node_lease(node: str, *, holder: str, now: str, lease_s: float, before: Object | None) -> Object:
    """The node's, for a new holder; `before` is what is stored."""
    transitions = _transitions(before) + (before is not None)
    return _lease(node_key(node), "node", holder, now, lease_s, transitions, before, {_NODE: node})


def leader_lease(*, holder: str, now: str, lease_s: float, before: Object | None) -> Object:
    """The leader's, for a new holder (empty: who wants it); `before` is what is stored."""
    transitions = _transitions(before) + (before is not None)
    return _lease(LEADER, "leader", holder, now, lease_s, transitions, before, {})


def micro_time() -> str:
    """The API's MicroTime of now."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def namespace() -> Object:
    """The one that all Leases are in."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def slim(lease: Object) -> Object:
    """What is kept of a Lease: there is one for every node."""
    metadata = lease.get("metadata") or {}
    kept = {name: metadata.get(name, "") for name in ("name", "namespace", "uid", "resourceVersion")}
    kept["namespace"] = NAMESPACE
    spec = {"holderIdentity": sys.intern(holder_of(lease))}
    node, incarnation = _annotation(lease, _NODE), incarnation_of(lease)
    if incarnation:
        kept["annotations"] = {_INCARNATION: incarnation}
        spec["renewTime"] = renewal_of(lease)
    elif node and node != kept["name"].removeprefix(_NODE_PREFIX):
        kept["annotations"] = {_NODE: node}
    return {"metadata": kept, "spec": spec}


def _lease(
    key: Key,
    kind: str,
    holder: str,
    now: str,
    lease_s: float,
    transitions: int,
    before: Object | None,
    annotations: dict[str, str],
) -> Object:
    acquired = _spec_text(before, "acquireTime") if kind == "replica" and _transitions(before) == transitions else ""
    metadata = {"name": key.name, "namespace": key.namespace, "labels": {_LABEL: kind}, "annotations": annotations}
    if before is not None:
        metadata["resourceVersion"] = resource_version(before)
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": metadata,
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(lease_s)),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        },
    }


def _spec_text(lease: Object | None, name: str) -> str:
    spec = (lease or {}).get("spec")
    value = spec.get(name) if isinstance(spec, dict) else None
    return value if isinstance(value, str) else ""


def _transitions(lease: Object | None) -> int:
    spec = (lease or {}).get("spec")
    value = spec.get("leaseTransitions") if isinstance(spec, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _annotation(lease: Object, name: str) -> str:
    annotations = (lease.get("metadata") or {}).get("annotations")
    value = annotations.get(name) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""
