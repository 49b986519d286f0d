"""`kubetwin mapper drivers`: which drivers are installed, where each comes from, and what it can do."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from msgspec import Struct

from dmi.errors import ConfigError
from mappers.sdk.driver import AnyDriver, Driver
from mappers.sdk.options import DRIVERS, find_driver

__all__ = ["Installed", "abilities", "installed"]

_METHODS: Final = {"read": "read_many", "subscribe": "subscribe", "write": "write", "call": "call"}


class Installed(Struct, frozen=True):
    """One installed driver. `problem` says why it cannot be loaded, if it cannot."""

    protocol: str
    distribution: str
    can: tuple[str, ...] = ()
    problem: str = ""


def installed() -> list[Installed]:
    """Every driver that `kubetwin mapper run` would find, by protocol."""
    rows = []
    for entry in sorted(entry_points(group=DRIVERS)):
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        try:
            rows.append(Installed(entry.name, distribution, abilities(find_driver(entry.name))))
        except ConfigError as error:
            rows.append(Installed(entry.name, distribution, problem=error.problem))
    return rows


def abilities(driver: AnyDriver) -> tuple[str, ...]:
    """Read from the type of link that `connect` is annotated with; a link without annotation shows none."""
    links = _link_types(driver)
    can = [word for word, method in _METHODS.items() if any(hasattr(link, method) for link in links)]
    if type(driver).discover is not Driver.discover:
        can.append("discover")
    return tuple(can)


def _link_types(driver: AnyDriver) -> Sequence[Any]:
    """`AsyncIterator[A | B]`, or whatever `connect` says of that kind → A, B."""
    try:
        hints = typing.get_type_hints(type(driver).connect)
    except (NameError, TypeError):
        return ()
    links = typing.get_args(hints.get("return"))
    unions = (typing.Union, types.UnionType)
    return [
        part for link in links for part in (typing.get_args(link) if typing.get_origin(link) in unions else (link,))
    ]
