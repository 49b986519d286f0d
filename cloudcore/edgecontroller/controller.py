"""The edge controller: nodes' requests on the one hand, what nodes are sent on the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from cloudcore.audit import Audit
from cloudcore.edgecontroller.authorization import mapping
from cloudcore.edgecontroller.desk import Desk, NodeLink
from cloudcore.edgecontroller.downstream import Downstream, NoRecords, Records
from cloudcore.edgecontroller.kinds import NODES
from cloudcore.edgecontroller.node_requests import CLOUD_ANNOTATION
from cloudcore.edgecontroller.objects import Objects
from cloudcore.edgecontroller.requests import Requests
from cloudcore.kube import Key, KeyedQueue, Kind, KubeClient, KubeError, NotFound
from cloudedge import Message
from dmi.metrics import Metrics

__all__ = ["EdgeController", "EdgeSettings"]

logger = logging.getLogger(__name__)

RETRY_S: Final = 5.0
MARKERS: Final = 4


class EdgeSettings(Struct, frozen=True):
    address: str = ""
    """Where this replica can be reached by others; empty: nodes are not marked with it."""
    authorize: bool = True
    """Refuse what a node has no business with."""
    audit_only: bool = False
    """Say what would be refused, and do it."""


class EdgeController:
    """`run` it in a task; the hub tells it of nodes and hands it their messages."""

    def __init__(
        self,
        client: KubeClient,
        settings: EdgeSettings | None = None,
        *,
        node_of_device: Callable[[Key], str] | None = None,
        records: Records | None = None,
        audit: Audit | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`node_of_device`: whose a device is, empty for one that is not there; nodes report events about theirs."""
        settings = settings or EdgeSettings()
        metrics = metrics or Metrics()
        self._client = client
        self._address = settings.address
        self.objects = Objects(client, self._object_changed)
        self.downstream = Downstream(client, self.objects, records or NoRecords())
        self._links: dict[str, NodeLink] = {}
        self._unmarked: KeyedQueue[str] = KeyedQueue()
        """Nodes whose annotation may name another replica."""
        desk = Desk(
            client=client,
            audit=audit or Audit(metrics),
            graph=self.objects.graph,
            find_node=self.objects.edge_node,
            take_pod=self.objects.take_pod,
            node_of_device=node_of_device or (lambda _device: ""),
            address=settings.address,
            enforce=settings.authorize and not settings.audit_only,
            watch_only=settings.authorize and settings.audit_only,
        )
        self._requests = Requests(desk, metrics, ready=self.objects.ready, link_of=self._links.get)
        metrics.gauge(
            "kubetwin_cloudcore_edge_objects_due",
            "Objects that nodes may have to be sent.",
            read=lambda: {(): float(len(self.downstream))},
        )

    async def run(self) -> None:
        """Follow the API and answer nodes until cancelled. Survives an API server that is away, at start too."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.objects.run(), name="watch what nodes have")
                group.create_task(self.downstream.run(), name="send what nodes have")
                group.create_task(self._requests.run(), name="answer nodes")
                for number in range(MARKERS):
                    group.create_task(self._mark_nodes(), name=f"mark nodes {number}")
        finally:
            self.downstream.close()
            self._unmarked.close()

    # Called by the hub.

    def node_connected(self, session: NodeLink, /) -> None:
        self._links[session.node] = session
        self.objects.connected(session.node)
        self.downstream.connected(session)
        self._unmarked.add(session.node)

    def node_disconnected(self, session: NodeLink, /) -> None:
        if self._links.get(session.node) is session:
            del self._links[session.node]
            self.objects.disconnected(session.node)
        self.downstream.disconnected(session)

    def take(self, session: NodeLink, message: Message, /) -> None:
        """A message of edged, metamanager, or of a module that nobody else serves."""
        self._requests.take(session, message)

    def acknowledged(self, session: NodeLink, message: Message, /) -> None:
        """The node has stored an object."""
        self.downstream.acknowledged(session, message)

    # Called by the informers.

    def _object_changed(self, node: str, kind: Kind, key: Key) -> None:
        self.downstream.note(node, kind, key)
        if kind is NODES and node in self._links:
            self._unmarked.add(node)

    async def _mark_nodes(self) -> None:
        """Keep the annotation by which upstream's Router finds the replica of a node; a write only on the change."""
        await self.objects.ready.wait()
        while True:
            node = await self._unmarked.get()
            try:
                await self._mark(node)
            except KubeError as error:
                logger.debug("node %s cannot be marked with our address: %s; trying on", node, error)
                self._unmarked.add(node, delay_s=RETRY_S)
            except Exception:  # one odd node must not stop all others
                logger.exception("node %s could not be marked with our address", node)
            finally:
                self._unmarked.done(node)

    async def _mark(self, node: str) -> None:
        known = self.objects.edge_node(node)
        if known is None or node not in self._links or not self._address:
            return
        annotations = mapping(mapping(known.get("metadata")).get("annotations"))
        if annotations.get(CLOUD_ANNOTATION) != self._address:
            patch = {"metadata": {"annotations": {CLOUD_ANNOTATION: self._address}}}
            try:
                await self._client.patch(NODES, Key("", node), patch)
            except NotFound:
                return  # it comes back with a change of its own
