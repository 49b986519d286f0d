"""Faults for drivers without a socket to put a proxy into: a driver around a driver."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from dmi.types import DeviceId, PropertyType
from dmi.values import Value
from mappers.sdk.driver import AnyDriver, Property, Push, ReadResult
from mappers.sdk.errors import DeviceTimeout, DeviceUnreachable
from mappers.sdk.testing.around import DriverAround, LinkAround
from mappers.sdk.testing.faults import Faults

__all__ = ["FaultyDriver"]

_GARBAGE: Final[Mapping[PropertyType, Value]] = {
    "INT": "garbage",
    "FLOAT": math.nan,
    "DOUBLE": math.inf,
    "BOOLEAN": 7,
    "STRING": b"\xff\xfe",
    "BYTES": "garbage",
}


class FaultyDriver(DriverAround):
    """Does to each call what a bad line comes to in a good driver: `delay_s` delays it, with `silent`, `drop` or
    `drop_requests` it times out after `timeout_s`, with `garbage`, `corrupt` or `truncate` it brings values that are
    none, with `refuse` no link opens. With `hang` calls never end, as they do in a bad driver."""

    def __init__(self, driver: AnyDriver, *, faults: Faults | None = None, timeout_s: float = 1.0) -> None:
        super().__init__(driver)
        self.faults = faults or Faults()
        self.timeout_s = timeout_s
        self.hang = False
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """Break every link there is: what is called on it, and what waits, ends with `DeviceUnreachable`."""
        self._cut.set()
        self._cut = asyncio.Event()

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: Any) -> AsyncIterator[Any]:
        if self.faults.refuse:
            raise DeviceUnreachable(device_id, "refused")
        async with self.driver.connect(device_id, config) as link:
            yield _FaultyLink(self, device_id, link, self._cut)


class _FaultyLink(LinkAround):
    def __init__(self, driver: FaultyDriver, device_id: DeviceId, link: Any, cut: asyncio.Event) -> None:
        super().__init__(link)
        self._driver = driver
        self._device_id = device_id
        self._cut = cut

    async def _read_many(self, properties: Sequence[Property[Any]], /) -> Mapping[str, ReadResult]:
        await self._suffer(request=True)
        results: Mapping[str, ReadResult] = await self._inner.read_many(properties)
        await self._suffer()
        faults = self._driver.faults
        if faults.garbage or faults.corrupt or faults.truncate:
            return {p.name: _GARBAGE[p.model.type] for p in properties}
        return results

    async def _write(self, property_: Property[Any], value: Value, /) -> None:
        await self._suffer(request=True)
        await self._inner.write(property_, value)
        await self._suffer()

    async def _call(self, method: str, property_: Property[Any], value: Value, /) -> None:
        await self._suffer(request=True)
        await self._inner.call(method, property_, value)
        await self._suffer()

    async def _subscribe(self, properties: Sequence[Property[Any]], push: Push, /) -> Collection[str]:
        def passed_on(results: Mapping[str, ReadResult]) -> None:
            faults = self._driver.faults
            if self._cut.is_set() or faults.silent or faults.drop:
                return
            if faults.garbage or faults.corrupt or faults.truncate:
                results = {name: _GARBAGE[types[name]] for name in results if name in types}
            push(results)

        types = {p.name: p.model.type for p in properties}

        await self._suffer(request=True)
        pushed: Collection[str] = await self._inner.subscribe(properties, passed_on)
        return pushed

    async def _suffer(self, *, request: bool = False) -> None:
        """The way there (`request`), or the way back."""
        faults = self._driver.faults
        if self._cut.is_set():
            raise DeviceUnreachable(self._device_id, "the line was cut")
        if self._driver.hang:
            await self._cut.wait()
            raise DeviceUnreachable(self._device_id, "the line was cut")
        if faults.silent or (faults.drop_requests if request else faults.drop):
            await asyncio.sleep(self._driver.timeout_s)
            raise DeviceTimeout(self._device_id, f"no reply in {self._driver.timeout_s} s")
        if not request and faults.delay_s:
            await asyncio.sleep(faults.delay_s)
