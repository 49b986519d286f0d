"""`kubetwin mapper run PROTOCOL… --config F`: finds the drivers, runs a mapper for each, stops on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import msgspec

from dmi.client import MapperInfo
from dmi.errors import ConfigError
from mappers.sdk.config import MapperConfig, load_config
from mappers.sdk.driver import AnyDriver, Driver
from mappers.sdk.mapper import run_mapper

__all__ = ["find_driver", "infos", "run", "serve"]

DRIVERS: Final = "kubetwin.drivers"
"""Entry-point group in which drivers are found, by protocol name."""


def run(protocols: Sequence[str], config: Path) -> None:
    """Run a mapper for each protocol in this process until SIGTERM or SIGINT; then end within 3 s.

    Raises:
        ConfigError: The config file cannot be used, or no driver of that name is installed.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_config(config)
    names = tuple(protocols) or ((settings.common.protocol,) if settings.common.protocol else ())
    if not names:
        raise ConfigError(f"{config}: common.protocol", "is empty, and no protocol is named on the command line")
    drivers = [find_driver(name) for name in names]
    try:
        asyncio.run(serve(drivers, infos(drivers, settings), Path(settings.common.edgecore_sock)))
    except BaseExceptionGroup as group:
        wrong, other = group.split(ConfigError)
        if wrong is None or other is not None:
            raise
        raise _first(wrong) from group


def _first(error: BaseException) -> BaseException:
    """The first exception in a tree of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def find_driver(protocol: str) -> AnyDriver:
    """The installed driver of that name.

    Raises:
        ConfigError: There is none, it cannot be loaded, or it is not a `Driver`.
    """
    found = {e.name: e for e in entry_points(group=DRIVERS)}
    if protocol not in found:
        raise ConfigError(
            "protocol", f"no driver {protocol!r} is installed; there is {', '.join(sorted(found)) or 'none'}"
        )
    try:
        loaded = found[protocol].load()
    except ImportError as error:
        raise ConfigError(
            "protocol", f"driver {protocol!r} cannot be loaded: {error}. Install kubetwin[{protocol}]"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Driver)):
        raise ConfigError("protocol", f"driver {protocol!r} ({found[protocol].value}) is not a Driver class")
    driver: AnyDriver = loaded()
    return driver


def infos(drivers: Sequence[AnyDriver], config: MapperConfig) -> list[MapperInfo]:
    """How each mapper introduces itself. A single one takes name, protocol and socket as configured; several have
    sockets `<protocol>.sock` next to the configured one and names that end with their protocol."""
    common, socket = config.common, Path(config.grpc_server.socket_path).absolute()
    single = MapperInfo(
        name=common.name,
        protocol=common.protocol or drivers[0].protocol,
        address=str(socket),
        version=common.version,
        api_version=common.api_version,
    )
    if len(drivers) == 1:
        return [single]
    return [
        msgspec.structs.replace(
            single,
            name=f"{common.name}-{driver.protocol}",
            protocol=driver.protocol,
            address=str(socket.with_name(f"{driver.protocol}.sock")),
        )
        for driver in drivers
    ]


async def serve(drivers: Sequence[AnyDriver], mappers: Sequence[MapperInfo], edgecore_socket: Path) -> None:
    """Run the mappers until SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            for driver, info in zip(drivers, mappers, strict=True):
                tasks.create_task(run_mapper(driver, info, edgecore_socket, stop), name=f"mapper {info.name}")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
