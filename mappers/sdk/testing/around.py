"""A driver around a driver: what the other wrappers of the kit stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from msgspec import Struct

from dmi.types import ModelProperty
from dmi.values import Value
from mappers.sdk.driver import AnyDriver, CanCall, CanRead, CanSubscribe, CanWrite, Driver, Found, Property

__all__ = ["DriverAround", "LinkAround"]


class DriverAround(Driver[Any, Any]):
    """Passes everything but `connect` on to `driver`."""

    def __init__(self, driver: AnyDriver) -> None:
        self.driver = driver
        self.protocol = driver.protocol  # type: ignore[misc]  # that of the one inside
        self.protocol_config: type[Struct] = driver.protocol_config
        self.visitor_config: type[Struct] = driver.visitor_config

    def check_config(self, config: Any) -> Any:
        return self.driver.check_config(config)

    def config_warnings(self, config: Any) -> Iterable[tuple[str, str]]:
        return self.driver.config_warnings(config)

    def resolve(self, visitor: Any, model: ModelProperty) -> Any:
        return self.driver.resolve(visitor, model)

    def held_value(self, property_: Property[Any], value: Value) -> Value:
        return self.driver.held_value(property_, value)

    def discover(self, config: Any) -> AsyncIterator[Found]:
        return self.driver.discover(config)


class LinkAround:
    """Has the abilities of `link` and no others: those of its methods `_read_many`, `_write`, `_call` and `_subscribe`
    that the link inside has too become its own."""

    def __init__(self, link: Any) -> None:
        self._inner = link
        abilities: tuple[tuple[type, str, Callable[..., Any]], ...] = (
            (CanRead, "read_many", self._read_many),
            (CanWrite, "write", self._write),
            (CanCall, "call", self._call),
            (CanSubscribe, "subscribe", self._subscribe),
        )
        for ability, name, method in abilities:
            if isinstance(link, ability):
                setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _read_many(self, properties: Any, /) -> Any:
        return await self._inner.read_many(properties)

    async def _write(self, property_: Any, value: Any, /) -> None:
        await self._inner.write(property_, value)

    async def _call(self, method: str, property_: Any, value: Any, /) -> None:
        await self._inner.call(method, property_, value)

    async def _subscribe(self, properties: Any, push: Any, /) -> Any:
        return await self._inner.subscribe(properties, push)
