"""The module: restores what was known, takes changes of objects, links mappers, and shows faults of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from cloudedge.message import now_ms
from dmi import DeviceId, ModelId, NodeName, device_id
from dmi.client import MapperClient
from dmi.local import LocalDmi
from dmi.metrics import Metrics
from dmi.ports import LOCAL, MapperInfo, MapperPort
from dmi.server import serve_edgecore
from edgecore.bus import Bus, CloudLink, ObjectChange, ObjectsChanged
from edgecore.config import DeviceTwinConfig
from edgecore.devicetwin.apps import TwinApps
from edgecore.devicetwin.catalog import Catalog, Entry
from edgecore.devicetwin.facts import Facts
from edgecore.devicetwin.faults import FaultClock
from edgecore.devicetwin.intake import Intake
from edgecore.devicetwin.limits import Limits
from edgecore.devicetwin.links import CALL_TIMEOUT_S
from edgecore.devicetwin.mappers import Mappers
from edgecore.devicetwin.merge import Fault, fault_of, set_fault
from edgecore.devicetwin.peers import allowed_of, guarded_socket, inner_socket
from edgecore.devicetwin.publisher import TwinPublisher
from edgecore.devicetwin.sync import CloudSync
from edgecore.store import (
    Database,
    StateRow,
    delete_device,
    delete_orphans,
    faulty_devices,
    get_object,
    get_state,
    handed_digests,
    keep_properties,
    list_objects,
    registered_mappers,
    update_state,
)

__all__ = ["DeviceTwin"]

logger = logging.getLogger(__name__)

DECLARATION_GRACE_S: Final = 1.0
"""A device's model may be right behind it."""
REWRITE_S: Final = 2.0
"""After the store did not take a fault."""


class DeviceTwin:
    """`local`: where mappers of this process meet it; others come to `socket`.

    Raises:
        ConfigError: The allow list names somebody who is not on this machine.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        *,
        node: NodeName,
        socket: Path,
        local: LocalDmi | None = None,
        config: DeviceTwinConfig | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        config = config or DeviceTwinConfig()
        metrics = self._metrics = metrics or Metrics()
        self._allowed = allowed_of(config.dmi_allowed_users, config.dmi_allowed_groups)
        metrics.gauge(
            "kubetwin_edgecore_devices", "Devices of this node.", read=lambda: {(): float(len(self._catalog))}
        )
        self._database = database
        self._node = node
        self._socket = socket
        self._local = local or LocalDmi()
        self._catalog = Catalog(node)
        self._sync = CloudSync(database, bus, node=node, metrics=metrics)
        self._mappers = Mappers(
            database,
            self._catalog,
            node=node,
            dial=self._dial,
            bodies=self._bodies,
            judge=self._judge,
            metrics=metrics,
        )
        self._publisher = TwinPublisher(bus, node=node)
        self._intake = Intake(
            database,
            self._catalog,
            self._sync,
            node=node,
            register=self._mappers.register,
            heard=self._heard,
            publisher=self._publisher,
            metrics=metrics,
        )
        self._apps = TwinApps(
            database,
            self._catalog,
            self._sync,
            bus,
            node=node,
            publisher=self._publisher,
            reports=self._intake.reports,
            spoken_for=self._app_speaks_for,
            metrics=metrics,
        )
        self._limits = Limits(
            self._intake,
            rate=config.report_rate,
            burst=config.report_burst,
            runner=self._mappers.runner,
            registered=lambda: self._mappers.registered,
            backlog=lambda: database.backlog,
            metrics=metrics,
        )
        self._of_apps: set[DeviceId] = set()
        """Devices whose state an app reported last, not a mapper."""
        self._faults = FaultClock({})
        self._faults_changed = asyncio.Event()
        self._unwritten: dict[DeviceId, float] = {}
        """Faults, or their ends, that the store did not take, and the loop time to try again."""
        database.rebuilt.append(self._write_faults_again)
        bus.subscribe(ObjectsChanged, self._take_changes)

    def facts(self, *, cloud: Callable[[], CloudLink], mqtt_trouble: Callable[[], str] = lambda: "") -> Facts:
        """A reader of what is known of devices; `cloud` and `mqtt_trouble` are asked each time."""
        return Facts(
            self._database,
            self._catalog,
            self._mappers,
            self._sync,
            self._intake.reports,
            node=self._node,
            cloud=cloud,
            mqtt_trouble=mqtt_trouble,
        )

    async def run(self, ready: asyncio.Event) -> None:
        """Serve until cancelled; `ready` is set once mappers and cloud can be let in."""
        mappers = await self._restore()
        async with asyncio.TaskGroup() as tasks, self._mappers.running(mappers):
            tasks.create_task(self._sync.run(), name="devicetwin")
            tasks.create_task(self._apps.run(), name="devicetwin apps")
            tasks.create_task(self._show_faults(), name="devicetwin faults")
            self._judge(self._catalog)
            async with self._serve_mappers():
                logger.info("mappers are served on %s", self._socket)
                ready.set()
                await asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def _serve_mappers(self) -> AsyncIterator[None]:
        limits, allowed = self._limits, self._allowed
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._local.serve_edgecore(limits))
            served = self._socket if allowed is None else inner_socket(self._socket)
            await stack.enter_async_context(serve_edgecore(limits, served, turned_away=limits.note))
            if allowed is not None:
                await stack.enter_async_context(guarded_socket(self._socket, served, allowed, self._metrics))
            yield

    # Objects

    async def _restore(self) -> list[tuple[MapperInfo, dict[DeviceId, bytes]]]:
        """Fill the catalog from the store, which it runs in the store's thread for: nobody else uses it yet."""

        def job(
            db: sqlite3.Connection,
        ) -> tuple[list[tuple[MapperInfo, dict[DeviceId, bytes]]], dict[DeviceId, Fault]]:
            for obj in list_objects(db, "devicemodel"):
                self._catalog.put_model(ModelId(f"{obj.namespace}/{obj.name}"), obj.body)
            for obj in list_objects(db, "device"):
                device = device_id(obj.namespace, obj.name)
                entry = self._catalog.put_device(device, obj.body)
                if entry.properties is not None:
                    keep_properties(db, device, entry.properties)
            delete_orphans(db)
            faults = {device: fault for device, row in faulty_devices(db).items() if (fault := fault_of(row))}
            return [(mapper, handed_digests(db, mapper)) for mapper in registered_mappers(db)], faults

        mappers, faults = await self._database.run(job)
        self._faults = FaultClock(faults)
        logger.info("%d devices and %d mappers known", len(self._catalog), len(mappers))
        return mappers

    async def _take_changes(self, event: ObjectsChanged) -> None:
        touched: dict[DeviceId, None] = {}
        for change in event.changes:
            if change.kind == "devicemodel":
                model = ModelId(f"{change.namespace}/{change.name}")
                if change.body is None:
                    self._catalog.drop_model(model)
                else:
                    self._catalog.put_model(model, change.body)
                touched.update(dict.fromkeys(self._catalog.users(model)))
            elif change.kind == "device":
                self._take_device(change)
                touched.pop(device_id(change.namespace, change.name), None)
        bodies = await self._bodies(touched) if touched else {}
        for device, body in bodies.items():
            self._put_device(device, body)

    def _take_device(self, change: ObjectChange) -> None:
        device = device_id(change.namespace, change.name)
        if change.body is None or change.replaced:
            before = self._catalog.get(device)
            self._catalog.drop_device(device)
            self._sync.forget(device)
            self._faults.forget(device)
            self._intake.forget(device)
            self._of_apps.discard(device)
            names = (before.properties if before else None) or ()
            self._database.post(
                lambda db: delete_device(db, device), then=lambda _: self._publisher.publish_gone(device, names)
            )
            if before is not None:
                self._publisher.publish_removed(device)
            if before is not None:
                self._mappers.renew(device, before.protocol)
            if change.body is None and before is not None:
                logger.info("device %s removed", device)
        if change.body is not None:
            if device not in self._catalog:
                self._publisher.publish_added(device)
            self._put_device(device, change.body)

    def _put_device(self, device: DeviceId, body: bytes) -> None:
        before = self._catalog.get(device) or Entry()
        entry = self._catalog.put_device(device, body)
        names = entry.properties
        if names is not None and before.properties is not None and (gone := before.properties.keys() - names.keys()):
            self._drop_properties(device, names, gone)
        if entry.problem and entry.problem != before.problem:
            logger.warning("device %s cannot be run: %s", device, entry.problem)
        self._mappers.wake(device, before.protocol, entry.protocol)
        self._judge([device])

    def _drop_properties(self, device: DeviceId, kept: Collection[str], gone: Collection[str]) -> None:
        def then(_: None) -> None:
            self._sync.forget_properties(device)
            self._publisher.publish_gone(device, gone)

        self._database.post(lambda db: keep_properties(db, device, kept), then=then)

    async def _bodies(self, devices: Iterable[DeviceId]) -> dict[DeviceId, bytes]:
        def job(db: sqlite3.Connection) -> dict[DeviceId, bytes]:
            found = ((device, get_object(db, "device", *device.split("/"))) for device in devices)
            return {device: obj.body for device, obj in found if obj is not None}

        return await self._database.run(job)

    def _dial(self, address: str) -> MapperPort:
        """The way to a mapper's address."""
        if address.startswith(LOCAL):
            return self._local.mapper(address)
        return MapperClient(address, timeout_s=CALL_TIMEOUT_S)

    # Faults

    def _judge(self, devices: Iterable[DeviceId]) -> None:
        """See what is wrong with these devices now; what is over is shown at once, what is new after its grace."""
        now = asyncio.get_running_loop().time()
        for device in devices:
            fault, grace_s = self._fault_of(device)
            if self._faults.see(device, fault, grace_s=grace_s, now=now):
                self._write_fault(device, fault)
        self._faults_changed.set()

    def _fault_of(self, device: DeviceId) -> tuple[Fault | None, float]:
        entry = self._catalog.get(device)
        if entry is None:
            return None, 0.0
        if entry.problem:
            return Fault("unhealthy", entry.problem), DECLARATION_GRACE_S
        fault, grace_s = self._mappers.fault(device, entry)
        if fault is not None and fault.state == "unknown" and device in self._of_apps:
            return None, 0.0
        return fault, grace_s

    def _app_speaks_for(self, device: DeviceId) -> None:
        """An app does a mapper's work: as long as no mapper speaks, none is missed."""
        if device not in self._of_apps:
            self._of_apps.add(device)
            self._judge([device])

    def _heard(self, device: DeviceId) -> None:
        self._of_apps.discard(device)
        self._mappers.heard(device)

    async def _show_faults(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._faults_changed.clear()
            with contextlib.suppress(TimeoutError):
                due_at = (self._faults.next_due(), *self._unwritten.values())
                async with asyncio.timeout_at(min((at for at in due_at if at is not None), default=None)):
                    await self._faults_changed.wait()
            for device in [device for device, at in self._unwritten.items() if at <= loop.time()]:
                del self._unwritten[device]
                if device in self._catalog:
                    self._write_fault(device, self._faults.shown(device))
            due: dict[Fault, list[DeviceId]] = {}
            for device, fault in self._faults.take_due(loop.time()).items():
                due.setdefault(fault, []).append(device)
                self._write_fault(device, fault)
            for fault, devices in due.items():  # a mapper that is gone is not a line per device
                which = f"device {devices[0]}" + (f" and {len(devices) - 1} more" if len(devices) > 1 else "")
                logger.warning("%s: %s: %s", which, fault.state, fault.reason)

    def _write_faults_again(self) -> None:
        """Into a store that was rebuilt, which has none of them, while the mappers' states come anew."""
        now = asyncio.get_running_loop().time()
        self._unwritten.update(dict.fromkeys(self._faults.all_shown(), now))
        self._faults_changed.set()

    def _write_fault(self, device: DeviceId, fault: Fault | None) -> None:
        now = now_ms()

        def job(db: sqlite3.Connection) -> StateRow | None:
            changed = update_state(db, device, lambda row: set_fault(row, fault, now_ms=now))
            return get_state(db, device) if changed else None

        def then(changed: StateRow | None) -> None:
            if changed is not None:
                self._sync.mark_state(device)
                self._publisher.publish_state(device, changed)

        def otherwise() -> None:
            self._unwritten[device] = asyncio.get_running_loop().time() + REWRITE_S
            self._faults_changed.set()

        self._database.post(job, then=then, otherwise=otherwise)
