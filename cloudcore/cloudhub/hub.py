"""The server: lets nodes in, keeps one session a node, and sorts what nodes send."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from picows import WSCloseCode

from cloudcore.audit import Audit
from cloudcore.cloudhub.figures import Figures, kind_of
from cloudcore.cloudhub.gauges import show
from cloudcore.cloudhub.ports import Admission, Everybody, NodeHandler, Owners, SoleOwner
from cloudcore.cloudhub.rivals import Rivals
from cloudcore.cloudhub.session import Session, SessionEnded
from cloudcore.cloudhub.unserved import refusal, turned_down
from cloudcore.cloudhub.upgrade import node_of_upgrade, wrong_with
from cloudcore.cloudhub.waiting import Leftovers, wait_for_owner
from cloudedge import Message, certificates, tls
from cloudedge.connection import Connection
from cloudedge.listening import Listener, ListenerLimits, Refusal, serve
from cloudedge.message import MAX_MESSAGE_BYTES
from dmi.metrics import Metrics

__all__ = ["CloudHub", "HubSettings"]

logger = logging.getLogger(__name__)

_CLOUD_SOURCES: Final = frozenset({"cloudhub", "cloudStream", "devicecontroller", "edgecontroller", "synccontroller"})
"""Names of modules of the cloud: a node that claims to be one is not listened to (channel contract 5.5)."""
_TASK_OPERATIONS: Final = frozenset({"prepull", "upgrade", "UpdateNodeActionStatus"})
_LEGACY_NAME: Final = "kubeedge.io"
"""In the certificates of upstream's first versions, the same for every node."""
_MAX_REFUSALS: Final = 1024
_REFUSAL_LINES: Final = 60
"""A minute: with one certificate a client can be as many wrong nodes as it likes."""
_MAX_KINDS: Final = 256
"""Kinds of messages counted apart; nodes choose the words, so there is an end to them."""


class HubSettings(Struct, frozen=True):
    host: str = "0.0.0.0"  # noqa: S104 - upstream's default; nodes come from outside, with certificates
    port: int = 10000
    """0: any free one, then see `CloudHub.port`."""
    node_limit: int = 500
    """Different nodes at a time; the next is refused with HTTP 503."""
    keepalive_s: float = 30.0
    """A node silent for longer is closed; only keepalive messages count."""
    write_timeout_s: float = 30.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """A node that sends a larger one is closed."""
    upgrade_s: float = 10.0
    """For a client's TLS, and again for its upgrade request."""
    strict_identity: bool = True
    """Whether the certificate must be the node's. Off: upstream's oldest ones, which name no node, are taken too."""


class CloudHub:
    """`run` it in a task; `listening` is set once nodes can come."""

    def __init__(
        self,
        settings: HubSettings,
        *,
        ssl_context: ssl.SSLContext,
        devices: NodeHandler,
        requests: NodeHandler | None = None,
        admission: Admission | None = None,
        owners: Owners | None = None,
        audit: Audit | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`devices` gets messages of source `twin`, `requests` those of edged and metamanager; both are told of nodes
        and of acknowledgements.
        """
        self.port = settings.port
        self.listening = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """What was refused or dropped, by what it was."""
        self._settings = settings
        self._ssl_context = ssl_context
        self._devices = devices
        self._requests = requests
        self._handlers = [handler for handler in (devices, requests) if handler is not None]
        self._admission = admission or Everybody()
        self._owners = owners or SoleOwner()
        metrics = metrics or Metrics()
        self._audit = audit or Audit(metrics)
        self._figures = Figures(metrics)
        self._sessions: dict[str, Session] = {}
        self._waiting: dict[str, Connection] = {}
        """Nodes that this replica does not own yet."""
        self._leftovers = Leftovers()
        self._rivals = Rivals()
        self._refusals: dict[str, str] = {}
        """By node, why it was refused last, since it was let in last."""
        self._lines_until = 0.0
        self._lines = 0
        self._group: asyncio.TaskGroup | None = None
        self.listener: Listener | None = None
        show(metrics, sessions=self._sessions, waiting=self._waiting, listener=lambda: self.listener)

    @property
    def nodes(self) -> frozenset[str]:
        """Who is connected."""
        return frozenset(self._sessions)

    async def run(self) -> None:
        """Serve until cancelled, then say goodbye to every node.

        Raises:
            OSError: The address cannot be listened on.
        """
        limits = ListenerLimits(max_message_bytes=self._settings.max_message_bytes, upgrade_s=self._settings.upgrade_s)
        self.listener = await serve(
            self._accept,
            self._open,
            host=self._settings.host,
            port=self._settings.port,
            ssl_context=self._ssl_context,
            limits=limits,
            confirms_uploads=True,
        )
        self.port = self.listener.sockets[0].getsockname()[1]
        async with asyncio.TaskGroup() as self._group:
            try:
                logger.info("CloudHub listening on %s:%d", self._settings.host, self.port)
                self.listening.set()
                await asyncio.get_running_loop().create_future()  # nodes come and go until we are cancelled
            finally:
                self._group = None
                self.listening.clear()
                self.listener.close()
                await self.listener.wait_closed()

    def end(self, node: str, reason: str) -> None:
        """Close what the node has here, as when another replica has it now. It is told, and connects again."""
        verdict = SessionEnded("other owner", reason, WSCloseCode.TRY_AGAIN_LATER)
        if (session := self._sessions.get(node)) is not None:
            session.end(verdict)
            self._note_rival(node)
        if (connection := self._waiting.get(node)) is not None:
            connection.hang_up(verdict.code, reason)

    def end_refused(self) -> None:
        """Ask about every node again, and close those that would not be let in now."""
        for session in list(self._sessions.values()):
            if reason := self._refusal_of(session.connection):
                session.end(SessionEnded("refused", reason, WSCloseCode.POLICY_VIOLATION))
        for connection in list(self._waiting.values()):
            if reason := self._refusal_of(connection):
                connection.hang_up(WSCloseCode.POLICY_VIOLATION, reason)

    def _accept(self, headers: Mapping[str, str]) -> str:
        try:
            node = node_of_upgrade(headers)
        except Refusal as wrong:
            self._note_refusal("upgrade request", headers.get("node_id", "")[:64], str(wrong))
            raise
        if self._is_full(node):
            reason = f"the limit of {self._settings.node_limit} nodes is reached"
            self._note_refusal("node limit", node, reason)
            raise Refusal(503, f"node {node}: {reason}")
        return node

    def refused(self, node: str) -> str:
        """Why the node was turned away, if that is what happened last; empty: it was not, or not here."""
        return self._refusals.get(node, "")

    def _note_refusal(self, what: str, node: str, reason: str) -> None:
        """Count it, and log it on the change: an edge core that is refused tries again every few seconds."""
        self.counts[f"refused: {what}"] += 1
        self._figures.refused.add(what)
        if self._refusals.get(node) != reason:
            if len(self._refusals) >= _MAX_REFUSALS:
                self._refusals.clear()
            self._refusals[node] = reason
            if self._may_log():
                logger.warning("node %r refused: %s", node, reason)

    def _note_rival(self, node: str) -> None:
        """A connection in use gave way to a newer one, here or at another replica."""
        if self._rivals.suspect(node, asyncio.get_running_loop().time()):
            logger.warning(
                "node %s: newer connections take the place of those in use again and again: do two machines have this "
                "name? Give one of them another (edged.hostnameOverride), or keep one out (docs/security.md)",
                node,
            )

    def _may_log(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now >= self._lines_until:
            self._lines_until, self._lines = now + 60.0, 0
        self._lines += 1
        if self._lines == _REFUSAL_LINES:
            logger.warning("more nodes are refused than are named here; the metrics have the number")
        return self._lines < _REFUSAL_LINES

    def _is_full(self, node: str) -> bool:
        """What the node has here already does not count: it will be replaced."""
        if node in self._sessions or node in self._waiting:
            return False
        if len(self._sessions) + len(self._waiting) < self._settings.node_limit:
            return False
        return len(self._sessions.keys() | self._waiting.keys()) >= self._settings.node_limit

    def _open(self, connection: Connection) -> None:
        if self._group is None:  # stopping
            connection.abort()
            return
        self._group.create_task(self._serve(connection), name=f"node {connection.peer}")

    def _refusal_of(self, connection: Connection) -> str:
        """Why the node behind a connection may not be here; counted."""
        node, certificate = connection.peer, certificates.shown(connection.peer_certificate())
        owner = tls.node_of(certificate)
        legacy = not self._settings.strict_identity and tls.common_name(certificate) == _LEGACY_NAME
        if owner != node and not legacy:
            whose = f"node {owner}'s" if owner else "no node's"
            self._note_refusal("certificate", node, f"the certificate is {whose}")
            self._audit.refused(  # its own name, if it has one: of others it can call itself by any number
                "connection: certificate",
                node=owner,
                operation="connect",
                detail=f"the certificate is {whose}, not node {node}'s",
            )
            return f"the certificate is not node {node}'s"
        if reason := self._admission.refusal(node, certificate):
            self._note_refusal("not admitted", node, reason)
            self._audit.refused("connection: not admitted", node=node, operation="connect", detail=reason)
        return reason

    async def _serve(self, connection: Connection) -> None:
        """One connection from its upgrade to its end. What it sends before its session is kept, and read by nobody."""
        node = connection.peer
        if reason := self._refusal_of(connection):
            await connection.close(WSCloseCode.POLICY_VIOLATION, reason)
            return
        if self._is_full(node):  # several came at once
            self._note_refusal("node limit", node, f"the limit of {self._settings.node_limit} nodes is reached")
            await connection.close(WSCloseCode.TRY_AGAIN_LATER, "the node limit is reached")
            return
        if (older := self._waiting.get(node)) is not None:
            older.hang_up(WSCloseCode.POLICY_VIOLATION, "a newer connection of the node took over")
        self._waiting[node] = connection
        try:
            owned = await wait_for_owner(self._owners, connection, silent_s=self._settings.keepalive_s)
        except Exception:  # the next try may do better
            logger.exception("node %s: its owner could not be settled", node)
            owned = False
        finally:
            newest = self._waiting.get(node) is connection
            if newest:
                del self._waiting[node]
        if not owned or not newest:
            await connection.close(WSCloseCode.TRY_AGAIN_LATER, "this cloud core does not own the node yet")
            if newest and node not in self._sessions:
                self._owners.released(node)
            return
        await self._run_session(connection)

    async def _run_session(self, connection: Connection) -> None:
        node = connection.peer
        session = Session(
            connection,
            keepalive_s=self._settings.keepalive_s,
            write_timeout_s=self._settings.write_timeout_s,
            figures=self._figures,
        )
        before = self._sessions.get(node)
        self._sessions[node] = session
        self._refusals.pop(node, None)
        if before is not None:
            self._figures.takeovers.add()
            self._leftovers.keep(node, before.unsent())
            newer = "a newer connection of the node took over"
            before.end(SessionEnded("replaced", newer, WSCloseCode.POLICY_VIOLATION))
            self._note_rival(node)
        logger.info("node %s connected%s", node, ", taking over from an older connection" if before else "")
        ended = SessionEnded("failed", "it failed")
        try:
            for handler in self._handlers:
                handler.node_connected(session)
            for message in self._leftovers.take(node):
                session.post(message)
            ended = await session.run(self._take)
        except asyncio.CancelledError:
            ended = SessionEnded("stopping", "CloudHub is stopping")
            raise
        except Exception:  # one node must not end all others
            logger.exception("node %s: session failed", node)
            session.end(ended)
            connection.abort()  # or the node would go on talking to nobody
        finally:
            self._figures.ended.add(ended.what)
            if self._sessions.get(node) is session:
                del self._sessions[node]
                self._leftovers.keep(node, session.unsent())
                for handler in self._handlers:
                    handler.node_disconnected(session)
                if node not in self._waiting:
                    self._owners.released(node)
                logger.info("node %s disconnected: %s", node, ended)
            else:
                logger.info("node %s: older connection closed: %s", node, ended)

    def _take(self, session: Session, message: Message) -> None:
        """Sort by the rules of the channel contract, 5.5."""
        route = message.route
        if session is not self._sessions.get(session.node):
            return  # replaced, and not closed yet
        self._figures.received.add(kind_of(message))
        if wrong := wrong_with(message, session.node):
            self._count(f"malformed {wrong}", session, message)
            self._audit.refused(
                f"malformed {wrong}", node=session.node, resource=route.resource, operation=route.operation
            )
            self._turn_down(session, message, f"malformed {wrong}", parent="" if wrong == "message id" else message.id)
        elif route.operation == "keepalive":
            session.keep_alive()
        elif route.operation == "response":
            acknowledged = session.acknowledge(message.header.parent_msg_id)
            if acknowledged is not None:
                for handler in self._handlers:
                    handler.acknowledged(session, acknowledged)
        elif route.operation == "error":
            self._count("error", session, message, f": {bytes(message.content)[:200].decode(errors='replace')}")
        elif route.source in _CLOUD_SOURCES:
            self._count("claims to be from the cloud", session, message)
            self._audit.refused("source of the cloud", node=session.node, resource=route.resource)
            self._turn_down(session, message, f"{route.source} is not a module of a node", parent=message.id)
        elif route.source == "twin":
            self._devices.take(session, message)
        elif self._requests is not None and route.group != "user" and route.operation not in _TASK_OPERATIONS:
            self._requests.take(session, message)
        else:
            answer = refusal(message)
            if answer is not None:
                session.post(answer)
            self._count("not served yet", session, message)

    def _turn_down(self, session: Session, message: Message, why: str, *, parent: str) -> None:
        """Who waits for an answer gets one. There is none to an answer, or two ends could go on for ever."""
        if message.route.operation not in ("response", "error"):
            session.post(turned_down(message, why, parent=parent))

    def _count(self, what: str, session: Session, message: Message, detail: str = "") -> None:
        """Count a message by its kind, and log the first of each kind."""
        route = message.route
        self._figures.dropped.add(what)
        parts = route.resource.split("/", 2)
        kind = f"{what}: {route.source[:32]} {route.operation[:32]} {parts[1][:32] if len(parts) > 1 else ''}".rstrip()
        if kind not in self.counts:
            if len(self.counts) >= _MAX_KINDS:
                kind = f"{what}: others"
            if kind not in self.counts:
                logger.warning("node %s: %s: %r", session.node, what, (message.describe() + detail)[:512])
        self.counts[kind] += 1
