"""What is known here of the path of a device's values, put together when somebody asks."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cloudedge.facts import MAX_VALUE_CHARS, DeviceFacts, PropertyFacts, spec_digest
from cloudedge.message import now_ms
from dmi import DeviceId, NodeName, split_id
from edgecore.bus import CloudLink
from edgecore.devicetwin.catalog import Catalog, Entry
from edgecore.devicetwin.heard import HeardReports
from edgecore.devicetwin.mappers import Mappers
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import (
    Database,
    StateRow,
    StoredObject,
    StoreError,
    TwinRow,
    get_object,
    get_state,
    get_twins,
    shown_state,
)

__all__ = ["Facts"]

_MAX_REASON: Final = 1024


class _Held(Struct, frozen=True):
    """The declaration in the store: the Device's resourceVersion, and digests of its spec and its model's."""

    version: str = ""
    spec_digest: str = ""
    model_digest: str = ""


class Facts:
    """`cloud` and `mqtt_trouble` are asked at the moment; both belong to other modules."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        mappers: Mappers,
        sync: CloudSync,
        reports: HeardReports,
        *,
        node: NodeName,
        cloud: Callable[[], CloudLink],
        mqtt_trouble: Callable[[], str],
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._mappers = mappers
        self._sync = sync
        self._reports = reports
        self._node = node
        self._cloud = cloud
        self._mqtt_trouble = mqtt_trouble

    def devices(self) -> Sequence[DeviceId]:
        """All of this node."""
        return tuple(self._catalog)

    def is_here(self, device: DeviceId) -> bool:
        return self._catalog.get(device) is not None

    def node_facts(self) -> DeviceFacts:
        """What does not depend on a device; `device` is empty."""
        link = self._cloud()
        return DeviceFacts(
            node=self._node,
            device="",
            now_ms=now_ms(),
            store_trouble=self._database.trouble[:_MAX_REASON],
            store_trouble_since_ms=self._database.trouble_since_ms,
            cloud_url=link.url,
            cloud_connected=link.connected,
            cloud_since_ms=link.since_ms,
            cloud_trouble=link.trouble[:_MAX_REASON],
            other_mappers=self._mappers.registered,
            mqtt_trouble=self._mqtt_trouble()[:_MAX_REASON],
        )

    async def brief(self, devices: Sequence[DeviceId]) -> list[DeviceFacts]:
        """Without properties; those that are not here are left out.

        Raises:
            StoreError: The store cannot be read.
        """
        entries = [(device, entry) for device in devices if (entry := self._catalog.get(device)) is not None]

        def job(db: sqlite3.Connection) -> list[StateRow | None]:
            return [get_state(db, device) for device, _ in entries]

        rows = await self._database.run(job)
        common = self.node_facts()
        return [self._of(common, device, entry, row) for (device, entry), row in zip(entries, rows, strict=True)]

    async def path(self, device: DeviceId) -> DeviceFacts:
        """Everything, also of a device that is not here. Where the store cannot be read, what is known without it."""
        entry = self._catalog.get(device)
        namespace, name = split_id(device)

        def job(db: sqlite3.Connection) -> tuple[_Held, StateRow | None, dict[str, TwinRow]]:
            held = _held(db, namespace, name, split_id(entry.model)[1] if entry is not None and entry.model else "")
            return held, get_state(db, device), get_twins(db, device)

        common = self.node_facts()
        in_flight_since_ms = self._unconfirmed_since_ms(device)  # first: a confirmation is stored after it is noted
        try:
            held, state, rows = await self._database.run(job)
        except StoreError as error:
            held, state, rows = _Held(), None, {}
            common = replace(common, store_trouble=common.store_trouble or str(error))
        if entry is None:
            return replace(common, device=device, refused=self._reports.refused(device))
        return replace(
            self._of(common, device, entry, state),
            declared_version=held.version,
            spec_digest=held.spec_digest,
            model_digest=held.model_digest,
            in_flight_since_ms=in_flight_since_ms,
            properties=_properties(entry, rows),
        )

    def _of(self, common: DeviceFacts, device: DeviceId, entry: Entry, row: StateRow | None) -> DeviceFacts:
        state, reason = shown_state(row) if row else ("", "")
        return replace(
            common,
            device=device,
            declared=True,
            problem=entry.problem,
            protocol=entry.protocol,
            model=entry.model,
            mapper=self._mappers.facts(device, entry),
            last_report_ms=self._reports.last_report_ms(device),
            last_state_ms=self._reports.last_state_ms(device),
            state=state,
            state_reason=reason[:_MAX_REASON],
            state_since_ms=row.since_ms if row else 0,
            refused=self._reports.refused(device),
        )

    def _unconfirmed_since_ms(self, device: DeviceId) -> int:
        since = self._sync.unconfirmed_since(device)
        if since is None:
            return 0
        return now_ms() - round((asyncio.get_running_loop().time() - since) * 1000)


def _held(db: sqlite3.Connection, namespace: str, name: str, model: str) -> _Held:
    device = get_object(db, "device", namespace, name)
    of_model = get_object(db, "devicemodel", namespace, model) if model else None
    return _Held(
        device.version if device is not None else "",
        _digest(device) if device is not None else "",
        _digest(of_model) if of_model is not None else "",
    )


def _digest(stored: StoredObject) -> str:
    """Empty where the body is no object."""
    try:
        return spec_digest(msgspec.json.decode(stored.body)["spec"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return ""


def _properties(entry: Entry, rows: Mapping[str, TwinRow]) -> dict[str, PropertyFacts]:
    """All that are declared, read or not; where the declaration cannot be read, those with a value."""
    return {name: _property(rows.get(name)) for name in (rows if entry.properties is None else entry.properties)}


def _property(row: TwinRow | None) -> PropertyFacts:
    if row is None or row.deleted:
        return PropertyFacts(unsent=row is not None and row.dirty)
    reported, desired = row.twin.reported, row.twin.desired
    return PropertyFacts(
        collected_ms=reported.collected_ms,
        quality=reported.quality,
        reason=reported.reason[:_MAX_REASON],
        value=reported.value[:MAX_VALUE_CHARS],
        desired=desired.value[:MAX_VALUE_CHARS],
        write=desired.write,
        write_reason=desired.reason[:_MAX_REASON],
        unsent=row.dirty,
    )
