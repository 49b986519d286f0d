"""What the API has for nodes, kept small: edge nodes without their status, of pods what they refer to, and of
ConfigMaps and Secrets only which version there is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

import msgspec

from cloudcore.edgecontroller.graph import Graph, Pod, Reference, read_pod
from cloudcore.edgecontroller.kinds import CONFIG_MAPS, EDGE_LABEL, NODES, PODS, SECRETS
from cloudcore.kube import (
    Informer,
    Key,
    Kind,
    KubeClient,
    Object,
    Scope,
    identity,
    resource_version,
    spec_of,
)

__all__ = ["Objects", "node_print"]

_POD: Final = "pod"
_PRINT: Final = "print"
_encoder: Final = msgspec.json.Encoder(order="sorted")


class Objects:
    """`run` it in a task. `changed` is told node and kind and key of everything a node may have to be sent."""

    def __init__(self, client: KubeClient, changed: Callable[[str, Kind, Key], None]) -> None:
        self.graph = Graph()
        self.ready = asyncio.Event()
        """Nodes and pods are known."""
        self._changed = changed
        self._connected: set[str] = set()
        self._nodes = Informer(client, NODES, scope=Scope(labels=EDGE_LABEL), slim=_slim_node)
        self._pods = Informer(client, PODS, scope=Scope(fields="spec.nodeName!="), slim=_slim_pod)
        self._wanted = {kind: asyncio.Event() for kind in (CONFIG_MAPS, SECRETS)}
        """Set with the first pod of a connected node that refers to one."""
        self._versions = {
            kind: Informer(client, kind, scope=Scope(metadata_only=True), slim=_slim_version) for kind in self._wanted
        }
        self._nodes.subscribe(self._node_changed)
        self._pods.subscribe(self._pod_changed)
        for type_, informer in zip(("configmap", "secret"), self._versions.values(), strict=True):
            informer.subscribe(self._referenced_changed(type_, informer.kind))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._nodes.run(), name="watch nodes")
            group.create_task(self._pods.run(), name="watch pods")
            for kind in self._wanted:
                group.create_task(self._watch_versions(kind), name=f"watch versions of {kind.plural}")
            await self._nodes.synced.wait()
            await self._pods.synced.wait()
            self.ready.set()
            for node in self._connected:
                self._all_changed(node)

    # Asked by others.

    def edge_node(self, name: str) -> Object | None:
        """A Node with the label of an edge, without its status."""
        return self._nodes.get(Key("", name))

    def version_of(self, kind: Kind, key: Key) -> Object | None:
        """Name, UID and version of a ConfigMap or Secret that is there."""
        return self._versions[kind].get(key)

    def versions_known(self, kind: Kind) -> bool:
        return self._versions[kind].synced.is_set()

    def take_pod(self, pod: Object) -> None:
        """One that was just made."""
        self._pods.observe(pod)

    def connected(self, node: str) -> None:
        self._connected.add(node)
        self._note_references(node)

    def disconnected(self, node: str) -> None:
        self._connected.discard(node)

    # Told by the informers.

    def _node_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        if (old is None) != (new is None):
            self._all_changed(key.name)
        elif old is not None and new is not None and node_print(old) != node_print(new):
            self._changed(key.name, NODES, key)

    def _all_changed(self, node: str) -> None:
        self._changed(node, NODES, Key("", node))
        for pod in self.graph.pods(node):
            self._changed(node, PODS, pod.key)
        self._note_references(node)

    def _note_references(self, node: str) -> None:
        for reference in self.graph.references(node):
            self._reference_changed(node, reference)

    def _reference_changed(self, node: str, reference: Reference) -> None:
        kind = next((kind for kind in self._wanted if kind.kind.lower() == reference.type), None)
        if kind is not None:
            if node in self._connected:
                self._wanted[kind].set()
            self._changed(node, kind, reference.key)

    def _pod_changed(self, _key: Key, old: Object | None, new: Object | None) -> None:
        before: Pod | None = old[_POD] if old is not None else None
        after: Pod | None = new[_POD] if new is not None else None
        if before is not None:
            self.graph.remove(before)
        if after is not None:
            self.graph.add(after)
        for pod, other in ((before, after), (after, before)):
            if pod is None:
                continue
            if other is None or other.node != pod.node or other.print != pod.print or other.uid != pod.uid:
                self._changed(pod.node, PODS, pod.key)
            same_node = other is not None and other.node == pod.node
            for reference in pod.references - (other.references if same_node and other is not None else frozenset()):
                self._reference_changed(pod.node, reference)

    def _referenced_changed(self, type_: str, kind: Kind) -> Callable[[Key, Object | None, Object | None], None]:
        def changed(key: Key, _old: Object | None, _new: Object | None) -> None:
            for node in self.graph.users(Reference(type_, key.namespace, key.name)) & self._connected:
                self._changed(node, kind, key)

        return changed

    async def _watch_versions(self, kind: Kind) -> None:
        await self._wanted[kind].wait()
        informer = self._versions[kind]
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run(), name=f"watch {kind.plural}")
            await informer.synced.wait()
            for node in self._connected:
                self._note_references(node)


def node_print(node: Object) -> bytes:
    """Another one when anything changed that a node is told of; heartbeats are nothing."""
    if (known := node.get(_PRINT)) is not None:
        return bytes(known)
    metadata = node.get("metadata") or {}
    told = [spec_of(node), metadata.get("labels"), metadata.get("annotations")]
    return hashlib.blake2b(_encoder.encode(told), digest_size=12).digest()


def _slim_node(node: Object) -> Object:
    metadata = node.get("metadata") or {}
    kept = ("name", "uid", "resourceVersion", "labels", "annotations", "ownerReferences", "finalizers")
    slim = {name: metadata[name] for name in kept if name in metadata}
    return {"metadata": slim, "spec": spec_of(node), _PRINT: node_print(node)}


def _slim_pod(pod: Object) -> Object:
    metadata = pod.get("metadata") or {}
    slim = {name: metadata.get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
    return {"metadata": slim, _POD: read_pod(pod)}


def _slim_version(obj: Object) -> Object:
    return {
        "metadata": {
            "name": (obj.get("metadata") or {}).get("name"),
            "namespace": (obj.get("metadata") or {}).get("namespace"),
            "uid": identity(obj),
            "resourceVersion": resource_version(obj),
        }
    }
