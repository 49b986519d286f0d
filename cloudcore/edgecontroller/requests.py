"""Requests of nodes: which there are, in which order they are worked on, and how each is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from weakref import WeakValueDictionary

from msgspec import Struct

from cloudcore.edgecontroller import node_requests as nodes
from cloudcore.edgecontroller import pod_requests as pods
from cloudcore.edgecontroller.authorization import Refused
from cloudcore.edgecontroller.desk import Desk, NodeLink, Request
from cloudcore.edgecontroller.kinds import key_at, read_path
from cloudcore.edgecontroller.lanes import Lanes
from cloudcore.edgecontroller.messages import failure, object_failure
from cloudcore.kube import AlreadyExists, Conflict, Key, KubeError, NotFound, Unavailable
from cloudedge import MalformedMessage, Message
from cloudedge.resources import ObjectPath
from dmi.metrics import Metrics

__all__ = ["STALE_S", "Requests"]

logger = logging.getLogger(__name__)

WORKERS: Final = 64
"""API calls in flight for nodes' requests."""
STALE_S: Final = 55.0
"""A request that has waited longer is dropped: edge cores give up after 60 s (channel contract 6.3), and ask again."""
READY_S: Final = 5.0
"""How long a request waits for the API to have told of nodes and pods; then the node is told to try again."""
MAX_BYTES: Final = 3 * 512 * 1024
"""Of a request: what etcd takes of an object. Decoded it takes many times as much memory."""
MAX_MEMBERS: Final = 128 * 1024
"""Of a request of that size. It can hold 700,000, and taking them apart would keep all other nodes waiting."""
_CA: Final = "k8s/ca.crt"

_Answer = Callable[[Desk, Request], Awaitable[Message | None]]


class _Verb(Struct, frozen=True):
    answer: _Answer
    wraps: bool = False
    """Whether the answer is an ObjectResp, failures of the API included."""
    silent: bool = False
    """Nobody waits for an answer."""


_VERBS: Final[Mapping[tuple[str, str], _Verb]] = {
    ("node", "insert"): _Verb(nodes.create_node, wraps=True),
    ("node", "update"): _Verb(nodes.update_node),
    ("node", "query"): _Verb(nodes.get_node),
    ("nodepatch", "patch"): _Verb(nodes.patch_node, wraps=True),
    ("lease", "insert"): _Verb(nodes.create_lease, wraps=True),
    ("lease", "update"): _Verb(nodes.replace_lease, wraps=True),
    ("lease", "query"): _Verb(nodes.get_lease, wraps=True),
    ("certificatesigningrequest", "insert"): _Verb(nodes.create_signing_request, wraps=True),
    ("certificatesigningrequest", "query"): _Verb(nodes.get_signing_request),
    ("event", "insert"): _Verb(nodes.create_event, silent=True),
    ("event", "update"): _Verb(nodes.replace_event, silent=True),
    ("event", "patch"): _Verb(nodes.patch_event, silent=True),
    ("pod", "insert"): _Verb(pods.create_pod, wraps=True),
    ("pod", "delete"): _Verb(pods.delete_pod),
    ("podpatch", "patch"): _Verb(pods.patch_pod, wraps=True),
    ("podstatus", "update"): _Verb(pods.update_pod_statuses),
    ("configmap", "query"): _Verb(pods.get_referenced),
    ("secret", "query"): _Verb(pods.get_referenced),
    ("persistentvolumeclaim", "query"): _Verb(pods.get_referenced),
    ("persistentvolume", "query"): _Verb(pods.get_volume),
    ("volumeattachment", "query"): _Verb(pods.get_attachment),
    ("serviceaccounttoken", "query"): _Verb(pods.create_token),
}
"""By the type in the path and the operation (channel contract 5.4)."""
_CA_VERB: Final = _Verb(nodes.answer_ca)


class Requests:
    """`take` messages; `work` in some tasks."""

    def __init__(
        self,
        desk: Desk,
        metrics: Metrics,
        *,
        ready: asyncio.Event,
        link_of: Callable[[str], NodeLink | None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`ready`: the desk knows nodes and pods; before, every node would be refused what it may have."""
        self._desk = desk
        self._ready = ready
        self._link_of = link_of
        self._clock = clock or asyncio.get_running_loop().time
        self._lanes: Lanes[Request] = Lanes(self._serve, size_of=lambda request: request.message.size)
        self._orders: WeakValueDictionary[tuple[str, str, Key], asyncio.Lock] = WeakValueDictionary()
        """By node and object: what a node writes of one object is written in the order it was sent."""
        self._named: set[tuple[str, int]] = set()
        self._counter = metrics.counter(
            "kubetwin_cloudcore_edge_requests_total", "Requests of nodes, by what came of them.", "type", "outcome"
        )
        metrics.gauge(
            "kubetwin_cloudcore_edge_requests",
            "Requests of nodes that wait or are worked on.",
            "state",
            read=lambda: {("waiting",): float(len(self._lanes)), ("running",): float(self._lanes.running)},
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self._lanes.work(), name=f"answer nodes {number}")

    def take(self, link: NodeLink, message: Message) -> None:
        """Put it into the node's lane, or answer at once that this cannot be served."""
        route = message.route
        if message.size > MAX_BYTES:
            self._fail(link, message, "too large", f"the request has more than {MAX_BYTES} bytes")
            return
        if _members(message) > MAX_MEMBERS:
            self._fail(link, message, "too large", f"the request has more than {MAX_MEMBERS} members")
            return
        if route.resource == _CA:
            path, key, verb = ObjectPath("", "ca", ""), Key("", ""), _CA_VERB
        else:
            try:
                path = read_path(route.resource)
            except MalformedMessage as error:
                self._fail(link, message, "malformed", str(error))
                return
            key = key_at(path)
            found = _VERBS.get((path.type, route.operation))
            if found is None:
                self._refuse_unknown(link, message)
                return
            verb = found
        request = Request(link, message, path, key, self._clock())
        if not self._lanes.add(link.node, request):
            self._counter.add(path.type, "too many")
            if not verb.silent:
                link.post(failure(message, "too many requests of this node wait already"))

    def _refuse_unknown(self, link: NodeLink, message: Message) -> None:
        route = message.route
        what = f"this cloud core does not serve {route.operation[:64]!r} of {route.resource[:512]!r}"
        self._desk.audit.refused("unknown request", node=link.node, resource=route.resource, operation=route.operation)
        self._fail(link, message, "unknown", what)

    def _fail(self, link: NodeLink, message: Message, outcome: str, text: str) -> None:
        """Answered only where somebody may wait: edge cores wait for what they send to group meta."""
        self._counter.add("any", outcome)
        if message.route.group == "meta":
            link.post(failure(message, text))

    async def _serve(self, request: Request) -> None:
        message, type_ = request.message, request.path.type
        if self._clock() - request.came_s > STALE_S:
            self._counter.add(type_, "stale")
            return
        verb = _CA_VERB if message.route.resource == _CA else _VERBS[type_, message.route.operation]
        order = self._orders.setdefault((request.node, type_.removesuffix("patch"), request.key), asyncio.Lock())
        async with order if message.route.operation != "query" else contextlib.nullcontext():
            outcome, answer = await self._answer(verb, request)
        self._counter.add(type_, outcome)
        if answer is not None and not verb.silent:
            # The node may have come back meanwhile, and still waits for it.
            (self._link_of(request.node) or request.link).post(answer)

    def _note(self, request: Request, error: KubeError) -> None:
        """Log what needs a person, once for each kind of request: nodes ask again and again."""
        trouble = (request.path.type, error.status)
        expected = isinstance(error, Unavailable | NotFound | Conflict | AlreadyExists)  # the watches tell of the first
        level = logging.DEBUG if expected or trouble in self._named else logging.WARNING
        if not expected:
            self._named.add(trouble)
        logger.log(level, "node %s: %r: %s", request.node, request.message.describe()[:512], error)

    async def _until_ready(self) -> None:
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(READY_S):
                    await self._ready.wait()
            except TimeoutError:
                raise Unavailable("the Kubernetes API has not answered this cloud core yet") from None

    async def _answer(self, verb: _Verb, request: Request) -> tuple[str, Message | None]:
        message = request.message
        try:
            await self._until_ready()
            return "served", await verb.answer(self._desk, request)
        except Refused as refusal:
            return "refused", failure(message, str(refusal))
        except KubeError as error:
            self._note(request, error)
            return "failed", object_failure(message, error) if verb.wraps else failure(message, str(error))
        except (MalformedMessage, RecursionError) as error:
            return "malformed", failure(message, str(error) or "nested too deeply")
        except Exception as error:  # a request of one node must not end the service of all
            logger.exception("node %s: %r could not be answered", request.node, message.describe()[:512])
            return "failed", failure(message, f"this cloud core failed: {type(error).__name__}")


def _members(message: Message) -> int:
    """About how many values the content has; those in texts count, and a JSON text has them there."""
    content = bytes(message.content)
    return 0 if len(content) <= MAX_MEMBERS else sum(map(content.count, (b",", b"[", b"{")))
