"""What a node asks about itself: its Node, its Lease, its certificates, events, the CA of the API."""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

import msgspec

from cloudcore.edgecontroller.authorization import (
    Refused,
    check_event,
    check_labels,
    check_lease,
    check_node,
    check_node_object,
    mapping,
    narrow_patch,
)
from cloudcore.edgecontroller.desk import Desk, Request
from cloudcore.edgecontroller.kinds import EVENTS, LEASES, NODES, SIGNING_REQUESTS
from cloudcore.edgecontroller.messages import confirmation, found, outcome
from cloudcore.edgecontroller.signing import check_signing_request
from cloudcore.kube import Key, Kind, Object, resource_version
from cloudedge import MalformedMessage, Message

__all__ = [
    "CLOUD_ANNOTATION",
    "answer_ca",
    "create_event",
    "create_lease",
    "create_node",
    "create_signing_request",
    "get_lease",
    "get_node",
    "get_signing_request",
    "patch_event",
    "patch_node",
    "replace_event",
    "replace_lease",
    "typed",
    "update_node",
]

CLOUD_ANNOTATION: Final = "cloudcore"
"""On a Node, the address of the replica it is connected to; upstream's Router forwards by it (channel contract 6.1)."""

_PATCHED_METADATA: Final = frozenset({"uid", "name", "labels", "annotations"})
_DECIDED: Final = ("generateName", "managedFields", "selfLink")
_DECIDED_ANEW: Final = ("uid", "resourceVersion", "creationTimestamp", "generation")
"""Metadata that the API decides."""
_EVENT_MEMBERS: Final = frozenset({"count", "lastTimestamp", "message", "series", "type", "reason", "eventTime"})
"""What an event that happens again changes."""


def typed(kind: Kind, key: Key, body: Object, *, is_new: bool = True) -> Object:
    """What a node sent, as an object of the kind at its very place."""
    metadata = {name: value for name, value in mapping(body.get("metadata")).items() if value is not None}
    metadata.pop("namespace", None)  # of a cluster-scoped one too: it would become part of a URL
    metadata |= {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
    for decided in (*_DECIDED, *(_DECIDED_ANEW if is_new else ())):
        metadata.pop(decided, None)
    return {**body, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


async def create_node(desk: Desk, request: Request) -> Message:
    """A node registers. One that is there already is told so, as upstream tells it, and goes on to patch its status."""
    body = request.body()
    with desk.checking(request):
        check_node(request.node, request.key.name)
        check_node_object(request.node, body, None)
    node = typed(NODES, request.key, body)
    if desk.address:
        annotations = {**mapping(node["metadata"].get("annotations")), CLOUD_ANNOTATION: desk.address}
        node["metadata"]["annotations"] = annotations
    return outcome(request.message, await desk.client.create(NODES, node), versioned=False)


async def update_node(desk: Desk, request: Request) -> Message:
    """Labels and annotations are merged into those there are; nothing else of the Node is a node's to change."""
    body = request.body()
    with desk.checking(request):
        check_node(request.node, request.key.name)
    known = await desk.client.get(NODES, request.key)
    with desk.checking(request):
        check_node_object(request.node, body, known)
    metadata = mapping(body.get("metadata"))
    annotations = {**mapping(metadata.get("annotations"))}
    annotations.pop(CLOUD_ANNOTATION, None)  # ours, and the node's copy of it may be old
    patch = {"metadata": {"labels": mapping(metadata.get("labels")), "annotations": annotations}}
    await desk.client.patch(NODES, request.key, patch)
    return confirmation(request.message)


async def patch_node(desk: Desk, request: Request) -> Message:
    patch = request.body()
    with desk.checking(request):
        check_node(request.node, request.key.name)
        known = mapping(mapping(desk.find_node(request.node)).get("metadata"))
        check_labels(request.node, mapping(mapping(patch.get("metadata")).get("labels")), mapping(known.get("labels")))
        patch = narrow_patch(f"node {request.node}", patch, metadata=_PATCHED_METADATA)
    if isinstance(annotations := mapping(patch.get("metadata")).get("annotations"), dict):
        annotations.pop(CLOUD_ANNOTATION, None)
    node = await desk.client.patch(NODES, request.key, patch, subresource="status", strategic=True)
    return outcome(request.message, node, versioned=True)


async def get_node(desk: Desk, request: Request) -> Message:
    with desk.checking(request):
        check_node(request.node, request.key.name)
    node = await desk.client.get(NODES, request.key)
    return found(request.message, node, version=resource_version(node))


async def create_lease(desk: Desk, request: Request) -> Message:
    lease = await desk.client.create(LEASES, _lease(desk, request, is_new=True))
    return outcome(request.message, lease, versioned=False)


async def replace_lease(desk: Desk, request: Request) -> Message:
    lease = await desk.client.replace(LEASES, request.key, _lease(desk, request, is_new=False))
    return outcome(request.message, lease, versioned=False)


def _lease(desk: Desk, request: Request, *, is_new: bool) -> Object:
    with desk.checking(request):
        check_lease(request.node, request.key)
    return typed(LEASES, request.key, request.body(), is_new=is_new)


async def get_lease(desk: Desk, request: Request) -> Message:
    with desk.checking(request):
        check_lease(request.node, request.key)
    return outcome(request.message, await desk.client.get(LEASES, request.key), versioned=False)


async def create_signing_request(desk: Desk, request: Request) -> Message:
    key = request.key if request.key.name else Key("", f"csr-{uuid.uuid4().hex[:12]}")
    body = typed(SIGNING_REQUESTS, key, request.body())
    with desk.checking(request):
        check_signing_request(request.node, body)
    return outcome(request.message, await desk.client.create(SIGNING_REQUESTS, body), versioned=False)


async def get_signing_request(desk: Desk, request: Request) -> Message:
    if not request.key.name:
        raise MalformedMessage(f"{request.message.describe()} names no signing request")
    known = await desk.client.get(SIGNING_REQUESTS, request.key)
    with desk.checking(request):
        check_signing_request(request.node, known)
    return found(request.message, known, version=resource_version(known))


async def create_event(desk: Desk, request: Request) -> None:
    event = typed(EVENTS, request.key, request.body())
    _check_event(desk, request, event)
    await desk.client.create(EVENTS, event)


async def replace_event(desk: Desk, request: Request) -> None:
    event = typed(EVENTS, request.key, request.body(), is_new=False)
    _check_event(desk, request, event)
    _check_event(desk, request, await desk.client.get(EVENTS, request.key))
    await desk.client.replace(EVENTS, request.key, event)


async def patch_event(desk: Desk, request: Request) -> None:
    """`{"event": …, "patchData": "…"}`: the patch, to the event that the path names."""
    try:
        patch = msgspec.json.decode(str(request.body().get("patchData")))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedMessage(f"patchData of {request.message.describe()}: {error}") from None
    if not isinstance(patch, dict):
        raise MalformedMessage(f"patchData of {request.message.describe()} is no object")
    with desk.checking(request):
        if extra := sorted(set(patch) - _EVENT_MEMBERS):
            raise Refused("patched field", f"a patch of event {request.key} may not hold {extra[0][:253]!r}")
    _check_event(desk, request, await desk.client.get(EVENTS, request.key))
    await desk.client.patch(EVENTS, request.key, patch, strategic=True)


def _check_event(desk: Desk, request: Request, event: Object) -> None:
    about = mapping(event.get("involvedObject"))
    device = Key(str(about.get("namespace") or "default"), str(about.get("name")))
    with desk.checking(request):
        check_event(request.node, request.key, event, desk.graph, node_of_device=desk.node_of_device(device))


async def answer_ca(desk: Desk, request: Request) -> Message:
    """PEM of the CA of the Kubernetes API, as text."""
    pem = await asyncio.to_thread(desk.client.ca_pem)
    if not pem:
        raise MalformedMessage("this cloud core knows no CA of the Kubernetes API")
    return found(request.message, pem.decode(errors="replace"), source="cloudhub")
