"""What a driver author fills in: two typed structs for the settings, how to connect, and what the link can do.

A driver subclasses `Driver`, names its `protocol`, gives the structs of the protocol settings
(`spec.protocol.configData`) and of the visitor settings (`spec.properties[].visitors.configData`), and implements
`connect`, which yields a link: any object with `read_many` or `subscribe`, and `write` and `call` where the device has
something to write or call. Everything else (cycles, reconnects, desired values, quality, reports) is the runtime's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

from dmi.errors import ConversionError
from dmi.types import AccessMode, DeviceId, ModelProperty, PropertyType, Scalar
from dmi.values import Value
from mappers.sdk.errors import ConfigError, DeviceError

__all__ = [
    "AnyDriver",
    "CanCall",
    "CanRead",
    "CanSubscribe",
    "CanWrite",
    "Driver",
    "Found",
    "FoundProperty",
    "Link",
    "Property",
    "Push",
    "ReadResult",
]

P = TypeVar("P", bound=Struct)
V = TypeVar("V", bound=Struct)
V_co = TypeVar("V_co", bound=Struct, covariant=True)
LinkV = TypeVar("LinkV", bound=Struct, contravariant=True)

ReadResult = Value | DeviceError | ConversionError
"""What became of reading one property."""

Push = Callable[[Mapping[str, ReadResult]], None]
"""Takes what a device sent by itself, by property name; called in the event loop, and never waits. After the link was
closed it does nothing."""


class Property(Struct, Generic[V_co], frozen=True, eq=False):
    """One property as a driver sees it. Compared by identity, which holds until its declaration changes."""

    name: str
    visitor: V_co
    model: ModelProperty


@runtime_checkable
class CanRead(Protocol[LinkV]):
    """A link to a device that answers when asked."""

    async def read_many(self, properties: Sequence[Property[LinkV]], /) -> Mapping[str, ReadResult]:
        """Read what is due together, in as few requests as the protocol allows; one result per property name.

        The values are in the unit the device model declares. The same tuple of properties comes again every cycle, so a
        read plan can be kept under it. Beside the `read_many` of a cycle there is at most the one that reads a write
        back. Cancelled at any moment it ends with `CancelledError` and at once; the link then answers the next call, or
        says that it is gone, but never takes the late reply for another.

        Raises:
            DeviceUnreachable: The link is gone.
            DeviceError: Any other failure that concerns all of them.
        """
        ...


@runtime_checkable
class CanWrite(Protocol[LinkV]):
    """A link over which properties can be set."""

    async def write(self, property_: Property[LinkV], value: Value, /) -> None:
        """Write one value of the model's type. The runtime reads it back afterwards.

        May be called while a `read_many` is under way; the link lets one transaction at a time onto the wire and lets
        the write in between two of a long read.

        Raises:
            ConversionError: The device cannot hold the value; nothing was sent.
            DeviceError: The device did not take it.
        """
        ...


@runtime_checkable
class CanSubscribe(Protocol[LinkV]):
    """A link to a device that sends by itself."""

    async def subscribe(self, properties: Sequence[Property[LinkV]], push: Push, /) -> Collection[str]:
        """Have the device send those it can, and return their names; the others are read in their collect cycle.

        Called once after the connect, and again with the full set when the declaration changed. What is named is never
        read: push the value there is right after subscribing, in `subscribe` itself if need be. A value that did not
        change need not be pushed again: it stays good for as long as the link is open. So it is for the driver to
        notice a connection that is only half open, with a keep-alive or the protocol's own ping, and to push the loss.

        Raises:
            DeviceUnreachable: The link is gone. A later loss is told by pushing one for any property.
            DeviceError: Not possible; everything is read instead, and it is tried again with the next connect.
        """
        ...


@runtime_checkable
class CanCall(Protocol[LinkV]):
    """A link with device methods that are more than writing a property."""

    async def call(self, method: str, property_: Property[LinkV], value: Value, /) -> None:
        """Call a method of `spec.methods` with one of its properties. Links without `call` write the property.

        Raises:
            ConversionError: The device cannot take the value; nothing was sent.
            DeviceError: The device did not do it.
        """
        ...


Link = CanRead[LinkV] | CanSubscribe[LinkV]
"""An open connection to one device; it may be `CanWrite` and `CanCall` besides."""


class FoundProperty(Struct, frozen=True):
    """A property that `discover` proposes. `name` is a valid property name, `visitor` as in the YAML."""

    name: str
    type: PropertyType
    visitor: Mapping[str, Scalar]
    access_mode: AccessMode = "ReadOnly"
    description: str = ""
    """What was seen there, such as the raw value."""


class Found(Struct, frozen=True):
    """A device that `discover` proposes. `config` is its protocol configuration as in the YAML."""

    name: str
    config: Mapping[str, Scalar]
    properties: tuple[FoundProperty, ...] = ()
    description: str = ""


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

    def config_warnings(self, config: P) -> Iterable[tuple[str, str]]:  # noqa: ARG002  # as below
        """(key, what is odd about it) of a config as declared that `check_config` takes all the same."""
        return ()

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

    def discover(self, config: P) -> AsyncIterator[Found]:  # noqa: ARG002  # as above
        """Look for devices where `config` points to, one at a time; nothing is written to any.

        Raises:
            ConfigError: This driver cannot discover, or not with this config.
            DeviceError: There is nothing that answers.
        """
        raise ConfigError("", f"the {self.protocol} driver cannot discover devices")

    @abstractmethod
    def connect(self, device_id: DeviceId, config: P) -> AbstractAsyncContextManager[Link[V]]:
        """Open a link; leaving the block closes it. Devices that share a wire share it through `SharedLines`.

        Tasks started for the link end with it: what still runs a moment later is cancelled, counted and named. A link
        is closed too when a thousand tasks of it have piled up and go on. What
        several devices share is started in `mappers.sdk.context.detached()`.

        Raises:
            DeviceError: Not now; the runtime tries again with back-off.
            ConfigError: Not as declared; shown as such, and tried again only every half a minute.
        """


AnyDriver = Driver[Any, Any]
"""A driver whose structs the caller does not care about."""
