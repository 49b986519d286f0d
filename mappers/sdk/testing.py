"""Test kit for mappers: an edge core that records what it is told and says what to run, over a real unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from dmi.client import MapperClient, MapperInfo, Registration
from dmi.server import serve_edgecore
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel

__all__ = ["FakeEdgeCore"]


class FakeEdgeCore:
    """Serves DMI on `socket_path` while the block runs. Devices and models given are handed out at registration.

    `reports`, `states` and `mappers` hold all that was accepted, in order. `gate` holds reports back while it is
    cleared: a slow edge core. `refusal`, when set, is raised for every report.
    """

    def __init__(
        self, socket_path: Path, *, devices: Sequence[Device] = (), models: Sequence[DeviceModel] = ()
    ) -> None:
        self.socket_path = socket_path
        self.devices: dict[DeviceId, Device] = {d.id: d for d in devices}
        self.models = {m.id: m for m in models}
        self.mappers: list[MapperInfo] = []
        self.reports: list[tuple[DeviceId, tuple[Twin, ...]]] = []
        self.states: list[tuple[DeviceId, str, str]] = []
        self.twins: dict[tuple[DeviceId, str], Twin] = {}
        """The newest of each property."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: Exception | None = None
        self._changed = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(serve_edgecore(self, self.socket_path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # what a mapper calls

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        self.mappers.append(mapper)
        self._changed.set()
        if not with_data:
            return Registration((), ())
        return Registration(tuple(self.devices.values()), tuple(self.models.values()))

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.reports.append((device, tuple(twins)))
        self.twins.update(((device, t.property_name), t) for t in twins)
        self._changed.set()

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        await self.gate.wait()
        self.states.append((device, state, reason))
        self._changed.set()

    # what a test does

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until the condition holds; it is looked at after each call of a mapper.

        Raises:
            TimeoutError: It did not come true in time.
        """
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def apply(self, device: Device) -> None:
        """Hand a new or changed device to the mapper that registered last."""
        self.devices[device.id] = device
        async with MapperClient(self.mappers[-1].address) as client:
            await client.update_device(device)

    async def apply_model(self, model: DeviceModel) -> None:
        self.models[model.id] = model
        async with MapperClient(self.mappers[-1].address) as client:
            await client.update_model(model)

    async def remove(self, device: DeviceId) -> None:
        self.devices.pop(device, None)
        async with MapperClient(self.mappers[-1].address) as client:
            await client.remove_device(device)

    def value(self, device: DeviceId, property_name: str) -> str:
        """The newest reported value; empty if there is none yet."""
        twin = self.twins.get((device, property_name))
        return twin.reported.value if twin else ""
