"""The device controller: caches of three kinds, nodes' links, and what connects them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable
from functools import partial
from typing import Final

from msgspec import Struct

from cloudcore.audit import Audit
from cloudcore.devicecontroller.declarations import Declarations
from cloudcore.devicecontroller.downstream import Downstream
from cloudcore.devicecontroller.events import EventRecorder, EventSettings, transitions
from cloudcore.devicecontroller.index import DeviceIndex
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES, node_name
from cloudcore.devicecontroller.known import Known, lag_s, merge_state, merge_twins
from cloudcore.devicecontroller.links import GRACE_S, Alone, Links, NodeLink, Writers
from cloudcore.devicecontroller.messages import report_ok
from cloudcore.devicecontroller.mirror import Mirror
from cloudcore.devicecontroller.queries import Queries, QuerySettings
from cloudcore.devicecontroller.reports import read_state_report, read_twin_report
from cloudcore.devicecontroller.shown import Shown
from cloudcore.devicecontroller.statuses import PATCH_INTERVAL_S, StatusWriter
from cloudcore.devicecontroller.views import NodeRecords
from cloudcore.kube import Informer, Key, KubeClient, Object, identity, spec_of
from cloudedge import MalformedMessage, Message
from cloudedge.message import now_ms
from cloudedge.queries import query_device
from cloudedge.resources import MEMBERSHIP_DETAIL, DeviceReport, device_report
from dmi.metrics import Metrics

__all__ = ["ControllerSettings", "DeviceController"]

logger = logging.getLogger(__name__)

MIRROR_WRITERS: Final = 8
MAX_EARLY: Final = 10_000
MAX_EARLY_BYTES: Final = 64 * 1024 * 1024
"""Reports kept while the caches fill. The oldest beyond is dropped unconfirmed, so it is sent again."""
FIRST_WORDS_S: Final = 2.0
"""How long a node that came back has to say its devices' states, before they are shown as not reported."""
MAX_LAG_S: Final = 60.0
"""A value collected so much earlier than the one known is worth a word: most likely a clock is wrong."""
MAX_NAMED: Final = 1024
"""Refusals that are logged one by one; nodes choose the names."""


class ControllerSettings(Struct, frozen=True):
    writers: int = 32
    """Writes to the API in flight."""
    patch_interval_s: float = PATCH_INTERVAL_S
    """Least time between two PATCHes of one device."""
    grace_s: float = GRACE_S
    """How long a node may be away before its devices' state is unknown."""
    mirror_twins: bool = False
    """Whether `Device.status` shows twins and state too, as before KubeEdge 1.23."""
    events: EventSettings = EventSettings()
    queries: QuerySettings = QuerySettings()


class DeviceController:
    """`run` it in a task; the hub tells it of nodes and hands it their messages."""

    def __init__(
        self,
        client: KubeClient,
        settings: ControllerSettings | None = None,
        *,
        writers: Writers | None = None,
        records: NodeRecords | None = None,
        metrics: Metrics | None = None,
        audit: Audit | None = None,
    ) -> None:
        """`writers`: who of several replicas writes what; without, this process writes everything. `records`: what
        nodes acknowledged.
        """
        self.counts: Counter[str] = Counter()
        """Reports that were refused or dropped, by why."""
        self._audit = audit or Audit(metrics)
        settings = settings or ControllerSettings()
        self._settings = settings
        self._writers = writers = writers or Alone()
        self.devices = Informer(client, DEVICES)
        self.models = Informer(client, MODELS)
        self.statuses = Informer(client, STATUSES)
        self._index = DeviceIndex()
        self._links = Links(asyncio.get_running_loop().time, grace_s=settings.grace_s)
        self._declarations = Declarations(self.devices.get, self.models.get)
        self.downstream = Downstream(
            self.devices.get,
            self.models.get,
            self._index.of_node,
            self._declarations,
            progress=lambda kind: (self.devices if kind is DEVICES else self.models).progress,
            told=self._take_early,
            records=records,
            metrics=metrics,
        )
        self.writer = StatusWriter(
            client,
            self.statuses,
            self.devices.get,
            self._declarations,
            self._links,
            tell=self._status_written,
            writers=writers,
            interval_s=settings.patch_interval_s,
        )
        self.events = EventRecorder(client, settings.events)
        self.queries = Queries(
            client,
            self.devices.get,
            self.statuses,
            self._links,
            knows_questions=self.writer.is_ours,
            writers=writers,
            settings=settings.queries,
        )
        self.mirror = Mirror(client, self.devices, self.statuses, wanted=settings.mirror_twins, writers=writers)
        self._reports_welcome = False
        self._early: dict[str, deque[tuple[NodeLink, Message, DeviceReport]]] = {}
        """By node: reports that cannot be judged yet."""
        self._early_count = self._early_bytes = 0
        self._named: set[tuple[str, str, Key]] = set()
        self.devices.subscribe(self._device_changed)
        self.models.subscribe(self._model_changed)
        self.statuses.subscribe(self._status_changed)

    async def run(self) -> None:
        """Follow the API and write to it until cancelled. Survives an API server that is away, at start too."""
        try:
            async with asyncio.TaskGroup() as group:
                for informer in (self.devices, self.models, self.statuses):
                    group.create_task(informer.run(), name=f"watch {informer.kind.plural}")
                await self.devices.synced.wait()
                await self.models.synced.wait()
                self.downstream.caches_complete()
                await self.statuses.synced.wait()
                for number in range(self._settings.writers):
                    group.create_task(self.writer.work(), name=f"write statuses {number}")
                for number in range(MIRROR_WRITERS):
                    group.create_task(self.mirror.work(), name=f"mirror statuses {number}")
                group.create_task(self.events.run(), name="write events")
                group.create_task(self.queries.run(), name="answer questions")
                self._reports_welcome = True
                for node in list(self._early):
                    self._take_early(node)
        finally:
            self.writer.close()
            self.mirror.close()
            self.events.close()
            self.queries.close()
            self.downstream.close()

    # Called by the hub.

    def node_connected(self, link: NodeLink, /) -> None:
        self._pop_early(link.node)  # of the connection before; the node says it again
        self._links.connected(link)
        self.downstream.connected(link)
        self.queries.connected(link)
        for key in self._index.of_node(link.node):
            self.writer.note(key, delay_s=FIRST_WORDS_S)

    def node_disconnected(self, link: NodeLink, /) -> None:
        self.downstream.disconnected(link)
        if self._links.disconnected(link):
            self._pop_early(link.node)
            for key in self._index.of_node(link.node):
                self.writer.note(key, delay_s=self._links.grace_left_s(link.node) + 0.01)

    def take(self, link: NodeLink, message: Message, /) -> None:
        """A message of source `twin`: a report, an answer, or the question which devices the node has."""
        if message.route.resource == MEMBERSHIP_DETAIL:
            self.downstream.request(link, message)
            return
        if (asked := query_device(message.route.resource)) is not None:
            self.queries.take(link, Key(*asked), message)
            return
        report = device_report(message.route.resource)
        if report is None:
            self._refuse(link, message, "resource that is no report", Key("", ""), message.route.resource)
        elif self._may_judge(link):
            self._take_report(link, message, report)
        else:
            self._keep_early(link, message, report)

    def acknowledged(self, link: NodeLink, message: Message, /) -> None:
        """The node has stored an object."""
        self.downstream.acknowledged(link, message)

    def _keep_early(self, link: NodeLink, message: Message, report: DeviceReport) -> None:
        self._early.setdefault(link.node, deque()).append((link, message, report))
        self._early_count += 1
        self._early_bytes += len(message.content)
        while self._early_count > MAX_EARLY or self._early_bytes > MAX_EARLY_BYTES:
            node, kept = next(iter(self._early.items()))
            _, dropped, _ = kept.popleft()
            if not kept:
                del self._early[node]
            self._early_count -= 1
            self._early_bytes -= len(dropped.content)
            self.counts["dropped: too early"] += 1

    def _pop_early(self, node: str) -> Iterable[tuple[NodeLink, Message, DeviceReport]]:
        kept = self._early.pop(node, ())
        self._early_count -= len(kept)
        self._early_bytes -= sum(len(message.content) for _, message, _ in kept)
        return kept

    def _may_judge(self, link: NodeLink) -> bool:
        """Whether our caches are complete, and know what the node has: another replica may have told it of a device,
        or a property, that is news here, and what it reports of that must not be refused.
        """
        return self._reports_welcome and not self.downstream.is_behind(link)

    def _take_early(self, node: str) -> None:
        if not self._reports_welcome:  # with thousands of nodes, going through it for nothing takes its time
            return
        for link, message, report in self._pop_early(node):
            if not self._may_judge(link):
                self._keep_early(link, message, report)
                continue
            try:
                self._take_report(link, message, report)
            except Exception:  # one report must not keep the others, or end the process
                logger.exception("node %s: %.256r could not be taken", node, message.describe())

    def _take_report(self, link: NodeLink, message: Message, report: DeviceReport) -> None:
        key = Key(report.namespace, report.name)
        device = self.devices.get(key)
        if device is None:
            self._refuse(link, message, "device that does not exist", key)
        elif node_name(device) != link.node:
            route = message.route
            self._audit.refused(
                "device of another node", node=link.node, resource=route.resource, operation=route.operation
            )
            self._refuse(link, message, "device of another node", key)
        else:
            try:
                self._merge(link, message, report, key, device)
            except MalformedMessage as error:
                self._refuse(link, message, "report that cannot be read", key, str(error))

    def _merge(self, link: NodeLink, message: Message, report: DeviceReport, key: Key, device: Object) -> None:
        if report.what == "state":
            state = read_state_report(message)
            self.writer.update(
                key, device, partial(merge_state, report=state, now_ms=now_ms()), report_id=message.id, link=link
            )
            return
        sides, wrong = read_twin_report(message)
        if wrong:
            self._count("property that cannot be read", link, key, "; ".join(wrong))
        declared = self._declarations.get(key)
        properties = declared.properties if declared is not None else ()

        def merge(known: Known) -> Known:
            now = now_ms()
            if message.header.timestamp > 0:  # the node's clock; what is known lies ahead of one that was set back
                now = min(now, message.header.timestamp)
            if (late_s := lag_s(known, sides, now_ms=now)) > MAX_LAG_S:
                detail = f"by {late_s:.0f} s, and so not taken; is the node's clock right?"
                self._count("value older than the one known", link, key, detail)
            return merge_twins(known, sides=sides, properties=properties, now_ms=now)

        self.writer.update(key, device, merge, report_id=message.id, link=link)

    def _refuse(self, link: NodeLink, message: Message, what: str, key: Key, detail: str = "") -> None:
        """Confirm what the API will never have, or the node would send it for ever; counted, and named once."""
        self._count(what, link, key, detail)
        link.post(report_ok(message.id))

    def _count(self, what: str, link: NodeLink, key: Key, detail: str) -> None:
        self.counts[f"refused: {what}"] += 1
        key = Key(key.namespace[:64], key.name[:256])  # the node's words, of any length
        name = (what, link.node, key)
        if name not in self._named and len(self._named) < MAX_NAMED:
            self._named.add(name)
            logger.warning("node %s reports a %s: %r %r", link.node, what, str(key), detail[:512])

    # Called by the replicas.

    def writer_changed(self, node: str | None) -> None:
        """Who writes for a node (None: for any) may be another replica now. What the one before wrote is not news here;
        a node whose replica has gone gets its time to connect elsewhere.
        """
        if node is None:
            keys = list(self.devices.keys())
        else:
            keys = list(self._index.of_node(node))
            self._links.orphaned(node)
        for key in keys:
            device = self.devices.get(key)
            if device is not None and self._writers.writes_for(node_name(device)):
                self.writer.note(key)
            else:
                self.writer.forget(key)
            self.mirror.note(key)
            self.queries.look(key, self.statuses.get(key))

    # Called by the informers.

    def _device_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        self.mirror.note(key)
        if old is not None and new is not None and identity(old) == identity(new) and spec_of(old) == spec_of(new):
            return  # labels, annotations, status: nobody else's business here
        if old is not None and (new is None or identity(old) != identity(new)):
            self.events.forget(key, old)
        self._index.change(key, old, new)
        self._declarations.forget(key)
        self.downstream.device_changed(key, old, new)
        self.writer.note(key)

    def _model_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and identity(old) == identity(new) and spec_of(old) == spec_of(new):
            return
        users = self._index.of_model(key)
        for user in users:
            self._declarations.forget(user)
            self.writer.note(user)
        self.downstream.model_changed(key, users)

    def _status_changed(self, key: Key, _old: Object | None, new: Object | None) -> None:
        self.writer.note_status(key, new)
        self.mirror.note(key)
        self.queries.look(key, new)

    # Called by the writer.

    def _status_written(self, key: Key, device: Object, before: Shown, after: Shown) -> None:
        for told in transitions(before, after):
            self.events.note(node_name(device), key, device, told)
