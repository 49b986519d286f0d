"""The virtual driver: what load tests, demos and first steps run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from mappers.drivers.virtual.link import VirtualLink
from mappers.drivers.virtual.plant import Plant, VirtualDevice
from mappers.drivers.virtual.replay import Tables
from mappers.drivers.virtual.settings import VirtualConfig, VirtualVisitor, resolve_visitor
from mappers.sdk import (
    DeviceId,
    DeviceUnreachable,
    Driver,
    Found,
    FoundProperty,
    ModelProperty,
    epoch_ms,
)

__all__ = ["VirtualDriver", "VirtualProtocolDriver"]

REPLAY_DIR: Final = Path("replay")
"""Below the mapper's working directory: a manifest must not be able to read just any file of the node."""


class VirtualDriver(Driver[VirtualConfig, VirtualVisitor]):
    """Devices that exist in this object only. They keep what was written to them for as long as it lives."""

    protocol = "virtual"
    protocol_config = VirtualConfig
    visitor_config = VirtualVisitor

    def __init__(self, *, replay_dir: Path = REPLAY_DIR) -> None:
        self._tables = Tables(replay_dir)
        self._plant = Plant()

    def device(self, device_id: DeviceId) -> VirtualDevice:
        """The device itself, for those who want to turn its knobs or break it."""
        return self._plant.device(device_id)

    def resolve(self, visitor: VirtualVisitor, model: ModelProperty) -> VirtualVisitor:
        return resolve_visitor(visitor, model)

    async def discover(self, config: VirtualConfig) -> AsyncIterator[Found]:
        """Propose one device that shows what there is."""
        properties = (
            FoundProperty("set-point", "FLOAT", {"value": "60"}, "ReadWrite", "keeps what is written"),
            FoundProperty("temperature", "FLOAT", {"follows": "set-point", "period": 10_000}),
            FoundProperty("level", "FLOAT", {"waveform": "sine", "minimum": 0.5, "maximum": 1.5}),
            FoundProperty("pressure", "DOUBLE", {"waveform": "randomWalk", "minimum": 1, "maximum": 3}),
            FoundProperty("pieces", "INT", {"waveform": "counter"}),
            FoundProperty("door-open", "BOOLEAN", {"waveform": "square", "period": 20_000}),
            FoundProperty("latency", "INT", {"fault": "latency"}, "ReadWrite", "milliseconds each request takes"),
        )
        defaults = VirtualConfig()
        given = {
            field.encode_name: getattr(config, field.name)
            for field in msgspec.structs.fields(VirtualConfig)
            if getattr(config, field.name) != getattr(defaults, field.name)
        }
        yield Found("virtual-1", given, properties, "a device that needs no hardware")

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: VirtualConfig) -> AsyncIterator[VirtualLink]:
        """Open a link to the device; it comes into being with the first.

        Raises:
            DeviceUnreachable: It is offline.
        """
        device = self._plant.device(device_id)
        device.declare(config)
        if device.faults.offline:
            raise DeviceUnreachable(device_id, "the virtual device is offline")
        if device.started_s is None:
            device.started_s = epoch_ms() / 1000
        device.links += 1
        device.open_links += 1
        link = VirtualLink(device, self._plant, self._tables)
        try:
            yield link
        finally:
            device.open_links -= 1
            await link.close()


class VirtualProtocolDriver(VirtualDriver):
    """The same under the protocol name that upstream's demos declare."""

    protocol = "virtualProtocol"
