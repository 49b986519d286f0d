"""Tells the cloud what it does not know yet: reads due rows, sends one message per device, takes confirmations.

An idle path sends at once; while a message of a device is in flight, its changes wait and go together. After every
connect everything dirty goes, and every device's state, because the cloud marks them unknown while a node is away.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from typing import Final

from cloudedge import ConnectionLost, Message
from cloudedge.message import ENVELOPE_BYTES
from cloudedge.resources import ObjectPath
from dmi import DeviceId, NodeName
from dmi.metrics import Metrics
from edgecore.bus import Bus, CloudConnected, CloudLost, Confirmed, Upstream
from edgecore.devicetwin.messages import membership_request, state_message, twin_message
from edgecore.devicetwin.outbox import InFlight, Key, Outbox
from edgecore.store import (
    Database,
    StoreError,
    TwinRow,
    acknowledge_state,
    acknowledge_twins,
    dirty_devices,
    get_state,
    get_twins,
    object_versions,
    stated_devices,
)

__all__ = ["CloudSync"]

logger = logging.getLogger(__name__)

READ_AT_ONCE: Final = 64
MAX_INVENTORY: Final = 50_000
"""Objects that the cloud is told of, in some 130 bytes each. With more it is told of none, and sends all of them."""
_STORE_RETRY_S: Final = 1.0
_EXPIRE_EVERY_S: Final = 1.0

Rows = Mapping[str, TwinRow]
_Outgoing = tuple[Key, Message | None, dict[str, int]]


class CloudSync:
    def __init__(self, database: Database, bus: Bus, *, node: NodeName, metrics: Metrics | None = None) -> None:
        metrics = metrics or Metrics()
        name = "kubetwin_edgecore_cloud_reports"
        self._sent = metrics.counter(f"{name}_sent_total", "Messages to the cloud about a device.", "subject")
        self._confirmed = metrics.counter(f"{name}_confirmed_total", "Those that the cloud has confirmed.", "subject")
        self._resent = metrics.counter(f"{name}_unconfirmed_total", "Those not confirmed in time, and sent again.")
        metrics.gauge(
            f"{name}_waiting", "Devices' twins or states to be sent.", read=lambda: {(): float(self._outbox.due)}
        )
        metrics.gauge(f"{name}_in_flight", "Messages on their way.", read=lambda: {(): float(self._outbox.in_flight)})
        metrics.gauge(
            f"{name}_window",
            "How many messages may be on their way; fewer while the cloud is slow to confirm.",
            read=lambda: {(): float(self._outbox.window.size)},
        )
        self._database = database
        self._bus = bus
        self._node = node
        self._outbox = Outbox()
        self._due = asyncio.Event()
        self._connected = asyncio.Event()
        self._connection_number = 0
        self._ask_for_objects = False
        self._unread = False
        """What this connection is to be told first could not be read yet."""
        self._told_count = -1
        """How many reports were due at the connection before."""
        self._most_bytes = 0
        """Of a message, for this cloud; 0: not known."""
        self._at_hand: dict[Key, Rows] = {}
        """Of keys that are due, what there is to say; at most `READ_AT_ONCE`."""
        database.rebuilt.append(self._store_was_rebuilt)
        bus.subscribe(CloudConnected, self._start_over)
        bus.subscribe(CloudLost, self._pause)
        bus.subscribe(Confirmed, self._confirm)

    def mark_twins(self, device: DeviceId, rows: Rows | None = None) -> None:
        """`rows`: all of the device's, as they were committed last, from who has them at hand. On an idle path they go
        without being read again.
        """
        key = Key(device, "twins")
        if self._mark(key) and rows is not None and self._connected.is_set() and len(self._at_hand) < READ_AT_ONCE:
            self._at_hand[key] = rows

    def mark_state(self, device: DeviceId) -> None:
        self._mark(Key(device, "state"))

    def forget_properties(self, device: DeviceId) -> None:
        """Some were removed from the store. What was said of them is confirmed in vain, lest their successors of the
        same names count as told; what is left is read again.
        """
        key = Key(device, "twins")
        self._outbox.give_up(key)
        self._mark(key)

    def forget(self, device: DeviceId) -> None:
        self._at_hand.pop(Key(device, "twins"), None)
        self._outbox.forget(device)

    def unconfirmed_since(self, device: DeviceId) -> float | None:
        """Loop time since which the cloud is told something of the device that it does not confirm; None: nothing."""
        return self._outbox.unconfirmed_since(device)

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_due(), name="devicetwin sync")
            tasks.create_task(self._expire(), name="devicetwin unconfirmed")

    def _mark(self, key: Key) -> bool:
        """Whether it goes next."""
        self._at_hand.pop(key, None)
        if not self._outbox.mark(key):
            return False
        self._due.set()
        return True

    async def _start_over(self, event: CloudConnected) -> None:
        self._most_bytes = event.most_bytes
        await self._ask()
        try:
            keys = await self._database.run(_all_to_say)
            self._unread = False
            # A node that is turned away again and again has the same to say each time.
            level = logging.DEBUG if len(keys) == self._told_count else logging.INFO
            self._told_count = len(keys)
            logger.log(level, "%d device reports to bring up to date", len(keys))
        except StoreError as error:  # no reason to do without what the cloud has to say
            keys, self._unread = [], True
            logger.warning("what the cloud is to be told cannot be read, and is tried again: %s", error)
        self._outbox.restart(keys)
        self._connection_number += 1
        self._connected.set()
        self._due.set()

    async def _ask(self) -> None:
        """Ask which devices this node has, and say which objects it need not be sent."""
        self._ask_for_objects = False
        try:
            stored = await self._database.run(_inventory)
        except StoreError:  # then it is sent everything
            stored = None
        request = membership_request(self._node, stored)
        if 0 < self._most_bytes < request.size + ENVELOPE_BYTES:
            request = membership_request(self._node)
        try:
            await self._bus.publish(Upstream(request))
        except ConnectionLost:
            self._ask_for_objects = True
            raise

    def _store_was_rebuilt(self) -> None:
        """What is on its way carries versions that mean nothing any more, and the objects are to come again."""
        self._at_hand.clear()
        self._outbox.restart(())
        self._ask_for_objects = True
        self._due.set()

    async def _pause(self, _: CloudLost) -> None:
        self._at_hand.clear()
        self._connected.clear()

    async def _confirm(self, event: Confirmed) -> None:
        flight = self._outbox.confirmed(event.message_id, asyncio.get_running_loop().time())
        if flight is None:
            return
        self._confirmed.add(flight.key.subject)
        self._due.set()

        def job(db: sqlite3.Connection) -> None:
            if flight.key.subject == "twins":
                acknowledge_twins(db, flight.key.device, flight.versions)
            else:
                acknowledge_state(db, flight.key.device, flight.versions[""])

        # Not waited for; and a read that is queued after it sees it done.
        self._database.post_along(job)

    async def _send_due(self) -> None:
        while True:
            await self._due.wait()
            await self._connected.wait()
            keys = self._outbox.take(READ_AT_ONCE)
            if not keys and not self._ask_for_objects and not self._unread:
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
            if self._ask_for_objects:
                await self._ask()
            if self._unread:
                for key in await self._database.run(_all_to_say):
                    self._outbox.mark(key)
                self._unread = False
            for key, message, versions in await self._read(keys):
                del left[key]
                if message is None:
                    self._outbox.nothing_to_send(key)
                    continue
                now = asyncio.get_running_loop().time()
                self._outbox.sent(InFlight(key=key, message_id=message.id, versions=versions, sent_at=now))
                await self._bus.publish(Upstream(message))
                self._sent.add(key.subject)
        finally:
            for key in left:
                self._outbox.mark(key)
                self._outbox.nothing_to_send(key)

    async def _read(self, keys: list[Key]) -> list[_Outgoing]:
        at_hand = [_twins(key, rows) for key in keys if (rows := self._at_hand.pop(key, None)) is not None]
        if len(at_hand) == len(keys):
            return at_hand
        there = {key for key, _, _ in at_hand}
        others = [key for key in keys if key not in there]
        return at_hand + await self._database.run(lambda db: [_read(db, key) for key in others])

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = False
        looked_at = loop.time()
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._outbox.window.adjust(self._outbox.in_flight, loop.time() - looked_at)
            looked_at = loop.time()
            if self._outbox.due:
                self._due.set()  # there may be more room
            # What was on its way when the connection went is given up by the next one.
            late = self._outbox.expire(loop.time()) if self._connected.is_set() else 0
            if late:
                self._resent.add(amount=late)
                self._due.set()
                if not waiting:
                    logger.warning("the cloud does not confirm reports: sending %d of them again", late)
            waiting = bool(late) or (waiting and self._outbox.in_flight > 0)


def _inventory(db: sqlite3.Connection) -> dict[str, tuple[str, str]] | None:
    """Uid and version of every stored object by its resource path. None: too many."""
    rows = object_versions(db, MAX_INVENTORY + 1)
    if len(rows) > MAX_INVENTORY:
        return None
    return {str(ObjectPath(namespace, kind, name)): (uid, version) for kind, namespace, name, uid, version in rows}


def _all_to_say(db: sqlite3.Connection) -> list[Key]:
    """To a cloud that is new, or was away."""
    return [
        *(Key(device, "twins") for device in dirty_devices(db)),
        *(Key(device, "state") for device in stated_devices(db)),
    ]


def _read(db: sqlite3.Connection, key: Key) -> _Outgoing:
    if key.subject == "twins":
        return _twins(key, get_twins(db, key.device, dirty=True))
    row = get_state(db, key.device)
    if row is None or row.version == 0:
        return key, None, {}
    return key, state_message(key.device, row), {"": row.version}


def _twins(key: Key, rows: Rows) -> _Outgoing:
    dirty = {name: row for name, row in rows.items() if row.dirty}
    versions = {name: row.version for name, row in dirty.items()}
    return key, twin_message(key.device, dirty.values()) if dirty else None, versions
