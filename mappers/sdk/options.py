"""What a mapper process is to run: its configuration, and where the drivers are.

Finding that out takes YAML, the command line and the metadata of installed packages, some 6 MB that a process which
runs for years need not keep. So the process that reads them hands over to a fresh one, under the same id: the options
go as JSON through an unnamed file, since a command line would show them to every user of the machine.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Never

import msgspec
from msgspec import Struct

from dmi.errors import ConfigError
from mappers.sdk.config import MapperConfig, load_config
from mappers.sdk.declaration import check_driver
from mappers.sdk.driver import AnyDriver, Driver

__all__ = [
    "DRIVERS",
    "DriverRef",
    "Options",
    "become_mapper",
    "find_driver",
    "find_drivers",
    "load_driver",
    "read_options",
]

DRIVERS: Final = "kubetwin.drivers"
"""Entry-point group in which drivers are found, by protocol name."""


class DriverRef(Struct, frozen=True):
    """An installed driver that is not loaded yet."""

    protocol: str
    place: str
    """`module:Class`."""


class Options(Struct, frozen=True):
    """All that a mapper process has to know."""

    config: MapperConfig
    drivers: tuple[DriverRef, ...]


def read_options(protocols: Sequence[str], file: Path) -> Options:
    """What the command line and the file say; no protocol named: the file's.

    Raises:
        ConfigError: The file cannot be used, no driver of that name is installed, or one is named twice.
    """
    config = load_config(file)
    names = tuple(protocols) or ((config.common.protocol,) if config.common.protocol else ())
    if not names:
        raise ConfigError(f"{file}: common.protocol", "is empty, and no protocol is named on the command line")
    return Options(config, find_drivers(names))


def find_drivers(protocols: Sequence[str]) -> tuple[DriverRef, ...]:
    """Where the installed drivers of these names are; none is loaded.

    Raises:
        ConfigError: One is not installed, or named twice.
    """
    from importlib.metadata import entry_points  # 3 MB

    installed = {entry.name: entry.value for entry in entry_points(group=DRIVERS)}
    for index, protocol in enumerate(protocols):
        if protocol not in installed:
            there = ", ".join(sorted(installed)) or "none"
            raise ConfigError("protocol", f"no driver {protocol!r} is installed; there is {there}")
        if protocol in protocols[:index]:
            raise ConfigError("protocol", f"{protocol!r} is named twice")
    return tuple(DriverRef(protocol, installed[protocol]) for protocol in protocols)


def load_driver(ref: DriverRef) -> AnyDriver:
    """
    Raises:
        ConfigError: It cannot be loaded or made, is not a `Driver`, or takes keys that are the runtime's.
    """
    module, _, name = ref.place.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            "protocol", f"driver {ref.protocol!r} cannot be loaded: {error}. Install kubetwin[{ref.protocol}]"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError("protocol", f"driver {ref.protocol!r} cannot be loaded: {error!r}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Driver)):
        raise ConfigError("protocol", f"driver {ref.protocol!r} ({ref.place}) is not a Driver class")
    try:
        driver: AnyDriver = loaded()
        check_driver(driver)
    except ConfigError as error:
        raise ConfigError("protocol", f"driver {ref.protocol!r} cannot be used: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError("protocol", f"driver {ref.protocol!r} cannot be made: {error!r}") from error
    return driver


def find_driver(protocol: str) -> AnyDriver:
    """The installed driver of that name.

    Raises:
        ConfigError: There is none, it cannot be loaded, or it is not a `Driver`.
    """
    return load_driver(find_drivers([protocol])[0])


def become_mapper(options: Options) -> Never:
    """Replace this process by one that runs the mappers and has nothing else in memory. Process id, environment and
    standard streams stay.
    """
    descriptor = os.memfd_create("mapper options", 0)  # stays open across exec
    with open(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.json.encode(options))
    os.lseek(descriptor, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: what lies in the working directory is not ours to import, unless we came from there ourselves.
    # What was typed follows for whoever looks at the process: it says which mapper this is.
    command = [sys.executable, "-P", "-m", "mappers.sdk", str(descriptor), *sys.argv[1:]]
    environment = {
        "MALLOC_ARENA_MAX": "1",  # gRPC's threads do little; a heap for each of them costs 0.4 MB
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    os.execve(command[0], command, environment)  # noqa: S606  # ourselves
