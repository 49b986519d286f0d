"""Answers local apps that read and update twins over MQTT, as upstream documents it (device contract 3.5).

Requests wait in a bounded queue and are done in batches, one transaction each, so that a commit that takes its time
costs the many one wait. Whoever brings one waits until it is stored and answered, and until then keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from cloudedge import MalformedMessage
from cloudedge.message import now_ms
from dmi import DeviceId, NodeName, device_id
from dmi.metrics import Metrics
from edgecore.bus import Bus, MqttIn, TwinMessage
from edgecore.devicetwin.catalog import Catalog
from edgecore.devicetwin.document import Refused, cloud_updated, update
from edgecore.devicetwin.heard import HeardReports
from edgecore.devicetwin.merge import merge_state
from edgecore.devicetwin.mqtt_payloads import membership_result, refusal, result_topic, twins_result
from edgecore.devicetwin.mqtt_requests import (
    Asked,
    NotJson,
    Request,
    read_event_id,
    read_object,
    read_request,
    read_topic,
)
from edgecore.devicetwin.publisher import TwinPublisher
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import (
    Database,
    StateRow,
    StoreError,
    TwinRow,
    get_state,
    get_twins,
    list_states,
    put_twins,
    update_state,
)

__all__ = ["TwinApps"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 256
BATCH_REQUESTS: Final = 64


class _Work(Struct, frozen=True):
    request: Request
    types: Mapping[str, str] | None
    """Property → type, as the Device declares them; None: it cannot be read."""


class _Done(Struct, frozen=True):
    request: Request
    before: Mapping[str, TwinRow] = {}
    changed: Mapping[str, TwinRow] = {}
    state: StateRow | None = None
    states: Mapping[DeviceId, StateRow] = {}
    tell_cloud: bool = False
    refused: Refused | None = None


class TwinApps:
    """`reports`: where what was refused is noted, for whoever asks why. `spoken_for` is told of every device whose
    state an app reports, before that is stored.
    """

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        sync: CloudSync,
        bus: Bus,
        *,
        node: NodeName,
        publisher: TwinPublisher,
        reports: HeardReports,
        spoken_for: Callable[[DeviceId], None],
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._sync = sync
        self._bus = bus
        self._node = node
        self._publisher = publisher
        self._reports = reports
        self._spoken_for = spoken_for
        self._waiting: asyncio.Queue[tuple[Request, asyncio.Future[None]]] = asyncio.Queue(MAX_WAITING)
        metrics = metrics or Metrics()
        self._requests = metrics.counter(
            "kubetwin_edgecore_app_requests_total", "Requests of local apps over MQTT.", "request", "code"
        )
        self._unknown = metrics.counter(
            "kubetwin_edgecore_app_topics_unknown_total", "MQTT messages on no topic of the device twin."
        )
        bus.subscribe(MqttIn, self._take)
        bus.subscribe(TwinMessage, self._take_sync)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH_REQUESTS and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._do_all([request for request, _ in batch])
            for _, done in batch:
                if not done.done():  # cancelled: whoever brought it is gone
                    done.set_result(None)

    async def _take(self, event: MqttIn) -> None:
        asked = read_topic(event.topic)
        if asked is None:
            self._unknown.add()
            logger.debug("not a topic of the device twin: %.200s", event.topic)
            return
        try:
            content = read_object(event.payload)
        except Refused as refused:
            self._refuse(asked, "", refused)
        else:
            await self._read(asked, content)

    async def _take_sync(self, event: TwinMessage) -> None:
        """Upstream's cloud can say so too, although no released one does."""
        match event.message.route.resource.split("/"):
            case ["device", namespace, name, "twin", "cloud_updated"] if namespace and name:
                try:
                    content = event.message.data(dict[str, Any])
                except MalformedMessage as error:
                    logger.warning("message dropped: %s", error)
                else:
                    await self._read(Asked("twin/cloud_updated", device_id(namespace, name)), content)

    async def _read(self, asked: Asked, content: Mapping[str, Any]) -> None:
        event_id = ""
        try:
            event_id = read_event_id(content)
            request = read_request(asked, event_id, content)
        except Refused as refused:
            self._refuse(asked, event_id, refused)
        else:
            done = asyncio.get_running_loop().create_future()
            await self._waiting.put((request, done))
            await done

    async def _do_all(self, batch: list[Request]) -> None:
        works: list[_Work] = []
        for request in batch:
            entry = self._catalog.get(request.asked.device)
            if entry is not None:
                if request.asked.kind == "state/update":
                    self._spoken_for(request.asked.device)
                works.append(_Work(request, entry.properties))
            elif request.asked.kind == "membership/get":
                works.append(_Work(request, None))
            else:
                self._refuse(request.asked, request.event_id, Refused(404, f"is not on node {self._node}"))
        if not works:
            return
        now = now_ms()
        try:
            await self._database.run(lambda db: [_attempt(db, work, now) for work in works], then=self._answer)
        except StoreError as error:
            for work in works:
                self._refuse(work.request.asked, work.request.event_id, Refused(500, str(error)))

    def _answer(self, all_done: list[_Done]) -> None:
        for done in all_done:
            asked, event_id = done.request.asked, done.request.event_id
            if done.refused is not None:
                self._refuse(asked, event_id, done.refused)
                continue
            self._requests.add(asked.kind, "200")
            self._answer_one(asked, event_id, done)

    def _answer_one(self, asked: Asked, event_id: str, done: _Done) -> None:
        device = asked.device
        match asked.kind:
            case "twin/update":
                if done.tell_cloud:
                    self._sync.mark_twins(device, {**done.before, **done.changed})
                self._publisher.answer_update(device, done.request.changes, done.before, done.changed, event_id)
            case "twin/cloud_updated":
                if done.tell_cloud:
                    self._sync.mark_twins(device, {**done.before, **done.changed})
                self._publisher.publish_sync(device, done.before, done.changed, event_id)
            case "state/update":
                if done.tell_cloud:
                    self._sync.mark_state(device)
                self._publisher.publish_state(device, done.state or StateRow(), event_id)
            case "twin/get":
                self._bus.tell(twins_result(device, done.before, done.state, event_id))
            case "membership/get":
                states = {known: done.states.get(known) for known in self._catalog}
                self._bus.tell(membership_result(self._node, states, event_id))

    def _refuse(self, asked: Asked, event_id: str, refused: Refused) -> None:
        """Say no, and why, to the one who asked and to whoever looks for what is wrong with the device."""
        device, kind = asked.device, asked.kind
        self._requests.add(kind, str(refused.code))
        reason = f"device {device}: {refused}" if device else str(refused)
        self._bus.tell(refusal(result_topic(kind, device, self._node), refused.code, reason, event_id))
        if isinstance(refused, NotJson) and kind in ("twin/update", "twin/cloud_updated"):
            # Where upstream answers what it cannot read, without a device.
            self._bus.tell(refusal(result_topic(kind, "", self._node), refused.code, reason, event_id))
        known = device in self._catalog
        if known and self._reports.note_refused(device, refused.what or kind, f"over MQTT: {refused}", now_ms()):
            logger.warning("%s over MQTT refused: %s", kind, reason)


def _attempt(db: sqlite3.Connection, work: _Work, now: int) -> _Done:
    """One request must not take the others with it."""
    try:
        return _do(db, work, now)
    except Refused as refused:
        return _Done(work.request, refused=refused)
    except sqlite3.Error:
        raise  # the transaction's
    except Exception as error:
        logger.exception("%s of device %s", work.request.asked.kind, work.request.asked.device)
        return _Done(work.request, refused=Refused(500, f"internal error: {error!r}"))


def _do(db: sqlite3.Connection, work: _Work, now: int) -> _Done:
    request, device = work.request, work.request.asked.device
    match request.asked.kind:
        case "twin/update" | "twin/cloud_updated":
            stored = get_twins(db, device)
            change = update if request.asked.kind == "twin/update" else cloud_updated
            changed = change(stored, request.changes, work.types, now_ms=now)
            put_twins(db, device, changed.values())
            tell_cloud = any(row.dirty for row in changed.values())
            return _Done(request, stored, changed, tell_cloud=tell_cloud)
        case "state/update":
            said = request.state
            tell_cloud = update_state(db, device, lambda row: merge_state(row, said, "", seen_online_ms=0, now_ms=now))
            return _Done(request, state=get_state(db, device), tell_cloud=tell_cloud)
        case "twin/get":
            return _Done(request, get_twins(db, device), state=get_state(db, device))
        case "membership/get":
            return _Done(request, states=list_states(db))
