"""What a node asks about its pods, and about what they refer to."""

from __future__ import annotations

from typing import Any, Final

from cloudcore.edgecontroller.authorization import (
    check_attachment,
    check_mirror_pod,
    check_pod,
    check_reference,
    check_token,
    check_volume,
    mapping,
    narrow_patch,
    uid_of,
)
from cloudcore.edgecontroller.desk import Desk, Request
from cloudcore.edgecontroller.kinds import KINDS, PODS, SERVICE_ACCOUNTS, VOLUME_ATTACHMENTS, VOLUMES, is_name
from cloudcore.edgecontroller.messages import confirmation, found, gone, outcome
from cloudcore.edgecontroller.node_requests import typed
from cloudcore.kube import Conflict, Key, NotFound, Object, identity, resource_version
from cloudedge import MalformedMessage, Message

__all__ = [
    "create_pod",
    "create_token",
    "delete_pod",
    "get_attachment",
    "get_referenced",
    "get_volume",
    "patch_pod",
    "update_pod_statuses",
]

MAX_STATUSES: Final = 1000
"""Pods in one message of statuses; a node runs 110 by default."""
_KEPT_TIMES: Final = ("Ready", "Initialized")
"""Conditions whose transition time older edge cores leave to the cloud."""


async def create_pod(desk: Desk, request: Request) -> Message:
    """A pod that the node runs from a file of its own."""
    pod = typed(PODS, request.key, request.body())
    with desk.checking(request):
        check_mirror_pod(request.node, request.key, pod, node_uid=uid_of(desk.find_node(request.node)))
    made = await desk.client.create(PODS, pod)
    desk.take_pod(made)
    return outcome(request.message, made, versioned=True)


async def patch_pod(desk: Desk, request: Request) -> Message:
    patch = request.body()
    with desk.checking(request):
        patch = narrow_patch(f"pod {request.key}", patch, metadata=frozenset({"uid"}))
    uid = mapping(patch.get("metadata")).get("uid")
    known = await _bound_uid(desk, request, request.key, uid=uid if isinstance(uid, str) else "")
    metadata = {"uid": known} | mapping(patch.get("metadata"))  # else it may meet a successor on another node
    patch = {**patch, "metadata": metadata}
    pod = await desk.client.patch(PODS, request.key, patch, subresource="status", strategic=True)
    return outcome(request.message, pod, versioned=True)


async def delete_pod(desk: Desk, request: Request) -> Message:
    """The node has ended it. With DeleteOptions, or from older edge cores the UID alone, which means at once."""
    uid, grace_s = _deletion(request)
    try:
        known = await _bound_uid(desk, request, request.key, uid=uid)
        await desk.client.delete(PODS, request.key, uid=uid or known, grace_s=grace_s)
    except NotFound:
        pass
    except Conflict:
        if not uid:
            raise
        # Another pod has the name by now: the one the node means is gone.
    return confirmation(request.message)


def _deletion(request: Request) -> tuple[str, int | None]:
    """UID and grace period in seconds."""
    content: Any = bytes(request.message.content)
    if content.startswith(b'"'):
        text = request.message.data(str)
        if not text.startswith("{"):
            return text[:128], 0
    if content == b"null":
        return "", None
    options = request.body()
    grace = options.get("gracePeriodSeconds")
    uid = mapping(options.get("preconditions")).get("uid")
    valid = isinstance(grace, int) and not isinstance(grace, bool) and 0 <= grace < 2**31
    return (uid if isinstance(uid, str) else "")[:128], grace if valid else None


async def _bound_uid(desk: Desk, request: Request, key: Key, *, uid: str = "") -> str:
    """Of the pod of that name that is bound to the node; what is done to it is done to that one alone, for by now its
    name may be another's. Pods the cache does not have as this node's are asked for: a node may be ahead of it.

    Raises:
        NotFound: There is no such pod.
        Refused: It is bound to another node.
    """
    known = desk.graph.pod(request.node, key)
    if known is not None and uid in ("", known.uid):
        return known.uid
    pod = await desk.client.get(PODS, key)
    with desk.checking(request):
        check_pod(request.node, key, pod)
    return identity(pod)


async def update_pod_statuses(desk: Desk, request: Request) -> Message:
    """Whole statuses, of one pod or of several in a namespace; what older edge cores send."""
    content: Any = request.body() if request.key.name else request.message.data()
    entries = [content] if request.key.name else content
    if not isinstance(entries, list) or len(entries) > MAX_STATUSES:
        raise MalformedMessage(f"content of {request.message.describe()} is no list of at most {MAX_STATUSES} statuses")
    for entry in entries:
        entry = mapping(entry)
        name, uid, status = entry.get("Name"), entry.get("UID"), entry.get("Status")
        if not is_name(name) or not isinstance(uid, str) or not isinstance(status, dict):
            raise MalformedMessage(f"content of {request.message.describe()} lacks a pod's Name, UID or Status")
        await _update_pod_status(desk, request, Key(request.key.namespace, str(name)), uid[:128], status)
    return confirmation(request.message)


async def _update_pod_status(desk: Desk, request: Request, key: Key, uid: str, status: Object) -> None:
    try:
        pod = await desk.client.get(PODS, key)
    except NotFound:
        pod = None
    if pod is None or identity(pod) != uid:
        # The UID keeps two stubs apart, and the pod that has the name by now alive (channel contract 8.1 #7).
        request.link.put_object(gone(PODS, key, uid))
        return
    with desk.checking(request):
        check_pod(request.node, key, pod)
    updated = await desk.client.replace(
        PODS, key, {**pod, "status": _with_kept_times(status, mapping(pod.get("status")))}, subresource="status"
    )
    ended = status.get("phase") in ("Succeeded", "Failed")
    if ended and mapping(updated.get("metadata")).get("deletionTimestamp") and not _runs(status):
        await desk.client.delete(PODS, key, uid=uid, grace_s=0)


def _with_kept_times(status: Object, before: Object) -> Object:
    """A pod keeps its start, and a condition the time of its last change."""
    old = {c.get("type"): c for c in _list(before, "conditions") if isinstance(c, dict)}
    conditions = []
    for condition in _list(status, "conditions"):
        known = old.get(str(mapping(condition).get("type")), {})
        if known.get("type") in _KEPT_TIMES and known.get("status") == condition.get("status"):
            condition = {**condition, "lastTransitionTime": known.get("lastTransitionTime")}
        conditions.append(condition)
    start = before.get("startTime") or status.get("startTime")
    return {**status, "conditions": conditions} | ({"startTime": start} if start else {})


def _runs(status: Object) -> bool:
    states = _list(status, "containerStatuses")
    return any(not mapping(mapping(state).get("state")).get("terminated") for state in states)


def _list(holder: Object, field: str) -> list[Any]:
    value = holder.get(field)
    return value if isinstance(value, list) else []


async def get_referenced(desk: Desk, request: Request) -> Message:
    """A ConfigMap, Secret or PersistentVolumeClaim."""
    with desk.checking(request):
        check_reference(request.node, request.path, desk.graph)
    obj = await desk.client.get(KINDS[request.path.type], request.key)
    return found(request.message, obj, version=resource_version(obj))


async def get_volume(desk: Desk, request: Request) -> Message:
    volume = await desk.client.get(VOLUMES, request.key)
    with desk.checking(request):
        check_volume(request.node, volume, desk.graph)
    return found(request.message, volume, version=resource_version(volume))


async def get_attachment(desk: Desk, request: Request) -> Message:
    attachment = await desk.client.get(VOLUME_ATTACHMENTS, request.key)
    with desk.checking(request):
        check_attachment(request.node, attachment)
    return found(request.message, attachment, version=resource_version(attachment))


async def create_token(desk: Desk, request: Request) -> Message:
    body = request.body()
    with desk.checking(request):
        check_token(request.node, request.key, body, desk.graph)
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": mapping(body.get("spec"))}
    return found(request.message, await desk.client.request_of(SERVICE_ACCOUNTS, request.key, "token", wanted))
