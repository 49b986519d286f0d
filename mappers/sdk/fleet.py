"""All devices of one mapper: started, updated and stopped as the edge core says, each isolated from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from dmi.errors import UnknownDevice
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, ModelId
from mappers.sdk.declaration import check_driver
from mappers.sdk.device import DeviceRunner
from mappers.sdk.driver import AnyDriver
from mappers.sdk.samples import NoSamples, Samples
from mappers.sdk.stats import Histogram
from mappers.sdk.uplink import Uplink

__all__ = ["Fleet"]

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Devices of a registration that are taken over in one go; each costs up to a millisecond."""
STOP_DEADLINE_S: Final = 1.2


class Fleet:
    """The devices that run, by id. Implements `dmi.server.MapperHandlers`. A context manager: it owns their tasks."""

    def __init__(self, driver: AnyDriver, uplink: Uplink, samples: Samples | None = None) -> None:
        """
        Raises:
            ConfigError: The driver reads visitor keys that are the runtime's.
        """
        check_driver(driver)
        self.protocol = driver.protocol
        self.retired_latency = Histogram()
        """The read latencies of devices that are gone, so that the mapper's histogram only grows."""
        self._driver = driver
        self._uplink = uplink
        uplink.on_accepted = self._accepted
        self._samples: Samples = samples or NoSamples()
        self._models: dict[ModelId, DeviceModel] = {}
        self._runners: dict[DeviceId, tuple[DeviceRunner, asyncio.Task[None]]] = {}
        self._touched_devices: set[DeviceId] = set()
        self._touched_models: set[ModelId] = set()
        """What the edge core called about since the registration began; an id can be both."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop(list(self._runners))

    @property
    def devices(self) -> Sequence[Device]:
        return [runner.device for runner, _ in self._runners.values()]

    def find(self, device_id: DeviceId) -> DeviceRunner | None:
        running = self._runners.get(device_id)
        return running[0] if running else None

    def runners(self) -> Sequence[DeviceRunner]:
        return [runner for runner, _ in self._runners.values()]

    # what the edge core calls (DMI)

    async def apply_device(self, device: Device) -> None:
        self._touched_devices.add(device.id)
        self._apply(device)

    async def remove_device(self, device: DeviceId) -> None:
        self._touched_devices.add(device)
        await self._remove([device])

    async def apply_model(self, model: DeviceModel) -> None:
        self._touched_models.add(model.id)
        self._apply_model(model)

    def _apply_model(self, model: DeviceModel) -> None:
        if self._models.get(model.id) == model:
            return
        self._models[model.id] = model
        for runner, _ in self._runners.values():
            if runner.device.model_id == model.id:
                runner.update(runner.device, model)

    async def remove_model(self, model: ModelId) -> None:
        """Devices that run keep it: an edge core removes the model just before its last device."""
        self._touched_models.add(model)
        self._models.pop(model, None)

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        if device not in self._runners:
            raise UnknownDevice(f"device {device!r} does not run here")
        runner, _ = self._runners[device]
        return runner.device, runner.twins()

    # the full set, after a registration

    def begin_registration(self) -> None:
        """From here on, what the edge core calls is newer than the answer to the registration."""
        self._touched_devices.clear()
        self._touched_models.clear()

    async def reconcile(
        self, devices: Iterable[Device], models: Iterable[DeviceModel], *, partial: bool = False
    ) -> None:
        """Run exactly this set. What did not change goes on undisturbed; what is not in the set is stopped, unless it
        is `partial`: then the edge core says about each of the others what is to become of it.
        """
        for model in models:
            if model.id not in self._touched_models:
                self._apply_model(model)
        wanted = {d.id: d for d in devices}
        if not partial:
            await self._remove([i for i in self._runners if i not in wanted and i not in self._touched_devices])
        for number, device in enumerate(wanted.values(), start=1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # those that run already go on meanwhile
            if device.id in self._touched_devices:
                continue
            try:
                self._apply(device)
            except Exception:
                logger.exception("device %s cannot be run; the others are", device.id)

    def report_all(self) -> None:
        """Report everything current: the edge core may have lost what it was told."""
        for runner, _ in self._runners.values():
            runner.report_all()

    def _apply(self, device: Device) -> None:
        model = self._models.get(device.model_id)
        if device.id in self._runners:
            runner, _ = self._runners[device.id]
            if runner.device != device:
                logger.info("device %s: declaration changed", device.id)
            runner.update(device, model or runner.model)
            return
        logger.info("device %s: starting, %d properties", device.id, len(device.properties))
        runner = DeviceRunner(self._driver, device, model, self._uplink, self._samples)
        # Not in a TaskGroup: that would wait for ever for a driver that does not let go.
        task = asyncio.create_task(runner.run(), name=f"device {device.id}")
        self._runners[device.id] = (runner, task)

    async def _remove(self, ids: Sequence[DeviceId]) -> None:
        """Stop several for good, with what they had to say. One that is added again meanwhile starts from nothing."""
        for id_ in ids:
            self._uplink.forget(id_)
        await self._stop(ids)
        for id_ in ids:
            if id_ not in self._runners:
                self._uplink.forget(id_)  # a read that ended just then
                self._samples.forget(id_)

    def _accepted(self, device_id: DeviceId, oldest_ms: int) -> None:
        if runner := self.find(device_id):
            runner.stats.reported_ms = oldest_ms

    async def _stop(self, ids: Sequence[DeviceId]) -> None:
        """Stop several at once; one that does not stop in time is left behind and named."""
        stopping = {id_: self._runners.pop(id_) for id_ in ids if id_ in self._runners}
        for runner, task in stopping.values():
            runner.close()
            task.cancel()
            self.retired_latency.add(runner.stats.read_latency)
        if not stopping:
            return
        _, late = await asyncio.wait([task for _, task in stopping.values()], timeout=STOP_DEADLINE_S)
        for id_, (_, task) in stopping.items():
            if task in late:
                logger.error("device %s: the driver did not let go within %s s", id_, STOP_DEADLINE_S)
            else:
                logger.info("device %s: stopped", id_)
