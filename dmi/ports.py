"""The two ports of DMI: what a mapper asks of its edge core, and an edge core of a mapper; and who serves each.

A port is the calling side. `dmi.client` has both over unix sockets, `dmi.local` both inside one process. Every call
raises `PeerUnavailable` when the other end is not there, its subclass `PeerTimeout` when it does not answer in time,
and `PeerRefused` with its words when it answers with an error; calls to a mapper may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState, ModelId

__all__ = [
    "LOCAL",
    "EdgeCoreHandlers",
    "EdgeCorePort",
    "MapperHandlers",
    "MapperInfo",
    "MapperPort",
    "MapperSide",
    "Registration",
]

LOCAL = "local:"
"""How the address of a mapper inside the edge core's process begins; a name follows. Only such a mapper may use it."""


class MapperInfo(Struct, frozen=True):
    """How a mapper introduces itself."""

    name: str
    protocol: str
    address: str
    """Absolute path of the mapper's own socket, no scheme; or `local:NAME` inside the edge core's process."""
    version: str = ""
    api_version: str = "v1.0.0"
    state: str = "ok"
    patience_s: float = 10.0
    """How long it waits for the answer to its registration. Stock Go mappers: 1 s."""


class Registration(Struct, frozen=True):
    """What a mapper is to run: the full set, models once each, their defaults merged into the devices."""

    devices: tuple[Device, ...]
    models: tuple[DeviceModel, ...]
    refused: tuple[str, ...] = ()
    """Why an entry of the answer could not be read; the rest stands."""
    stock: bool = False
    """The edge core is KubeEdge's own, or as touchy: one call a second from its whole node, and values of a narrow
    alphabet only (DMI contract 0.1, rules 7 and 10)."""
    partial: bool = False
    """Not the full set: devices that the mapper has beyond it stay until it is told."""
    encoded: tuple[bytes, ...] = ()
    """`devices` as they go over a socket, where whoever made the answer has them already."""


class _Port(Protocol):
    async def wait_ready(self) -> None:
        """Return once the other end is there."""

    async def wait_lost(self) -> None:
        """Return once the other end is not there, at once if it is not; a killed peer is noticed without a call."""


class EdgeCorePort(_Port, Protocol):
    """A mapper's way to its edge core."""

    async def register(self, mapper: MapperInfo, /) -> Registration:
        """Announce the mapper, which must be serving already, and fetch the full set of what it is to run."""
        ...

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None:
        """Hand over what was read, any number of properties in one call. Returning means stored (upstream: queued)."""

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None:
        """Say whether the device is online, and in words why not."""


class MapperPort(_Port, Protocol):
    """The edge core's way to one mapper."""

    async def register_device(self, device: Device, /) -> None: ...

    async def update_device(self, device: Device, /) -> None: ...

    async def remove_device(self, device: DeviceId, /) -> None: ...

    async def create_model(self, model: DeviceModel, /) -> None: ...

    async def update_model(self, model: DeviceModel, /) -> None: ...

    async def remove_model(self, model: ModelId, /) -> None: ...

    async def ping(self, timeout_s: float, /) -> None:
        """Return when the mapper answers, whatever it says. It concerns none of its devices."""

    async def close(self) -> None: ...


class EdgeCoreHandlers(Protocol):
    """What an edge core does for mappers. An exception of `dmi.errors` is answered with its own words."""

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration: ...

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        """Returning means durably stored. `UnknownDevice` when no such device is on this node."""

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None: ...


class MapperHandlers(Protocol):
    """What a mapper does for an edge core. Everything may be repeated; removing what is gone succeeds."""

    async def apply_device(self, device: Device) -> None:
        """`RegisterDevice` and `UpdateDevice`: an upsert."""

    async def remove_device(self, device: DeviceId) -> None: ...

    async def apply_model(self, model: DeviceModel) -> None: ...

    async def remove_model(self, model: ModelId) -> None: ...

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]: ...


class MapperSide(Protocol):
    """All that a mapper needs of DMI: `dmi.client.Sockets`, or `dmi.local.LocalDmi`."""

    def edgecore(self) -> AbstractAsyncContextManager[EdgeCorePort]:
        """The way to the edge core; leaving the block closes it."""
        ...

    def serve_mapper(self, handlers: MapperHandlers, address: str, /) -> AbstractAsyncContextManager[object]:
        """Let the edge core call while the block runs. Serve first, then register.

        Raises:
            ConfigError: The address cannot be used.
        """
        ...
