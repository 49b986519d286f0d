"""What mappers call: registration, twins, states. An answer means stored; an error says what was not and why."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cloudedge.message import now_ms
from dmi import ConfigError, DeviceId, DmiError, NodeName, Twin, UnknownDevice, UnknownProperty
from dmi.metrics import Metrics
from dmi.ports import MapperInfo, Registration
from edgecore.devicetwin.catalog import Catalog, Entry
from edgecore.devicetwin.confirming import confirm_every_ms, is_news
from edgecore.devicetwin.document import MAX_VALUE_BYTES
from edgecore.devicetwin.heard import HeardReports
from edgecore.devicetwin.merge import merge_state, merge_twins, read_state
from edgecore.devicetwin.publisher import TwinPublisher
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import Database, StateRow, StoreError, TwinRow, get_state, get_twins, put_twins, update_state

__all__ = ["MAX_VALUE_BYTES", "Intake"]

logger = logging.getLogger(__name__)


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
        publisher: TwinPublisher,
        metrics: Metrics | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        self._taken = metrics.counter(
            "kubetwin_edgecore_reports_total",
            "Reports of mappers that were taken. unchanged: nothing new, so neither written nor sent, nor is confirmed:"
            " values as they were, told not long ago.",
            "what",
            "result",
        )
        self._refusals = metrics.counter(
            "kubetwin_edgecore_refused_total", "Properties, states and whole reports that were not taken.", "reason"
        )
        self._database = database
        self._catalog = catalog
        self._sync = sync
        self._node = node
        self._register = register
        self._heard = heard
        self._publisher = publisher
        self._seen_online_ms: dict[DeviceId, int] = {}
        self.reports = HeardReports()

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        if not mapper.address:
            raise ConfigError("mapper.address", "is missing: the path of the mapper's own socket")
        return await self._register(mapper, with_data)

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        entry = self._known(device, "twins")
        now = now_ms()
        self.reports.note_report(device, now)
        accepted, problem = self._sift(device, entry, twins)
        if not accepted and problem is not None:
            raise problem
        types = entry.properties or {}
        confirm_ms = confirm_every_ms(len(self._catalog))

        def job(db: sqlite3.Connection) -> tuple[str, dict[str, TwinRow], dict[str, TwinRow]]:
            before = get_twins(db, device)
            rows = merge_twins(before, accepted, types, now_ms=now)
            if not is_news(before, rows, every_ms=confirm_ms):
                return "confirmed" if rows else "unchanged", before, {}
            put_twins(db, device, rows)
            return "changed", before, {row.twin.property_name: row for row in rows}

        def then(done: tuple[str, dict[str, TwinRow], dict[str, TwinRow]]) -> None:
            result, before, after = done
            self._taken.add("twins", result)
            if after:
                self._sync.mark_twins(device, {**before, **after})
                self._publisher.publish_update(device, before, after)

        await self._stored(self._database.run(job, then=then))

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        self._known(device, "state")
        now = now_ms()
        self.reports.note_state(device, now)
        try:
            said = read_state(state)
        except ConfigError as problem:
            if self._note_refused(device, "state", problem, "state"):
                logger.warning("report refused: %s", problem)
            raise
        seen_online = self._seen_online_ms.get(device, 0)
        if said in ("online", "ok"):
            self._seen_online_ms[device] = now
        confirm_ms = confirm_every_ms(len(self._catalog))

        def merged(row: StateRow | None) -> StateRow | None:
            return merge_state(row, said, reason, seen_online_ms=seen_online, now_ms=now, confirm_ms=confirm_ms)

        def job(db: sqlite3.Connection) -> StateRow | None:
            changed = update_state(db, device, merged)
            return get_state(db, device) if changed else None

        def then(changed: StateRow | None) -> None:
            self._taken.add("state", "unchanged" if changed is None else "changed")
            if changed is not None:
                self._sync.mark_state(device)
                self._publisher.publish_state(device, changed)

        await self._stored(self._database.run(job, then=then))

    def forget(self, device: DeviceId) -> None:
        self._seen_online_ms.pop(device, None)
        self.reports.forget(device)

    def _known(self, device: DeviceId, what: str) -> Entry:
        entry = self._catalog.get(device)
        if entry is None:
            unknown = UnknownDevice(f"device {device} is not on node {self._node}")
            if self._note_refused(device, what, unknown, "unknown_device"):
                logger.warning("report refused: %s", unknown)
            raise unknown
        self._heard(device)
        return entry

    def _sift(
        self, device: DeviceId, entry: Entry, twins: Sequence[Twin]
    ) -> tuple[list[Twin], UnknownProperty | ConfigError | None]:
        """The twins that can be taken, and what is wrong with the last of the others."""
        accepted: list[Twin] = []
        problem: UnknownProperty | ConfigError | None = None
        new: list[UnknownProperty | ConfigError] = []
        for twin in twins:
            name = twin.property_name
            if entry.properties is not None and name not in entry.properties:
                problem, reason = UnknownProperty(f"device {device} has no property {name[:64]!r}"), "unknown_property"
            elif _is_long(twin.reported.value) or _is_long(twin.desired.value):
                problem = ConfigError(f"property {name!r} of device {device}", f"value over {MAX_VALUE_BYTES} bytes")
                reason = "long_value"
            else:
                accepted.append(twin)
                continue
            if self._note_refused(device, name, problem, reason):
                new.append(problem)
        if new:  # of a report with thousands it is one line
            more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
            logger.warning("report refused: %s%s", new[0], more)
        return accepted, problem

    def _note_refused(self, device: DeviceId, name: str, problem: Exception, reason: str) -> bool:
        """Whether it is the first time."""
        self._refusals.add(reason)
        return self.reports.note_refused(device, name, str(problem), now_ms())

    async def _stored(self, write: Awaitable[Any]) -> None:
        try:
            await write
        except StoreError as error:
            raise DmiError(str(error)) from error
        except asyncio.CancelledError:
            raise  # the mapper gave up waiting; it may well be stored


def _is_long(value: str) -> bool:
    # A character is four bytes at most.
    return len(value) * 4 > MAX_VALUE_BYTES and len(value.encode()) > MAX_VALUE_BYTES
