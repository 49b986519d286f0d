"""An edge core for tests: it records what mappers tell it, and tells them what to run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from dmi.client import MapperClient
from dmi.local import LocalDmi
from dmi.ports import LOCAL, MapperInfo, MapperPort, Registration
from dmi.server import serve_edgecore
from dmi.twins import Twin
from dmi.types import DesiredSpec, Device, DeviceId, DeviceModel
from mappers.sdk.errors import UnknownProperty
from mappers.sdk.testing.stock import StockRules

__all__ = ["FakeEdgeCore"]


class FakeEdgeCore:
    """Serves mappers while the block runs. Devices and models given are handed out at registration.

    Mappers of this process reach it through `dmi`, without sockets; with a `socket_path`, any mapper does as well.

    `reports`, `states` and `mappers` hold all that was accepted, in order. `gate` holds reports back while it is
    cleared: a slow edge core. `refusal`, when set, is raised for every report.

    With `stock` it is as touchy as KubeEdge's own: beyond `burst` calls at once it takes one a second and refuses the
    others, and `violations` names everything that the stock one would have dropped silently, or died of. Read it at the
    end of a test.
    """

    def __init__(
        self,
        socket_path: Path | None = None,
        *,
        devices: Sequence[Device] = (),
        models: Sequence[DeviceModel] = (),
        stock: bool = False,
        burst: int = 100,
    ) -> None:
        self.devices: dict[DeviceId, Device] = {d.id: d for d in devices}
        self.models = {m.id: m for m in models}
        self.dmi = LocalDmi()
        self.mappers: list[MapperInfo] = []
        self.reports: list[tuple[DeviceId, tuple[Twin, ...]]] = []
        self.states: list[tuple[DeviceId, str, str]] = []
        self.twins: dict[tuple[DeviceId, str], Twin] = {}
        """The newest of each property."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: Exception | None = None
        self.rules = StockRules(burst=burst) if stock else None
        self._socket_path = socket_path
        self._changed = asyncio.Event()
        self._stack = AsyncExitStack()

    @property
    def socket_path(self) -> Path:
        if self._socket_path is None:
            raise RuntimeError("this FakeEdgeCore serves no socket: give it a path, or stock=True")
        return self._socket_path

    @property
    def serves_socket(self) -> bool:
        return self._socket_path is not None

    @property
    def violations(self) -> list[str]:
        """What mappers did that a stock edge core does not put up with."""
        return self.rules.violations if self.rules else []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self.rules and self._socket_path is None:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kubetwin-"))
                self._socket_path = Path(directory) / "dmi.sock"
            if self._socket_path is not None:
                interceptors = [self.rules] if self.rules else []
                await stack.enter_async_context(serve_edgecore(self, self._socket_path, interceptors=interceptors))
            await stack.enter_async_context(self.dmi.serve_edgecore(self))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # what a mapper calls

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        self._take_token(mapper)
        self.mappers.append(mapper)
        self._changed.set()
        stock = self.rules is not None
        if not with_data:
            return Registration((), (), stock=stock)
        return Registration(tuple(self.devices.values()), tuple(self.models.values()), stock=stock)

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        self._take_token()
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.reports.append((device, tuple(twins)))
        self.twins.update(((device, t.property_name), t) for t in twins)
        self._changed.set()

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        self._take_token()
        await self.gate.wait()
        self.states.append((device, state, reason))
        self._changed.set()

    def _take_token(self, mapper: MapperInfo | None = None) -> None:
        """For mappers of this process; those that come over the socket are looked at on the wire."""
        mapper = mapper or (self.mappers[-1] if self.mappers else None)
        if self.rules and mapper is not None and mapper.address.startswith(LOCAL):
            self.rules.take()

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
        async with self._mapper() as mapper:
            await mapper.update_device(device)

    async def apply_model(self, model: DeviceModel) -> None:
        self.models[model.id] = model
        async with self._mapper() as mapper:
            await mapper.update_model(model)

    async def remove(self, device: DeviceId) -> None:
        self.devices.pop(device, None)
        async with self._mapper() as mapper:
            await mapper.remove_device(device)

    async def set_desired(self, device: DeviceId, property_name: str, value: str) -> None:
        """What `kubectl twin set` comes to at the mapper: the device again, with another desired value.

        Raises:
            UnknownProperty: The device has none of that name.
        """
        declared = self.devices[device]
        if declared.find(property_name) is None:
            raise UnknownProperty(f"device {device} has no property {property_name!r}")
        await self.apply(
            msgspec.structs.replace(
                declared,
                properties=tuple(
                    msgspec.structs.replace(p, desired=DesiredSpec(value)) if p.name == property_name else p
                    for p in declared.properties
                ),
            )
        )

    def value(self, device: DeviceId, property_name: str) -> str:
        """The newest reported value; empty if there is none yet."""
        twin = self.twins.get((device, property_name))
        return twin.reported.value if twin else ""

    def quality(self, device: DeviceId, property_name: str) -> str:
        """The newest reported quality; empty if there is none yet."""
        twin = self.twins.get((device, property_name))
        return twin.reported.quality if twin else ""

    def write_state(self, device: DeviceId, property_name: str) -> str:
        """What became of the desired value: `pending`, `applied`, `failed`, or empty."""
        twin = self.twins.get((device, property_name))
        return twin.desired.write if twin else ""

    def state(self, device: DeviceId) -> str:
        """The newest reported state; empty if there is none yet."""
        return next((state for id_, state, _ in reversed(self.states) if id_ == device), "")

    @asynccontextmanager
    async def _mapper(self) -> AsyncIterator[MapperPort]:
        address = self.mappers[-1].address
        mapper: MapperPort = self.dmi.mapper(address) if address.startswith(LOCAL) else MapperClient(address)
        try:
            yield mapper
        finally:
            await mapper.close()
