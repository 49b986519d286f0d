"""The Node object, its status, and the patch between two of them. Pure; shapes as an upstream EdgeCore sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgecore.edged.machine import Machine
from edgecore.edged.timing import micro_time, second_time

__all__ = ["Json", "lease_object", "missing_labels", "node_labels", "node_object", "node_status", "status_patch"]

Json = dict[str, Any]

MEMORY_LOW_KIB: Final = 100 * 1024
"""kubelet's defaults, as the next."""
DISK_LOW_PART: Final = 0.1
THREADS_HIGH_PART: Final = 0.9


def node_labels(node: str, machine: Machine, own: Mapping[str, str]) -> dict[str, str]:
    """Those every edge node has, and the configured ones."""
    return {
        "beta.kubernetes.io/arch": machine.architecture,
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine.architecture,
        "kubernetes.io/hostname": node,
        "kubernetes.io/os": "linux",
        "node-role.kubernetes.io/agent": "",
        "node-role.kubernetes.io/edge": "",
        **own,
    }


def node_object(node: str, labels: Mapping[str, str], status: Json | None = None) -> Json:
    metadata = {"name": node, "creationTimestamp": None, "labels": dict(labels), "annotations": {}}
    return {"metadata": metadata, "spec": {}, "status": status or {}}


def node_status(node: str, machine: Machine, *, address: str, version: str, at: float, known: Json) -> Json:
    """`address`: of this machine, or empty. `at`: epoch seconds. `known`: the status before, whose times of transition
    hold on where nothing changed.
    """
    disk_low = machine.disk_free_kib < machine.disk_kib * DISK_LOW_PART
    capacity = {
        "cpu": str(machine.cpus),
        "ephemeral-storage": f"{machine.disk_kib}Ki",
        "memory": f"{machine.memory_kib}Ki",
        "pods": "0",  # nothing here runs them: the scheduler is to place none, and needs no taint to know
    }
    addresses = [{"type": "InternalIP", "address": address}] if address else []
    conditions = [
        _condition("MemoryPressure", 0 < machine.memory_free_kib < MEMORY_LOW_KIB, "SufficientMemory", "LowMemory"),
        _condition("DiskPressure", disk_low, "DiskHasRoom", "DiskNearlyFull"),
        _condition(
            "PIDPressure",
            0 < machine.threads_max * THREADS_HIGH_PART < machine.threads,
            "SufficientPID",
            "TooManyThreads",
        ),
        {
            "type": "Ready",
            "status": "True",
            "reason": "EdgeCoreReady",
            "message": "edge core keeps this node's devices; it runs no pods",
        },
    ]
    before = {c.get("type"): c for c in known.get("conditions") or () if isinstance(c, dict)}
    for condition in conditions:
        last = before.get(condition["type"], {})
        same = last.get("status") == condition["status"] and last.get("lastTransitionTime")
        condition["lastHeartbeatTime"] = second_time(at)
        condition["lastTransitionTime"] = last["lastTransitionTime"] if same else second_time(at)
    return {
        "capacity": capacity,
        "allocatable": dict(capacity),
        "conditions": conditions,
        "addresses": [*addresses, {"type": "Hostname", "address": node}],
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.system_uuid,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel,
            "osImage": machine.os_image,
            "containerRuntimeVersion": "",
            "kubeletVersion": f"v{version or '0.0.0'}-kubetwin",
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": machine.architecture,
        },
    }


def status_patch(before: Json, after: Json) -> Json | None:
    """A strategic merge patch; None: nothing but heartbeats differs, which the caller may want to send all the same."""
    changed = {key: value for key, value in after.items() if _lasting(key, before.get(key)) != _lasting(key, value)}
    if not changed:
        return None
    return {"status": {**changed, **_mergeable(changed, after)}}


def heartbeat_patch(after: Json) -> Json:
    return {"status": _mergeable({}, after)}


def _mergeable(changed: Json, after: Json) -> Json:
    """Lists that the API merges by `type`: conditions go along always, addresses in place of those that were there."""
    conditions = after["conditions"]
    order = [{"type": condition["type"]} for condition in conditions]
    patch: Json = {"$setElementOrder/conditions": order, "conditions": conditions}
    if "addresses" in changed:
        patch["addresses"] = [*after["addresses"], {"$patch": "replace"}]
    return patch


def _lasting(key: str, value: Any) -> Any:
    """Without what changes by itself."""
    if key != "conditions" or not isinstance(value, list):
        return value
    skip = ("lastHeartbeatTime",)
    return {
        c.get("type"): {k: v for k, v in c.items() if k not in skip}
        for c in value
        if isinstance(c, dict) and c.get("type") in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    }


def missing_labels(found: Json, wanted: Mapping[str, str]) -> bool:
    labels = (found.get("metadata") or {}).get("labels") or {}
    return any(labels.get(name) != value for name, value in wanted.items())


def lease_object(node: str, *, duration_s: int, at: float, found: Json | None, node_uid: str) -> Json:
    """To insert, or with `found`, the Lease as the cloud has it, to update."""
    metadata = {k: v for k, v in ((found or {}).get("metadata") or {}).items() if k != "managedFields"}
    metadata = {**metadata, "name": node, "namespace": "kube-node-lease"}
    if node_uid:  # with the Node goes the Lease
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}
        metadata["ownerReferences"] = [owner]
    return {
        "kind": "Lease",
        "apiVersion": "coordination.k8s.io/v1",
        "metadata": metadata,
        "spec": {"holderIdentity": node, "leaseDurationSeconds": duration_s, "renewTime": micro_time(at)},
    }


def _condition(type_: str, bad: bool, reason: str, bad_reason: str) -> Json:
    message = f"edge core sees {'' if bad else 'no '}{type_.removesuffix('Pressure').lower()} pressure"
    return {
        "type": type_,
        "status": "True" if bad else "False",
        "reason": bad_reason if bad else reason,
        "message": message,
    }
