"""DMI inside one process: the same ports, without sockets and serialization.

The guarantees are those of the sockets: an answer means done, every call has a deadline, a peer that is not there is
`PeerUnavailable`, and what a handler raises arrives as `PeerRefused` with the status name that gRPC would have given.
Values are handed over as they are: all of them are frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeVar

from msgspec.structs import replace

from dmi.errors import ConfigError, DmiError, PeerTimeout, PeerUnavailable
from dmi.ports import LOCAL, EdgeCoreHandlers, EdgeCorePort, MapperHandlers, MapperInfo, MapperPort, Registration
from dmi.rpc import CALL_TIMEOUT_S, refusal
from dmi.twins import Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceState, ModelId, NodeName

__all__ = ["LocalDmi"]

logger = logging.getLogger(__name__)

H = TypeVar("H")
R = TypeVar("R")

_NO_NODE: Final = NodeName("")


class LocalDmi:
    """The meeting place of one edge core and the mappers in its process; an address is a name after `local:`."""

    def __init__(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._edgecore: _Place[EdgeCoreHandlers] = _Place("edge core of this process")
        self._mappers: dict[str, _Place[MapperHandlers]] = {}

    @contextlib.asynccontextmanager
    async def serve_edgecore(self, handlers: EdgeCoreHandlers) -> AsyncIterator[None]:
        """Let mappers call while the block runs."""
        async with self._edgecore.serve(handlers):
            yield

    @contextlib.asynccontextmanager
    async def serve_mapper(self, handlers: MapperHandlers, address: str, /) -> AsyncIterator[None]:
        """Let the edge core call while the block runs.

        Raises:
            ConfigError: The address is not `local:NAME`, or a mapper serves it.
        """
        if not address.startswith(LOCAL) or address == LOCAL:
            raise ConfigError("address", f"{address!r} is not of the form {LOCAL}NAME")
        place = self._mapper(address)
        if place.here.is_set():
            raise ConfigError("address", f"{address} is served by another mapper of this process")
        async with place.serve(handlers):
            yield

    @contextlib.asynccontextmanager
    async def edgecore(self) -> AsyncIterator[EdgeCorePort]:
        yield _LocalEdgeCore(self._edgecore, self._timeout_s)

    def mapper(self, address: str) -> MapperPort:
        """The way to a mapper, whether it is there yet or not."""
        return _LocalMapper(self._mapper(address), self._timeout_s)

    def _mapper(self, address: str) -> _Place[MapperHandlers]:
        place = self._mappers.get(address)
        if place is None:
            place = self._mappers[address] = _Place(f"mapper at {address}")
        return place


class _Place(Generic[H]):
    """Where one side is found, while it serves."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handlers: H | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self.here = asyncio.Event()
        self.away = asyncio.Event()
        self.away.set()

    @contextlib.asynccontextmanager
    async def serve(self, handlers: H) -> AsyncIterator[None]:
        """Calls under way when the block ends are cancelled, and over when it has ended."""
        self._handlers = handlers
        self.away.clear()
        self.here.set()
        try:
            yield
        finally:
            self._handlers = None
            self.here.clear()
            self.away.set()
            calls, self._calls = self._calls, set()
            for call in calls:
                call.cancel()
            if calls:
                await asyncio.wait(calls)

    async def call(self, run: Callable[[H], Coroutine[Any, Any, R]], what: str, timeout_s: float) -> R:
        """
        Raises:
            PeerUnavailable: Nobody is here, whoever was here left, or there is no answer in time.
            PeerRefused: The handler raised.
        """
        if self._handlers is None:
            raise PeerUnavailable(f"{self._name}: is not there")
        task = asyncio.create_task(run(self._handlers), name=what)
        self._calls.add(task)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task in self._calls or (caller is not None and caller.cancelling()):
                raise  # the caller's own, not that of the other side leaving
            raise PeerUnavailable(f"{self._name}: left before it answered") from None
        except DmiError as error:
            logger.warning("%s refused: %s", what, error)
            raise refusal(error, self._name) from error
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                raise PeerTimeout(f"{self._name}: no answer within {timeout_s:g} s") from error
            logger.exception("%s failed", what)
            raise refusal(error, f"{self._name}: {what}") from error
        finally:
            self._calls.discard(task)


class _LocalEdgeCore:
    """`EdgeCorePort`."""

    def __init__(self, place: _Place[EdgeCoreHandlers], timeout_s: float) -> None:
        self._place = place
        self._timeout_s = timeout_s

    async def register(self, mapper: MapperInfo, /) -> Registration:
        answer = await self._place.call(
            lambda core: core.register_mapper(mapper, with_data=True), f"registration of {mapper.name}", self._timeout_s
        )
        return replace(answer, devices=tuple(_as_sent(device) for device in answer.devices))

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None:
        await self._place.call(lambda core: core.accept_twins(device, twins), f"twins of {device}", self._timeout_s)

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None:
        await self._place.call(
            lambda core: core.accept_state(device, state, reason), f"state of {device}", self._timeout_s
        )

    async def wait_ready(self) -> None:
        await self._place.here.wait()

    async def wait_lost(self) -> None:
        await self._place.away.wait()


class _LocalMapper:
    """`MapperPort`."""

    def __init__(self, place: _Place[MapperHandlers], timeout_s: float) -> None:
        self._place = place
        self._timeout_s = timeout_s

    async def register_device(self, device: Device, /) -> None:
        await self.update_device(device)

    async def update_device(self, device: Device, /) -> None:
        await self._place.call(
            lambda mapper: mapper.apply_device(_as_sent(device)), f"device {device.id}", self._timeout_s
        )

    async def remove_device(self, device: DeviceId, /) -> None:
        await self._place.call(lambda mapper: mapper.remove_device(device), f"removal of {device}", self._timeout_s)

    async def create_model(self, model: DeviceModel, /) -> None:
        await self.update_model(model)

    async def update_model(self, model: DeviceModel, /) -> None:
        await self._place.call(lambda mapper: mapper.apply_model(model), f"model {model.id}", self._timeout_s)

    async def remove_model(self, model: ModelId, /) -> None:
        await self._place.call(lambda mapper: mapper.remove_model(model), f"removal of model {model}", self._timeout_s)

    async def ping(self, _timeout_s: float, /) -> None:
        """It runs in our own loop: it answers if it is there."""
        if not self._place.here.is_set():
            raise PeerUnavailable("the mapper has ended")

    async def wait_ready(self) -> None:
        await self._place.here.wait()

    async def wait_lost(self) -> None:
        await self._place.away.wait()

    async def close(self) -> None:
        """There is nothing to close: the place is the mapper's."""


def _as_sent(device: Device) -> Device:
    """A mapper does not see the node here either."""
    return replace(device, node=_NO_NODE)
