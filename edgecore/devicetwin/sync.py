"""Tells the cloud what it does not know yet: reads due rows, sends one message per device, takes confirmations.

An idle path sends at once; while a message of a device is in flight, its changes wait and go together. After every
connect everything dirty goes, and every device's state, because the cloud marks them unknown while a node is away.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Final

from cloudedge import ConnectionLost, Message
from dmi import DeviceId, NodeName
from edgecore.bus import Bus, CloudConnected, CloudLost, Confirmed, Upstream
from edgecore.devicetwin.messages import membership_request, state_message, twin_message
from edgecore.devicetwin.outbox import InFlight, Key, Outbox
from edgecore.store import (
    Database,
    StoreError,
    acknowledge_state,
    acknowledge_twins,
    dirty_devices,
    get_state,
    get_twins,
    stated_devices,
)

__all__ = ["CloudSync"]

logger = logging.getLogger(__name__)

READ_AT_ONCE: Final = 64
_STORE_RETRY_S: Final = 1.0
_EXPIRE_EVERY_S: Final = 1.0

_Outgoing = tuple[Key, Message | None, dict[str, int]]


class CloudSync:
    def __init__(self, database: Database, bus: Bus, *, node: NodeName) -> None:
        self._database = database
        self._bus = bus
        self._node = node
        self._outbox = Outbox()
        self._due = asyncio.Event()
        self._connected = asyncio.Event()
        self._connection_number = 0
        bus.subscribe(CloudConnected, self._start_over)
        bus.subscribe(CloudLost, self._pause)
        bus.subscribe(Confirmed, self._confirm)

    def mark_twins(self, device: DeviceId) -> None:
        self._mark(Key(device, "twins"))

    def mark_state(self, device: DeviceId) -> None:
        self._mark(Key(device, "state"))

    def forget(self, device: DeviceId) -> None:
        self._outbox.forget(device)

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_due(), name="devicetwin sync")
            tasks.create_task(self._expire(), name="devicetwin unconfirmed")

    def _mark(self, key: Key) -> None:
        self._outbox.mark(key)
        self._due.set()

    async def _start_over(self, _: CloudConnected) -> None:
        def job(db: sqlite3.Connection) -> list[Key]:
            return [
                *(Key(device, "twins") for device in dirty_devices(db)),
                *(Key(device, "state") for device in stated_devices(db)),
            ]

        await self._bus.publish(Upstream(membership_request(self._node)))
        keys = await self._database.run(job)
        self._outbox.restart(keys)
        self._connection_number += 1
        self._connected.set()
        self._due.set()
        logger.info("%d device reports to bring up to date", len(keys))

    async def _pause(self, _: CloudLost) -> None:
        self._connected.clear()

    async def _confirm(self, event: Confirmed) -> None:
        flight = self._outbox.confirmed(event.message_id)
        if flight is None:
            return
        self._due.set()

        def job(db: sqlite3.Connection) -> None:
            if flight.key.subject == "twins":
                acknowledge_twins(db, flight.key.device, flight.versions)
            else:
                acknowledge_state(db, flight.key.device, flight.versions[""])

        # Not waited for; and a read that is queued after it sees it done.
        self._database.post(job)

    async def _send_due(self) -> None:
        while True:
            await self._due.wait()
            await self._connected.wait()
            keys = self._outbox.take(READ_AT_ONCE)
            if not keys:
                self._due.clear()
                continue
            number = self._connection_number
            try:
                await self._send(keys)
            except ConnectionLost:
                if number == self._connection_number:  # else there is a new one already
                    self._connected.clear()
            except StoreError as error:
                logger.warning("not sent: %s", error)
                await asyncio.sleep(_STORE_RETRY_S)
            except Exception:  # a row that cannot be sent must not hold up the others for ever
                logger.exception("not sent")
                await asyncio.sleep(_STORE_RETRY_S)

    async def _send(self, keys: list[Key]) -> None:
        """Send what these keys stand for. Those that could not be sent are due again."""
        left = dict.fromkeys(keys)
        try:
            for key, message, versions in await self._database.run(lambda db: [_read(db, wanted) for wanted in keys]):
                del left[key]
                if message is None:
                    self._outbox.nothing_to_send(key)
                    continue
                now = asyncio.get_running_loop().time()
                self._outbox.sent(InFlight(key=key, message_id=message.id, versions=versions, sent_at=now))
                await self._bus.publish(Upstream(message))
        finally:
            for key in left:
                self._outbox.mark(key)
                self._outbox.nothing_to_send(key)

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = False
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            # What was on its way when the connection went is given up by the next one.
            late = self._outbox.expire(loop.time()) if self._connected.is_set() else 0
            if late:
                self._due.set()
                if not waiting:
                    logger.warning("the cloud does not confirm reports: sending %d of them again", late)
            waiting = bool(late) or (waiting and self._outbox.in_flight > 0)


def _read(db: sqlite3.Connection, key: Key) -> _Outgoing:
    if key.subject == "twins":
        rows = get_twins(db, key.device, dirty=True)
        versions = {name: row.version for name, row in rows.items()}
        return key, twin_message(key.device, rows.values()) if rows else None, versions
    row = get_state(db, key.device)
    if row is None or row.version == 0:
        return key, None, {}
    return key, state_message(key.device, row), {"": row.version}
