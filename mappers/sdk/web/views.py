"""What the web needs to see of the mappers it serves. The runtime's own objects have these members."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState
from mappers.sdk.samples import Samples
from mappers.sdk.stats import DeviceStats, Histogram

if TYPE_CHECKING:
    from mappers.sdk.sinks.record import SinkStats  # the data plane is loaded when something uses it

__all__ = ["DeviceView", "FleetView", "HasSinkStats", "MapperView", "RegistrationView", "UplinkView"]


class DeviceView(Protocol):
    """One device: `DeviceRunner`."""

    @property
    def device(self) -> Device: ...

    @property
    def model(self) -> DeviceModel | None: ...

    @property
    def stats(self) -> DeviceStats: ...

    @property
    def state(self) -> tuple[DeviceState, str]:
        """What the device is, and why if it is not well. `unknown` before its first answer or failure."""

    def twins(self) -> list[Twin]: ...

    async def read_property(self, name: str) -> Twin:
        """Read the device now.

        Raises:
            UnknownProperty: The device has none of that name.
            ConversionError: What the device has is no value of the declared type.
            DeviceError: It cannot be read.
        """

    async def write_property(self, name: str, text: str) -> Twin:
        """Write and read back.

        Raises:
            UnknownProperty: The device has none of that name.
            ConversionError: Not a value of the declared type and range, or the property is ReadOnly.
            DeviceError: Not written, or not known to be.
        """

    async def call_method(self, method: str, name: str, text: str) -> Twin:
        """Call a method of the device with one of its properties; errors as of `write_property`."""


class FleetView(Protocol):
    """The devices of one mapper: `Fleet`."""

    def find(self, device_id: DeviceId) -> DeviceView | None: ...

    def runners(self) -> Collection[DeviceView]: ...

    @property
    def retired_latency(self) -> Histogram:
        """The read latencies of devices that are gone, so that the mapper's histogram only grows."""


class UplinkView(Protocol):
    """Reports on their way: `Uplink`. The counters only grow."""

    @property
    def queue_depth(self) -> int:
        """Devices that have something to say which the edge core has not taken yet."""

    @property
    def reports(self) -> int:
        """Reports the edge core took: calls, of twins and of states."""

    @property
    def report_failures(self) -> int:
        """Calls it refused, or that did not reach it."""

    @property
    def unfit(self) -> int:
        """Values that a stock edge core dropped."""


class RegistrationView(Protocol):
    """How it stands between a mapper and its edge core."""

    @property
    def registered(self) -> bool: ...

    @property
    def since(self) -> float:
        """Epoch seconds of the last change of `registered`; of the mapper's start before the first."""

    @property
    def problem(self) -> str:
        """Why it is not registered, if that is known."""


@runtime_checkable
class HasSinkStats(Protocol):
    """A `Samples` whose sinks are counted."""

    def stats(self) -> Iterable[SinkStats]: ...

    @property
    def files_set_aside(self) -> int:
        """Files of waiting samples that could not be used. Only grows."""


class MapperView(Protocol):
    """One mapper of this process."""

    @property
    def name(self) -> str: ...

    @property
    def protocol(self) -> str: ...

    @property
    def failures(self) -> int:
        """Times it failed as a whole and was started over."""

    @property
    def fleet(self) -> FleetView: ...

    @property
    def uplink(self) -> UplinkView: ...

    @property
    def registration(self) -> RegistrationView: ...

    @property
    def samples(self) -> Samples: ...
