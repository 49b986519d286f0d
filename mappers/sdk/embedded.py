"""Mappers inside an edge core, which finds this module by the entry-point group `kubetwin.embedded`.

`prepare` reads `modules.mappers` of `edgecore.yaml`, in a process that ends; `run` runs what it returned. Sections
`common`, `http` and `data` are those of a mapper's `config.yaml`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from dmi.errors import ConfigError
from dmi.ports import LOCAL, MapperInfo, MapperSide
from mappers.sdk.app import run_mappers
from mappers.sdk.config import MapperConfig
from mappers.sdk.options import Options, find_drivers, load_driver

__all__ = ["prepare", "run"]

logger = logging.getLogger(__name__)

NAME: Final = "edgecore"


def prepare(settings: Mapping[str, Any], *, where: str, directory: Path) -> str:
    """Check the settings and load the drivers, both for this process only; the result is for `run`.

    Args:
        where: Begins the path of what is wrong.
        directory: Where samples are kept that wait for a sink, unless the settings say so.

    Raises:
        ConfigError: The settings cannot work, or a driver is not installed or cannot be loaded.
    """
    from dmi.settings import read_settings, unknown_keys

    protocols: Sequence[str] = settings["protocols"]
    if not protocols:
        raise ConfigError(f"{where}.protocols", "is empty: name the drivers to run, such as [modbus]")
    sections = {
        "grpc_server": {"socket_path": ""},
        "common": {"name": NAME, **settings.get("common", {})},
        "http": settings.get("http", {}),
        "data": {"dir": str(directory / "mappers-data"), **settings.get("data", {})},
    }
    with _below(where):
        config = read_settings(sections, MapperConfig, strict=False)
        if config.http.enabled:
            _check_http(config)
    unused = [key for key in ("protocol", "edgecore_sock") if key in sections["common"]]
    for key in [*unknown_keys(sections, MapperConfig), *(f"common.{key}" for key in unused)]:
        logger.warning("%s.%s: no such setting, it is not used", where, key)
    try:
        options = Options(config, find_drivers(protocols))
        for ref in options.drivers:
            load_driver(ref)
    except ConfigError as error:
        raise ConfigError(f"{where}.protocols", error.problem) from error
    return msgspec.json.encode(options).decode()


def _check_http(config: MapperConfig) -> None:
    """Refuse now what the HTTP API would refuse when it starts."""
    from mappers.sdk.web.access import Access, TlsFiles

    Access(config.common.address, config.http)
    TlsFiles(config.http)


@contextmanager
def _below(where: str) -> Iterator[None]:
    """Complete the path of a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}.{error.path}" if error.path else where, error.problem) from error


async def run(prepared: str, side: MapperSide, stop: asyncio.Event, *, failures: int = 0) -> None:
    """Run the mappers until `stop` is set. `failures`: how often that ended by itself before; `/metrics` counts it.

    Raises:
        ConfigError: A driver cannot be loaded, or a setting cannot work; also in an exception group.
    """
    options = msgspec.json.decode(prepared, type=Options)
    common = options.config.common
    drivers = [load_driver(ref) for ref in options.drivers]
    # Each name ends with the protocol, also a single one: it decides which devices are a mapper's.
    mappers = [
        MapperInfo(
            name=(name := f"{common.name}-{driver.protocol}"),
            protocol=driver.protocol,
            address=f"{LOCAL}{name}",
            version=common.version,
            api_version=common.api_version,
        )
        for driver in drivers
    ]
    await run_mappers(drivers, mappers, options.config, side, stop, failures=failures)
