"""A driver around a driver that counts what the runtime does with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dmi.errors import ConfigError, ConversionError
from dmi.types import DeviceId
from dmi.values import Value
from mappers.sdk.driver import AnyDriver, Property, ReadResult
from mappers.sdk.errors import DeviceError
from mappers.sdk.testing.around import DriverAround, LinkAround

__all__ = ["WatchedDriver"]


class WatchedDriver(DriverAround):
    """Passes everything on to `driver`. The links it yields can do exactly what the driver's own can."""

    def __init__(self, driver: AnyDriver) -> None:
        super().__init__(driver)
        self.connects: dict[DeviceId, int] = {}
        """Links opened so far, by device."""
        self.open_links = 0
        self.reads = 0
        """Reads ended so far."""
        self.reading = 0
        """Reads under way."""
        self.most_reading = 0
        self.writes: list[tuple[str, Value]] = []
        """Writes begun so far, by property name."""
        self.unexpected: list[str] = []
        """Exceptions that no driver should raise, with the call they came out of."""

    @asynccontextmanager
    async def connect(self, device_id: DeviceId, config: Any) -> AsyncIterator[Any]:
        link_manager = self.driver.connect(device_id, config)
        try:
            link = await link_manager.__aenter__()
        except Exception as error:
            self.note("connect", error)
            raise
        self.connects[device_id] = self.connects.get(device_id, 0) + 1
        self.open_links += 1
        try:
            yield _WatchedLink(self, link)
        finally:
            self.open_links -= 1
            await link_manager.__aexit__(None, None, None)

    def note(self, call: str, error: Exception) -> None:
        if not isinstance(error, DeviceError | ConfigError | ConversionError):
            self.unexpected.append(f"{call}: {error!r}")


class _WatchedLink(LinkAround):
    def __init__(self, watch: WatchedDriver, link: Any) -> None:
        super().__init__(link)
        self._watch = watch

    async def _read_many(self, properties: Sequence[Property[Any]], /) -> Mapping[str, ReadResult]:
        watch = self._watch
        watch.reading += 1
        watch.most_reading = max(watch.most_reading, watch.reading)
        try:
            results: Mapping[str, ReadResult] = await self._inner.read_many(properties)
        except Exception as error:
            watch.note("read_many", error)
            raise
        finally:
            watch.reading -= 1
            watch.reads += 1
        return results

    async def _write(self, property_: Property[Any], value: Value, /) -> None:
        self._watch.writes.append((property_.name, value))
        try:
            await self._inner.write(property_, value)
        except Exception as error:
            self._watch.note("write", error)
            raise
