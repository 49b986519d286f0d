"""What mappers call: registration, twins, states. An answer means stored; an error says what was not and why."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cloudedge.message import now_ms
from dmi import ConfigError, DeviceId, DmiError, NodeName, Twin, UnknownDevice, UnknownProperty
from dmi.ports import MapperInfo, Registration
from edgecore.devicetwin.catalog import Catalog, Entry
from edgecore.devicetwin.merge import merge_state, merge_twins, read_state
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import Database, StoreError, get_twins, put_twins, update_state

__all__ = ["MAX_VALUE_BYTES", "Intake"]

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES: Final = 64 * 1024
"""Of one property; the API keeps all of a device's in one object of at most about a megabyte."""
_MAX_REMEMBERED: Final = 4096


class Intake:
    """The `EdgeCoreHandlers` of `dmi.ports`. `register` does the registration; `heard` is told of every
    device that a mapper reports.
    """

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        sync: CloudSync,
        *,
        node: NodeName,
        register: Callable[[MapperInfo, bool], Awaitable[Registration]],
        heard: Callable[[DeviceId], None],
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._sync = sync
        self._node = node
        self._register = register
        self._heard = heard
        self._seen_online_ms: dict[DeviceId, int] = {}
        self._refused: set[tuple[DeviceId, str]] = set()
        self.refused = 0
        """Properties that were not taken."""

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        if not mapper.address:
            raise ConfigError("mapper.address", "is missing: the path of the mapper's own socket")
        return await self._register(mapper, with_data)

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        entry = self._known(device)
        accepted, problem = self._sift(device, entry, twins)
        if not accepted and problem is not None:
            raise problem
        types = entry.properties or {}
        now = now_ms()

        def job(db: sqlite3.Connection) -> bool:
            rows = merge_twins(get_twins(db, device), accepted, types, now_ms=now)
            put_twins(db, device, rows)
            return bool(rows)

        def then(changed: bool) -> None:
            if changed:
                self._sync.mark_twins(device)

        await self._stored(self._database.run(job, then=then))

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        self._known(device)
        said = read_state(state)
        now = now_ms()
        seen_online = self._seen_online_ms.get(device, 0)
        if said in ("online", "ok"):
            self._seen_online_ms[device] = now

        def job(db: sqlite3.Connection) -> bool:
            return update_state(
                db, device, lambda row: merge_state(row, said, reason, seen_online_ms=seen_online, now_ms=now)
            )

        def then(changed: bool) -> None:
            if changed:
                self._sync.mark_state(device)

        await self._stored(self._database.run(job, then=then))

    def forget(self, device: DeviceId) -> None:
        self._seen_online_ms.pop(device, None)
        self._refused = {(other, name) for other, name in self._refused if other != device}

    def _known(self, device: DeviceId) -> Entry:
        entry = self._catalog.get(device)
        if entry is None:
            raise UnknownDevice(f"device {device} is not on node {self._node}")
        self._heard(device)
        return entry

    def _sift(
        self, device: DeviceId, entry: Entry, twins: Sequence[Twin]
    ) -> tuple[list[Twin], UnknownProperty | ConfigError | None]:
        """The twins that can be taken, and what is wrong with the last of the others."""
        accepted: list[Twin] = []
        problem: UnknownProperty | ConfigError | None = None
        for twin in twins:
            name = twin.property_name
            if entry.properties is not None and name not in entry.properties:
                problem = UnknownProperty(f"device {device} has no property {name[:64]!r}")
            elif max(len(twin.reported.value), len(twin.desired.value)) > MAX_VALUE_BYTES:
                problem = ConfigError(f"property {name!r} of device {device}", f"value over {MAX_VALUE_BYTES} bytes")
            else:
                accepted.append(twin)
                continue
            self._note_refused(device, name, problem)
        return accepted, problem

    def _note_refused(self, device: DeviceId, name: str, problem: Exception) -> None:
        self.refused += 1
        if (device, name) not in self._refused:
            if len(self._refused) >= _MAX_REMEMBERED:
                self._refused.clear()
            self._refused.add((device, name))
            logger.warning("report refused: %s", problem)

    async def _stored(self, write: Awaitable[bool]) -> None:
        try:
            await write
        except StoreError as error:
            raise DmiError(str(error)) from error
        except asyncio.CancelledError:
            raise  # the mapper gave up waiting; it may well be stored
