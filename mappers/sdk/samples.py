"""What the data plane takes: every good value that was read, on its way to a property's push method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from dmi.types import Device, DeviceId

__all__ = ["NoSamples", "Sample", "Samples"]


class Sample(Struct, frozen=True):
    """One good value of one property."""

    device: DeviceId
    property_name: str
    value: str
    """As it is reported."""
    type: str
    """Lower case, such as `float`."""
    collected_ms: int
    """Epoch milliseconds."""


class Samples(Protocol):
    """Where samples go. No call waits; what cannot be kept is dropped there, counted and shown."""

    def declare(self, device: Device) -> Sequence[str]:
        """Take over the push methods of a device. Returns what is wrong with them, with the path as in the YAML; a
        property's wrong push method leaves the property itself unharmed."""

    def forget(self, device: DeviceId) -> None:
        """The device is gone; what it had to say is still sent."""

    def put(self, sample: Sample) -> None:
        """Take a value; of properties without a push method it is passed over."""


class NoSamples:
    """A mapper without a data plane."""

    def declare(self, device: Device) -> Sequence[str]:  # noqa: ARG002  # the protocol's
        return ()

    def forget(self, device: DeviceId) -> None: ...

    def put(self, sample: Sample) -> None: ...
