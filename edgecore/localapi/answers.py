"""Answers the questions that come through the cloud (`cloudedge.queries`), a bounded number at a time.

What cannot be answered is answered with why not; what cannot even be read, or is too much, is dropped and counted: the
cloud says so itself after a while.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from typing import Any, Final

import msgspec

from cloudedge import ConnectionLost, MalformedMessage, Message, new_message
from cloudedge.facts import DeviceFacts
from cloudedge.message import now_ms
from cloudedge.queries import MAX_ANSWER_BYTES, Answer, Query, query_device
from dmi import DeviceId, device_id
from edgecore.bus import Bus, TwinMessage, Upstream
from edgecore.localapi.sources import Sources
from edgecore.localapi.views import HISTORY_OFF, history_view

__all__ = ["Answers", "fit_facts", "fit_history"]

logger = logging.getLogger(__name__)

QUEUE: Final = 32
PAUSE_S: Final = 0.02
"""After each answer: questions must not crowd out values."""
MAX_POINTS: Final = 2000
_ID: Final = re.compile(r"[a-z0-9]{8,32}", re.ASCII)

_encode: Final = msgspec.json.Encoder().encode


class _CannotAnswer(Exception):
    """In words for the one who asked."""


class _JustId(msgspec.Struct):
    """What of a question must be right for it to get an answer at all."""

    id: str


class Answers:
    def __init__(self, sources: Sources, bus: Bus) -> None:
        self._sources = sources
        self._bus = bus
        self._queue: asyncio.Queue[tuple[Message, DeviceId]] = asyncio.Queue(QUEUE)
        self._count = sources.metrics.counter(
            "kubetwin_edgecore_queries_total", "Questions that came through the cloud.", "outcome"
        )
        bus.subscribe(TwinMessage, self._take)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            message, device = await self._queue.get()
            try:
                await self._answer(message, device)
            except ConnectionLost:
                self._count.add("lost")  # who asked is told by the cloud
            except Exception:  # one question must not end the answering of others
                logger.exception("%s was not answered", message.describe())
                self._count.add("failed")
            await asyncio.sleep(PAUSE_S)

    async def _take(self, event: TwinMessage) -> None:
        found = query_device(event.message.route.resource)
        if found is None:
            return  # about membership
        if event.message.route.operation != "get":
            self._count.add("malformed")
            return
        try:
            self._queue.put_nowait((event.message, device_id(*found)))
        except asyncio.QueueFull:
            self._count.add("too many")

    async def _answer(self, message: Message, device: DeviceId) -> None:
        try:
            id_ = message.data(_JustId).id
            if not _ID.fullmatch(id_):
                raise MalformedMessage(f"content of {message.describe()}: the id is not 8 to 32 of a-z and 0-9")
        except MalformedMessage as error:
            self._count.add("malformed")
            logger.warning("question dropped: %s", error)
            return
        try:
            answer = Answer(id_, result=msgspec.Raw(await self._result(message, device)), answered_ms=now_ms())
            self._count.add("answered")
        except _CannotAnswer as why:
            answer = Answer(id_, error=str(why), answered_ms=now_ms())
            self._count.add("refused")
        up = new_message(
            source="twin",
            group="resource",
            operation="update",
            resource=message.route.resource,
            content=answer,
            parent=message.id,
        )
        await self._bus.publish(Upstream(up))

    async def _result(self, message: Message, device: DeviceId) -> bytes:
        try:
            query = message.data(Query)
        except MalformedMessage as error:
            raise _CannotAnswer(str(error)) from error
        match query.ask:
            case "path":
                return fit_facts(await self._sources.facts.path(device))
            case "history":
                return await self._history(device, query)

    async def _history(self, device: DeviceId, query: Query) -> bytes:
        history = self._sources.history
        if history is None:
            raise _CannotAnswer(HISTORY_OFF)
        if not self._sources.facts.is_here(device):
            raise _CannotAnswer(f"device {device} is not on node {self._sources.facts.node_facts().node}")
        try:
            points, truncated = await history.newest_first(
                device,
                query.property,
                since_ms=query.since_ms,
                limit=max(min(query.limit, MAX_POINTS), 1),
                max_bytes=MAX_ANSWER_BYTES,
            )
        except (OSError, ValueError, sqlite3.Error) as error:
            raise _CannotAnswer(f"the history cannot be read: {error}") from error
        return fit_history(history_view(points, truncated))


def fit_history(view: dict[str, Any]) -> bytes:
    """As JSON of at most `MAX_ANSWER_BYTES`, the newest values kept."""
    body = _encode(view)
    while len(body) > MAX_ANSWER_BYTES:
        values = view["values"]
        view = {"values": values[: len(values) * MAX_ANSWER_BYTES // len(body)], "truncated": True}
        body = _encode(view)
    return body


def fit_facts(facts: DeviceFacts) -> bytes:
    """As JSON of at most `MAX_ANSWER_BYTES`: properties that are well are left out first."""
    body = _encode(facts)
    ranked = sorted(
        facts.properties.items(), key=lambda item: (item[1].quality == "good" and item[1].write != "failed", item[0])
    )
    kept = len(ranked)
    while len(body) > MAX_ANSWER_BYTES and kept:
        kept = kept * MAX_ANSWER_BYTES // len(body)
        body = _encode(msgspec.structs.replace(facts, properties=dict(ranked[:kept]), left_out=len(ranked) - kept))
    return body
