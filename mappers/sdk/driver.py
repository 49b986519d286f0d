"""What a driver author fills in: two typed structs for the settings, and how to connect, read and write.

A driver subclasses `Driver`, names its `protocol`, gives the structs of the protocol settings
(`spec.protocol.configData`) and of the visitor settings (`spec.properties[].visitors.configData`), and implements
`connect`. Everything else (cycles, reconnects, desired values, quality, reports) is the runtime's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from msgspec import Struct

from dmi.errors import ConversionError
from dmi.types import DeviceId, ModelProperty
from dmi.values import Value
from mappers.sdk.errors import DeviceError

__all__ = ["AnyDriver", "Driver", "Link", "Property", "ReadResult"]

P = TypeVar("P", bound=Struct)
V = TypeVar("V", bound=Struct)
V_co = TypeVar("V_co", bound=Struct, covariant=True)
LinkV = TypeVar("LinkV", bound=Struct, contravariant=True)

ReadResult = Value | DeviceError | ConversionError
"""What became of reading one property."""


class Property(Struct, Generic[V_co], frozen=True, eq=False):
    """One property as a driver sees it. Compared by identity, which holds until its declaration changes."""

    name: str
    visitor: V_co
    model: ModelProperty


class Link(Protocol[LinkV]):
    """An open connection to one device.

    `write` may be called while a `read_many` is under way; the link lets one transaction at a time onto the wire and
    lets the write in between two of a long read. Beside the `read_many` of a cycle there is at most the one that reads
    a write back.
    """

    async def read_many(self, properties: Sequence[Property[LinkV]], /) -> Mapping[str, ReadResult]:
        """Read what is due together, in as few requests as the protocol allows; one result per property name.

        The values are in the unit the device model declares. The same tuple of properties comes again every cycle, so a
        read plan can be kept under it.

        Raises:
            DeviceUnreachable: The link is gone.
            DeviceError: Any other failure that concerns all of them.
        """
        ...

    async def write(self, property_: Property[LinkV], value: Value, /) -> None:
        """Write one value of the model's type. The runtime reads it back afterwards.

        Raises:
            ConversionError: The device cannot hold the value; nothing was sent.
            DeviceError: The device did not take it.
        """
        ...


class Driver(ABC, Generic[P, V]):
    """One protocol. Holds no state of a device: that lives in the `Link`."""

    protocol: ClassVar[str]
    """`spec.protocol.protocolName` of the devices it runs."""
    protocol_config: type[P]
    visitor_config: type[V]

    def check_config(self, config: P) -> P:
        """Refuse what the struct alone cannot, and fill in defaults.

        Raises:
            ConfigError: `path` is the key alone; the runtime completes it.
        """
        return config

    def resolve(self, visitor: V, model: ModelProperty) -> V:  # noqa: ARG002  # for those who override it
        """Refuse what could never work and fill in what follows from the model, such as a width from the type.

        Raises:
            ConfigError: `path` is the key alone; the runtime completes it.
        """
        return visitor

    def held_value(self, property_: Property[V], value: Value) -> Value:  # noqa: ARG002  # as above
        """What reading gives back once `value` was written: the value in the device's own precision.

        Raises:
            ConversionError: The device cannot hold it.
        """
        return value

    @abstractmethod
    def connect(self, device_id: DeviceId, config: P) -> AbstractAsyncContextManager[Link[V]]:
        """Open a link; leaving the block closes it.

        Raises:
            DeviceError: Not now; the runtime tries again with back-off.
            ConfigError: Not as declared; not tried again before the declaration changes.
        """


AnyDriver = Driver[Any, Any]
"""A driver whose structs the caller does not care about."""
