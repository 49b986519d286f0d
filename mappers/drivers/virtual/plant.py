"""The devices behind the links: what was written to them, and the faults they have. They outlive their links, as real
ones do; tests reach them through `VirtualDriver.device`."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec import Struct

from mappers.drivers.virtual.settings import MAX_BLOCK_MS, Fault, VirtualConfig
from mappers.sdk import ConversionError, DeviceId, Value

__all__ = ["Faults", "Plant", "VirtualDevice"]

FORGOTTEN_AFTER: Final = 10_000
"""Devices kept in mind; past that, one that is not connected any more forgets what was written to it."""
_LIMITS: Final[dict[str, float]] = {
    "latency": 600_000,
    "jitter": 600_000,
    "failRate": 1,
    "failEvery": 1_000_000,
    "block": MAX_BLOCK_MS,
}


class Faults(Struct, frozen=True):
    """What is wrong with a device. Units and meaning are those of `VirtualConfig`."""

    latency: int = 0
    jitter: int = 0
    fail_rate: float = 0.0
    fail_every: int = 0
    garbage: bool = False
    hang: bool = False
    offline: bool = False
    block: int = 0

    @classmethod
    def declared(cls, config: VirtualConfig) -> Faults:
        return cls(**{name: getattr(config, name) for name in cls.__struct_fields__})


_HEALTHY: Final = Faults()
_FIELDS: Final[dict[str, str]] = {"failRate": "fail_rate", "failEvery": "fail_every"}


class VirtualDevice:
    """One device: what it holds and how it feels. Owned by its driver, changed by its link and by switches."""

    def __init__(self, id_: DeviceId) -> None:
        self.id = id_
        self.config = VirtualConfig()
        self.held: dict[str, Value] = {}
        """What was written, by property; it stays until the method `reset`, or the mapper's end."""
        self.lags: dict[str, tuple[float, float]] = {}
        """Property that follows → (epoch seconds, value) when it was last looked at."""
        self.started_s: float | None = None
        """Epoch seconds of the first connect."""
        self.requests = 0
        """Requests so far, answered or not."""
        self.writes: list[tuple[str, Value]] = []
        """The last 100 values written, by property."""
        self.links = 0
        """Links opened so far."""
        self.open_links = 0
        self._switched: dict[str, bool | int | float] = {}
        self._changed = asyncio.Event()
        self.faults = _HEALTHY
        self.is_healthy = True

    def declare(self, config: VirtualConfig) -> None:
        """Take over the protocol settings; what a switch did stays."""
        self.config = config
        self._refresh()

    def switch(self, fault: Fault, value: Value) -> None:
        """Set one fault, over whatever is declared.

        Raises:
            ConversionError: No such amount of it.
        """
        if isinstance(value, str | bytes):
            raise ConversionError(f"{value!r} is no amount of {fault}")
        most = _LIMITS.get(fault, 1)
        if not 0 <= value <= most:
            raise ConversionError(f"{fault} {value:g} is not between 0 and {most:g}")
        self._switched[_FIELDS.get(fault, fault)] = bool(value) if fault in ("garbage", "hang", "offline") else value
        self._refresh()

    def level(self, fault: Fault) -> Value:
        """How much there is of one fault."""
        level: Value = getattr(self.faults, _FIELDS.get(fault, fault))
        return level

    def write(self, name: str, value: Value) -> None:
        self.held[name] = value
        self.writes.append((name, value))
        del self.writes[:-100]

    def reset(self, name: str) -> None:
        """Let a property go back to its waveform."""
        self.held.pop(name, None)

    async def changed(self) -> None:
        """Return when the faults are others."""
        event = self._changed
        await event.wait()

    def _refresh(self) -> None:
        faults = msgspec.structs.replace(Faults.declared(self.config), **self._switched)
        if faults != self.faults:
            self.faults, self.is_healthy = faults, faults == _HEALTHY
            self._changed.set()
            self._changed = asyncio.Event()


class Plant:
    """All devices of one driver, by id."""

    def __init__(self) -> None:
        self._devices: dict[DeviceId, VirtualDevice] = {}

    def device(self, id_: DeviceId) -> VirtualDevice:
        device = self._devices.pop(id_, None) or VirtualDevice(id_)
        self._devices[id_] = device  # the latest last
        if len(self._devices) > FORGOTTEN_AFTER and not next(iter(self._devices.values())).open_links:
            self._devices.pop(next(iter(self._devices)))
        return device
