"""From the API to nodes: each connected edge node has its Node, its pods, and the ConfigMaps and Secrets they refer to.

What is due is a node and an object; a worker looks up what the node should have of it now and compares that with what
this connection was told, so changes may repeat, be merged or come late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
from msgspec import Raw, Struct

from cloudcore.edgecontroller.desk import NodeLink
from cloudcore.edgecontroller.graph import Reference, read_pod
from cloudcore.edgecontroller.kinds import CONFIG_MAPS, NODES, PODS, SECRETS
from cloudcore.edgecontroller.messages import SOURCE, Operation, gone, object_message
from cloudcore.edgecontroller.objects import Objects, node_print
from cloudcore.kube import (
    Key,
    KeyedQueue,
    Kind,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    identity,
    resource_version,
    spec_of,
)
from cloudedge import Message

__all__ = ["Downstream", "NoRecords", "Record", "Records"]

logger = logging.getLogger(__name__)

SENDERS: Final = 16
RECORD_S: Final = 5.0
"""How long a first send waits for its record; then it goes without, since a node without its pods is worse off."""
RECORD_REST_S: Final = 60.0
"""After a record that could not be made in time, no other is waited for."""
RETRY_S: Final = 2.0
MAX_WITHDRAWN: Final = 1024
"""Objects that a node was told to delete, until it is looked which of them have a record still."""
_KINDS: Final = ("Node", "Pod", "ConfigMap", "Secret")
_BY_TYPE: Final = {kind.kind.lower(): kind for kind in (NODES, PODS, CONFIG_MAPS, SECRETS)}


class Record(Protocol):
    """That a node has, or may have, an object."""

    @property
    def kind(self) -> str:
        """Such as `Pod`."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> str: ...


class Records(Protocol):
    """What each node has, kept in the API (channel contract 4.4)."""

    async def ensure(self, node: str, obj: Object, /) -> None:
        """Before the first send of an object, which has `apiVersion`, `kind` and metadata. May take for ever."""

    def acknowledged(self, node: str, message: Message, /) -> None:
        """The node has stored the object, or deleted it."""

    def forget(self, node: str, uid: str, /) -> object:
        """The node has another object in its place."""

    def known(self, node: str, kinds: Collection[str], /) -> Sequence[Record]: ...


class NoRecords:
    """Where none are kept: what was deleted while a node was away stays there."""

    async def ensure(self, node: str, obj: Object, /) -> None: ...

    def acknowledged(self, node: str, message: Message, /) -> None: ...

    def forget(self, node: str, uid: str, /) -> None: ...

    def known(self, node: str, kinds: Collection[str], /) -> Sequence[Record]:  # noqa: ARG002 - the port's
        return ()


class _Due(NamedTuple):
    node: str
    kind: str
    key: Key


class _State(NamedTuple):
    """Which object a node was told of, and what of it."""

    uid: str
    print: bytes


class _Sendable(Struct, frozen=True):
    state: _State
    version: str
    body: Raw


class _View:
    """What one connection of a node was told."""

    def __init__(self, link: NodeLink) -> None:
        self.link = link
        self.told: dict[tuple[str, Key], _State] = {}
        self.had: dict[tuple[str, Key], str] = {}
        """UIDs of what it has from earlier connections, as far as not told in this one."""
        self.withdrawn: set[str] = set()
        """UIDs of what it was told to delete."""


class Downstream:
    def __init__(self, client: KubeClient, objects: Objects, records: Records) -> None:
        self._client = client
        self._objects = objects
        self._records = records
        self._views: dict[str, _View] = {}
        self._due: KeyedQueue[_Due] = KeyedQueue()
        self._clock = asyncio.get_running_loop().time
        self._records_rest_until = 0.0

    def __len__(self) -> int:
        """Objects whose turn is still to come."""
        return len(self._due)

    def connected(self, link: NodeLink) -> None:
        """Start anew with this connection of the node."""
        view = self._views[link.node] = _View(link)
        if self._objects.ready.is_set():
            self._begin(link.node, view)

    def begin(self) -> None:
        """All objects are known: go through what the nodes have."""
        for node, view in self._views.items():
            self._begin(node, view)

    def _begin(self, node: str, view: _View) -> None:
        self._recall(node, view)
        for due in self._all(node, view):
            self._due.add(due)

    def _recall(self, node: str, view: _View) -> None:
        """What the records say that the node has, as far as it was not told of it."""
        records = self._records.known(node, _KINDS)
        if view.withdrawn:  # one that has no record any more is not recalled, and pods come and go for ever
            view.withdrawn &= {record.uid for record in records}
        for record in records:
            at = (record.kind, Key(record.namespace, record.name))
            if at not in view.told and record.uid not in view.withdrawn:
                view.had[at] = record.uid

    def _all(self, node: str, view: _View) -> set[_Due]:
        """Everything that the node has or should have."""
        objects = {_Due(node, kind.lower(), key) for kind, key in (*view.told, *view.had)}
        objects.add(_Due(node, "node", Key("", node)))
        objects |= {_Due(node, "pod", pod.key) for pod in self._objects.graph.pods(node)}
        references = self._objects.graph.references(node)
        return objects | {_Due(node, found.type, found.key) for found in references if found.type in _BY_TYPE}

    # Asked by the loop that compares.

    @property
    def told_nodes(self) -> Collection[str]:
        """Nodes that were told of everything once."""
        return list(self._views) if self._objects.ready.is_set() and not self._due.waiting else ()

    def reconcile(self, node: str) -> tuple[int, int]:
        """Send what the node lacks by the caches: how many objects, and how many of these are deletions."""
        view = self._views.get(node)
        if view is None:
            return 0, 0
        self._recall(node, view)
        sent = deleted = 0
        for due in self._all(node, view):
            kind = _BY_TYPE[due.kind]
            at = (kind.kind, due.key)
            wanted = self._wanted(due, kind)
            if due in self._due:  # its turn comes, or it is tried again
                continue
            if self._is_decided(due, kind) and (view.told.get(at) != wanted or at in view.had):
                self._due.add(due)
                sent, deleted = sent + 1, deleted + (wanted is None)
        return sent, deleted

    def disconnected(self, link: NodeLink) -> None:
        view = self._views.get(link.node)
        if view is not None and view.link is link:
            del self._views[link.node]

    def note(self, node: str, kind: Kind, key: Key) -> None:
        """Something about this object changed for this node."""
        if node in self._views:
            self._due.add(_Due(node, kind.kind.lower(), key))

    def acknowledged(self, link: NodeLink, message: Message) -> None:
        if message.route.source == SOURCE:
            self._records.acknowledged(link.node, message)

    def close(self) -> None:
        self._due.close()

    async def run(self) -> None:
        await self._objects.ready.wait()
        self.begin()
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._work(), name=f"send objects {number}")

    async def _work(self) -> None:
        while True:
            due = await self._due.get()
            try:
                await self._settle(due)
            except KubeError as error:
                logger.debug("%s %s for node %s: %s; trying on", due.kind, due.key, due.node, error)
                self._due.add(due, delay_s=RETRY_S)
            except Exception:  # one object must not end the sending of all
                logger.exception("%s %s for node %s could not be sent", due.kind, due.key, due.node)
            finally:
                self._due.done(due)

    async def _settle(self, due: _Due) -> None:
        """Make the node have of one object what it should have."""
        view = self._views.get(due.node)
        kind = _BY_TYPE[due.kind]
        at = (kind.kind, due.key)
        if view is None or not self._is_decided(due, kind):
            return
        told = view.told.get(at)
        if told is not None and told == self._wanted(due, kind):
            return
        sendable = await self._sendable(due, kind)
        if self._views.get(due.node) is not view:
            return  # the next connection begins anew
        if sendable is None:
            self._withdraw(view, kind, due.key)
            return
        before = told.uid if told is not None else view.had.get(at, "")
        if before != sendable.state.uid:
            metadata = {"name": due.key.name, "uid": sendable.state.uid, "resourceVersion": sendable.version}
            metadata |= {"namespace": due.key.namespace} if due.key.namespace else {}
            await self._ensure(due.node, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata})
            if self._views.get(due.node) is not view:
                return
        is_new = told is None and at not in view.had and kind not in (NODES, SECRETS)
        operation: Operation = "insert" if is_new else "update"
        view.link.put_object(object_message(operation, kind, due.key, sendable.body, sendable.version))
        view.told[at] = sendable.state
        view.had.pop(at, None)
        if before and before != sendable.state.uid:
            self._records.forget(due.node, before)

    async def _ensure(self, node: str, obj: Object) -> None:
        if self._clock() < self._records_rest_until:
            return
        try:
            async with asyncio.timeout(RECORD_S):
                await self._records.ensure(node, obj)
        except TimeoutError:
            self._records_rest_until = self._clock() + RECORD_REST_S
            logger.warning(
                "no record of %s %s for node %s within %g s: sending without",
                obj["kind"],
                (obj["metadata"]["name"]),
                node,
                RECORD_S,
            )

    def _withdraw(self, view: _View, kind: Kind, key: Key) -> None:
        at = (kind.kind, key)
        told = view.told.pop(at, None)
        uid = told.uid if told is not None else view.had.pop(at, "")
        if uid:
            view.withdrawn.add(uid)
            if len(view.withdrawn) > MAX_WITHDRAWN:  # where nobody compares
                self._recall(view.link.node, view)
            view.link.put_object(gone(kind, key, uid))

    def _is_decided(self, due: _Due, kind: Kind) -> bool:
        """Whether it is known if the object is there; who finds out later asks for it again."""
        return kind not in (CONFIG_MAPS, SECRETS) or self._objects.versions_known(kind) or not self._is_referred(due)

    def _is_referred(self, due: _Due) -> bool:
        return self._objects.graph.refers(due.node, Reference(due.kind, due.key.namespace, due.key.name))

    def _wanted(self, due: _Due, kind: Kind) -> _State | None:
        """What the node should have of an object, by the caches; None: nothing."""
        node = self._objects.edge_node(due.node)
        if node is None:
            return None
        if kind is NODES:
            return _State(identity(node), node_print(node)) if due.key.name == due.node else None
        if kind is PODS:
            pod = self._objects.graph.pod(due.node, due.key)
            return _State(pod.uid, pod.print) if pod is not None else None
        known = self._objects.version_of(kind, due.key) if self._is_referred(due) else None
        return _State(identity(known), resource_version(known).encode()) if known is not None else None

    async def _sendable(self, due: _Due, kind: Kind) -> _Sendable | None:
        if self._wanted(due, kind) is None:
            return None
        try:
            obj = await self._client.get(kind, due.key)
        except NotFound:
            return None
        if kind is PODS and spec_of(obj).get("nodeName") != due.node:
            return None  # its successor, on another node, and the watch has not said so yet
        (obj.get("metadata") or {}).pop("managedFields", None)
        state = _State(identity(obj), _print_of(kind, obj))
        return _Sendable(state, resource_version(obj), Raw(msgspec.json.encode(obj)))


def _print_of(kind: Kind, obj: Object) -> bytes:
    """As the caches have it of the same state of the object."""
    if kind is NODES:
        return node_print(obj)
    return read_pod(obj).print if kind is PODS else resource_version(obj).encode()
