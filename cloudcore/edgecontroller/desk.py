"""What every kind of request needs: the API, what is known of nodes and pods, and whether rules are enforced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from msgspec import Struct

from cloudcore.audit import Audit
from cloudcore.edgecontroller.authorization import Refused
from cloudcore.edgecontroller.graph import Graph
from cloudcore.kube import Key, KubeClient, Object
from cloudedge import MalformedMessage, Message
from cloudedge.resources import ObjectPath

__all__ = ["Desk", "NodeLink", "Request"]


class NodeLink(Protocol):
    """A connected node, for sending. Neither method waits or fails."""

    @property
    def node(self) -> str: ...

    def post(self, message: Message, /) -> None:
        """Send once."""

    def put_object(self, message: Message, /) -> None:
        """Send until acknowledged, newest per resource."""


class Request(Struct, frozen=True, eq=False):
    link: NodeLink
    message: Message
    path: ObjectPath
    key: Key
    """Of the object in the API."""
    came_s: float
    """The event loop's time."""

    @property
    def node(self) -> str:
        return self.link.node

    def body(self) -> Object:
        """The content, which must be an object.

        Raises:
            MalformedMessage: It is none.
        """
        try:
            content: Any = self.message.data()
        except RecursionError:
            raise MalformedMessage(f"content of {self.message.describe()} is nested too deeply") from None
        if not isinstance(content, dict):
            raise MalformedMessage(f"content of {self.message.describe()} is no object")
        metadata = content.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise MalformedMessage(f"metadata in {self.message.describe()} is no object")
        return content


class Desk(Struct, frozen=True, eq=False):
    client: KubeClient
    audit: Audit
    graph: Graph
    find_node: Callable[[str], Object | None]
    """A Node with the label of an edge, without its status."""
    take_pod: Callable[[Object], None]
    """Told of a pod that was just made, ahead of the watch."""
    node_of_device: Callable[[Key], str]
    """Empty: no such device."""
    address: str
    """Where this replica can be reached by others; goes into the nodes' annotation."""
    enforce: bool
    """Refuse what the rules forbid."""
    watch_only: bool
    """Say what would be refused, and do it."""

    @contextmanager
    def checking(self, request: Request) -> Iterator[None]:
        """Rules are asked in the block.

        Raises:
            Refused: By one of them, where rules are enforced.
        """
        try:
            yield
        except Refused as refusal:
            if not self.enforce and not self.watch_only:
                return
            route = request.message.route
            self.audit.refused(
                refusal.reason if self.enforce else f"{refusal.reason} (let pass)",
                node=request.node,
                resource=route.resource,
                operation=route.operation,
                detail=str(refusal),
            )
            if self.enforce:
                raise
