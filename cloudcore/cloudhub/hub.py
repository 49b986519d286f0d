"""The server: lets nodes in, keeps one session a node, and sorts what nodes send."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct
from picows import WSCloseCode

from cloudcore.cloudhub.session import Session, SessionEnded
from cloudcore.cloudhub.unserved import refusal
from cloudedge import Message, tls
from cloudedge.connection import Connection, Refusal, serve

__all__ = ["CloudHub", "HubSettings", "NodeHandler"]

logger = logging.getLogger(__name__)

_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""A Kubernetes object name (RFC 1123 subdomain), as node names are."""
_CLOUD_SOURCES: Final = frozenset({"cloudhub", "cloudStream", "devicecontroller", "edgecontroller", "synccontroller"})
"""Names of modules of the cloud: a node that claims to be one is not listened to (channel contract 5.5)."""
_MAX_REFUSALS: Final = 1024
_MAX_KINDS: Final = 256
"""Kinds of messages counted apart; nodes choose the words, so there is an end to them."""


class HubSettings(Struct, frozen=True):
    host: str = "0.0.0.0"  # noqa: S104 - upstream's default; nodes come from outside, with certificates
    port: int = 10000
    """0: any free one, then see `CloudHub.port`."""
    node_limit: int = 500
    """Sessions of different nodes at a time; the next is refused with HTTP 503."""
    keepalive_s: float = 30.0
    """A node silent for longer is closed; only keepalive messages count."""
    write_timeout_s: float = 30.0


class NodeHandler(Protocol):
    """Who is told of nodes and gets their device messages. None of these waits."""

    def node_connected(self, session: Session, /) -> None:
        """Also called when a newer connection takes over; the session before it is then forgotten without a word."""

    def node_disconnected(self, session: Session, /) -> None: ...

    def take(self, session: Session, message: Message, /) -> None:
        """A message of source `twin`."""


class CloudHub:
    """`run` it in a task; `listening` is set once nodes can come."""

    def __init__(self, settings: HubSettings, *, ssl_context: ssl.SSLContext, handler: NodeHandler) -> None:
        self.port = settings.port
        self.listening = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """What was refused or dropped, by what it was."""
        self._settings = settings
        self._ssl_context = ssl_context
        self._handler = handler
        self._sessions: dict[str, Session] = {}
        self._refusals: dict[str, str] = {}
        """By node, why it was refused last, since it was let in last."""
        self._group: asyncio.TaskGroup | None = None

    @property
    def nodes(self) -> frozenset[str]:
        """Who is connected."""
        return frozenset(self._sessions)

    async def run(self) -> None:
        """Serve until cancelled, then say goodbye to every node.

        Raises:
            OSError: The address cannot be listened on.
        """
        server = await serve(
            self._accept,
            self._open,
            host=self._settings.host,
            port=self._settings.port,
            ssl_context=self._ssl_context,
        )
        self.port = server.sockets[0].getsockname()[1]
        async with asyncio.TaskGroup() as self._group:
            try:
                logger.info("CloudHub listening on %s:%d", self._settings.host, self.port)
                self.listening.set()
                await asyncio.get_running_loop().create_future()  # nodes come and go until we are cancelled
            finally:
                self._group = None
                server.close()

    def _accept(self, headers: Mapping[str, str]) -> str:
        node = headers.get("node_id", "")
        if not _NODE_NAME.fullmatch(node):
            raise self._refused("no node name", 400, node[:64], f"header node_id {node[:64]!r} is not a node name")
        use = headers.get("ConnectionUse", "")
        if use != "msg":
            raise self._refused("no message connection", 400, node, f"header ConnectionUse is {use[:64]!r}, not 'msg'")
        if self._is_full(node):
            raise self._refused("node limit", 503, node, f"the limit of {self._settings.node_limit} nodes is reached")
        return node

    def _refused(self, what: str, status: int, node: str, reason: str) -> Refusal:
        self._note_refusal(what, node, reason)
        return Refusal(status, f"node {node}: {reason}")

    def _note_refusal(self, what: str, node: str, reason: str) -> None:
        """Count it, and log it on the change: an edge core that is refused tries again every few seconds."""
        self.counts[f"refused: {what}"] += 1
        if self._refusals.get(node) != reason:
            if len(self._refusals) >= _MAX_REFUSALS:
                self._refusals.clear()
            self._refusals[node] = reason
            logger.warning("node %r refused: %s", node, reason)

    def _is_full(self, node: str) -> bool:
        """A node's own session before this one does not count: it will be replaced."""
        return len(self._sessions) >= self._settings.node_limit and node not in self._sessions

    def _open(self, connection: Connection) -> None:
        if self._group is None:  # stopping
            connection.abort()
            return
        self._group.create_task(self._serve(connection), name=f"node {connection.peer}")

    async def _serve(self, connection: Connection) -> None:
        """One connection from its upgrade to its end."""
        node = connection.peer
        owner = tls.node_of(connection.peer_certificate())
        if owner != node:
            whose = f"node {owner}'s" if owner else "no node's"
            self._note_refusal("certificate", node, f"the certificate is {whose}")
            await connection.close(WSCloseCode.POLICY_VIOLATION, f"the certificate is not node {node}'s")
            return
        if self._is_full(node):  # several came at once
            self._note_refusal("node limit", node, f"the limit of {self._settings.node_limit} nodes is reached")
            await connection.close(WSCloseCode.TRY_AGAIN_LATER, "the node limit is reached")
            return
        session = Session(
            connection, keepalive_s=self._settings.keepalive_s, write_timeout_s=self._settings.write_timeout_s
        )
        before = self._sessions.get(node)
        self._sessions[node] = session
        self._refusals.pop(node, None)
        if before is not None:
            before.end(SessionEnded("a newer connection of the node took over", WSCloseCode.POLICY_VIOLATION))
        logger.info("node %s connected%s", node, ", taking over from an older connection" if before else "")
        reason = "it failed"
        try:
            self._handler.node_connected(session)
            reason = await session.run(self._take)
        except Exception:  # one node must not end all others
            logger.exception("node %s: session failed", node)
            connection.abort()  # or the node would go on talking to nobody
        finally:
            if self._sessions.get(node) is session:
                del self._sessions[node]
                self._handler.node_disconnected(session)
                logger.info("node %s disconnected: %s", node, reason)
            else:
                logger.info("node %s: older connection closed: %s", node, reason)

    def _take(self, session: Session, message: Message) -> None:
        """Sort by the rules of the channel contract, 5.5."""
        route = message.route
        if session is not self._sessions.get(session.node):
            return  # replaced, and not closed yet
        if route.operation == "keepalive":
            session.keep_alive()
        elif route.operation == "response":
            session.acknowledge(message.header.parent_msg_id)
        elif route.operation == "error":
            self._count("error", session, message, f": {bytes(message.content)[:200].decode(errors='replace')}")
        elif route.source in _CLOUD_SOURCES:
            self._count("claims to be from the cloud", session, message)
        elif route.source == "twin":
            self._handler.take(session, message)
        else:
            answer = refusal(message)
            if answer is not None:
                session.post(answer)
            self._count("not served yet", session, message)

    def _count(self, what: str, session: Session, message: Message, detail: str = "") -> None:
        """Count a message by its kind, and log the first of each kind."""
        route = message.route
        parts = route.resource.split("/")
        kind = f"{what}: {route.source[:32]} {route.operation[:32]} {parts[1][:32] if len(parts) > 1 else ''}".rstrip()
        if kind not in self.counts:
            if len(self.counts) >= _MAX_KINDS:
                kind = f"{what}: others"
            if kind not in self.counts:
                logger.warning("node %s: %s: %r", session.node, what, (message.describe() + detail)[:512])
        self.counts[kind] += 1
