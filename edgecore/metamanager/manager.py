"""The loop of MetaManager: take messages in order, store a batch of them in one transaction, acknowledge, tell.

Objects go by their type, whatever module of the cloud sent them: upstream's sync loop resends devices under another
source, and its edge loses them for that (device contract W4).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Final

from msgspec import Struct

from cloudedge import ConnectionLost, MalformedMessage, Message, new_message
from cloudedge.message import OK
from edgecore.bus import Bus, CloudConnected, ObjectChange, ObjectMessage, ObjectsChanged, TwinMessage, Upstream
from edgecore.metamanager.rules import Incoming, Membership, decide, read_membership, read_object
from edgecore.store import (
    Database,
    StoredObject,
    StoreError,
    delete_object,
    get_object,
    object_keys,
    put_object,
)

__all__ = ["MetaManager", "acknowledgement"]

logger = logging.getLogger(__name__)

QUEUE_MESSAGES: Final = 256
"""When full, the channel is read no further."""
SETTLE_S: Final = 5.0


class _Work(Struct, frozen=True):
    message: Message
    task: Incoming | Membership


class MetaManager:
    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._queue: asyncio.Queue[_Work] = asyncio.Queue(QUEUE_MESSAGES)
        self.malformed = 0
        """Messages dropped because they made no sense."""
        bus.subscribe(CloudConnected, self._settle)
        bus.subscribe(ObjectMessage, self._take_object)
        bus.subscribe(TwinMessage, self._take_membership)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._store(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _settle(self, _: CloudConnected) -> None:
        """Store what the connection before brought, ahead of everybody who is told of this one: it is said now what is
        stored, and a deletion that waits would take away what the cloud believes to be here.
        """
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._queue.join()
        except TimeoutError:
            logger.warning("objects from the cloud are not stored after %g s; is the disk slow?", SETTLE_S)

    async def _take_object(self, event: ObjectMessage) -> None:
        try:
            task = read_object(event.message)
        except MalformedMessage as error:
            self._drop(error)
        else:
            await self._queue.put(_Work(event.message, task))

    async def _take_membership(self, event: TwinMessage) -> None:
        try:
            task = read_membership(event.message)
        except MalformedMessage as error:
            self._drop(error)
        else:
            if task is not None:
                await self._queue.put(_Work(event.message, task))

    def _drop(self, error: MalformedMessage) -> None:
        self.malformed += 1
        logger.warning("message dropped: %s", error)

    async def _store(self, batch: list[_Work]) -> None:
        def job(db: sqlite3.Connection) -> list[ObjectChange]:
            return [change for work in batch for change in _apply(db, work.task)]

        try:
            changes = await self._database.run(job, sync=True)
        except StoreError as error:
            # Not acknowledged, so the cloud sends it again.
            logger.warning("%d messages from the cloud not stored: %s", len(batch), error)
            return
        if changes:
            # Before the acknowledgements: a slow cloud must not hold up what a mapper waits for.
            try:
                await self._bus.publish(ObjectsChanged(tuple(changes)))
            except Exception:
                logger.exception("changes of objects were stored, but not taken up; a restart will")
        if self._database.trouble:
            return  # in use, and not on a disk: not acknowledged, so the cloud sends it again until it is
        try:
            for work in batch:
                if isinstance(work.task, Incoming):
                    await self._bus.publish(Upstream(acknowledgement(work.message)))
        except ConnectionLost:
            logger.debug("acknowledgements lost with the connection; the cloud sends again")


def acknowledgement(message: Message) -> Message:
    """As recorded from upstream's edge core: an insert or delete of a device or its model is answered in the name of
    `meta` and to group `twin`, anything else with source and group of the message.
    """
    route = message.route
    forwarded = route.operation in ("insert", "delete") and route.source == "devicecontroller"
    return new_message(
        source="meta" if forwarded else route.source,
        group="twin" if forwarded else route.group,
        operation="response",
        resource=route.resource,
        content=OK,
        parent=message.id,
    )


def _apply(db: sqlite3.Connection, task: Incoming | Membership) -> list[ObjectChange]:
    if isinstance(task, Membership):
        gone = [key for key in object_keys(db, "device") if key not in task.devices]
        for namespace, name in gone:
            logger.info("device %s/%s is no longer on this node", namespace, name)
            delete_object(db, "device", namespace, name)
        # Models stay: the cloud, which was told of them, deletes those that no device of this node needs.
        return [ObjectChange("device", namespace, name, None) for namespace, name in gone]
    stored = get_object(db, task.kind, task.namespace, task.name)
    match decide(stored, task):
        case "ignore":
            return []
        case "delete":
            delete_object(db, task.kind, task.namespace, task.name)
            return [ObjectChange(task.kind, task.namespace, task.name, None)]
        case decision:
            put_object(db, StoredObject(task.kind, task.namespace, task.name, task.uid, task.version, task.body))
            if stored is not None and stored.body == task.body:
                return []
            return [ObjectChange(task.kind, task.namespace, task.name, task.body, replaced=decision == "replace")]
