"""What the conformance suite is told about a driver: the driver, a device it can reach, and a hand on that device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from dmi.types import Device, DeviceModel, Scalar
from mappers.sdk.driver import AnyDriver
from mappers.sdk.testing.faults import Faults

__all__ = ["Subject"]


class Subject(ABC):
    """A driver under test. Set the attributes in `__init__` or as class attributes. What has a default may be left out
    where the test class says so: with `lacks=("pushed", "neighbour")` it has no tests of those.

    The suite sets collect cycles and desired values itself. Values are texts, as they are reported.
    """

    driver: AnyDriver
    device: Device
    """Has the properties named below."""
    model: DeviceModel

    readable: str
    """A property that `set_value` can change."""
    values: tuple[str, str]
    """Two values of it."""

    writable: str = ""
    """A property that can be written; empty: the device has none."""
    desired: tuple[str, str] = ("", "")
    """Two values of it."""

    pushed: str = ""
    """A property that the device sends by itself when `set_value` changes it."""

    faults: Faults | None = None
    """The faults of what stands between driver and device: a proxy, or a `FaultyDriver` around the driver."""
    reply_timeout_s: float = 1.0
    """How long the driver waits for a reply, as the device is declared. Short ones make the suite quick."""
    patience_s: float = 15.0
    """How long the suite waits for what must happen."""

    wrong_config: Mapping[str, Scalar] = {}
    """Protocol settings, each of which must be refused with its key."""
    wrong_visitor: Mapping[str, Scalar] = {}
    """Visitor settings of `readable`, each of which must be refused with its key."""
    other_config: Mapping[str, Scalar] = {}
    """Protocol settings that lead to the same device over a new link, such as another timeout."""
    other_visitor: Mapping[str, Scalar] = {}
    """Visitor settings with which `readable` shows what `writable` shows."""
    neighbour: Device | None = None
    """A device that shares the line with `device` and never answers: of the same model, under another name."""

    @abstractmethod
    async def start(self) -> None:
        """Switch the device on again, at the address it had, with the values it had."""

    @abstractmethod
    async def stop(self) -> None:
        """Switch the device off: connections break, new ones are refused or go unanswered."""

    @abstractmethod
    async def set_value(self, property_name: str, text: str) -> None:
        """Change a value on the device itself, also while it is off."""

    @abstractmethod
    async def get_value(self, property_name: str) -> str:
        """What the device itself holds."""
