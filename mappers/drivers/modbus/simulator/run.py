"""`kubetwin simulate modbus`: the simulator as a process."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec import Struct

from dmi.errors import ConfigError
from mappers.drivers.modbus.settings import SERIAL, parse_mode
from mappers.drivers.modbus.simulator.control import control
from mappers.drivers.modbus.simulator.faults import parse_faults
from mappers.drivers.modbus.simulator.models import load_manifests, scene_of_manifests
from mappers.drivers.modbus.simulator.registermap import load_map, scene_of_map
from mappers.drivers.modbus.simulator.scene import Scene, boiler_scene
from mappers.drivers.modbus.simulator.servers import SerialPort
from mappers.drivers.modbus.simulator.simulator import Simulator

__all__ = ["Options", "run"]


class Options(Struct, frozen=True):
    """What to simulate, and where. Without `registers` and `models`: the boiler of `examples/modbus`."""

    mode: str = "tcp"
    """`tcp`, `tls`, `udp`, `rtu`, `rtuovertcp` or `ascii`, in any case."""
    host: str = "127.0.0.1"
    port: int = 1502
    """0: a free one."""
    serial: str = ""
    """A serial port for RTU and ASCII; empty: a pseudo-terminal."""
    baud_rate: int = 9600
    units: tuple[int, ...] = ()
    """Units that hold the registers; none: every unit."""
    registers: Path | None = None
    """A register map."""
    models: tuple[Path, ...] = ()
    """Manifests of a DeviceModel, and of Devices."""
    seed: int = 1
    faults: tuple[str, ...] = ()
    control: Path | None = None
    """A unix socket for commands while it runs."""
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    """For TLS; with a CA, clients must show a certificate that it signed."""


def run(options: Options) -> None:
    """Simulate until SIGTERM or SIGINT. Prints where it listens, on one line.

    Raises:
        ConfigError: An option or a file is wrong.
        OSError: It cannot listen there.
    """
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what clients get wrong is theirs to see
    asyncio.run(_serve(options, _scene(options)))


async def _serve(options: Options, scene: Scene) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    mode = parse_mode(options.mode)
    if options.serial and mode not in SERIAL:
        raise ConfigError("serial", f"mode {options.mode} has no serial port")
    simulator = Simulator(
        options.host,
        options.port,
        seed=options.seed,
        mode=mode,
        serial=SerialPort(options.serial, baud_rate=options.baud_rate) if options.serial else None,
        tls=_tls(options) if mode == "TLS" else None,
        faults=parse_faults(options.faults),
        scene=scene,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(simulator)
        if options.control is not None:
            await stack.enter_async_context(control(simulator, options.control))
        sys.stdout.write(f"modbus {mode.lower()} listening on {simulator.address}\n")
        sys.stdout.flush()
        await stop.wait()


def _scene(options: Options) -> Scene:
    if options.registers is not None and options.models:
        raise ConfigError("registers", "give a register map or a model, not both")
    if options.registers is not None:
        try:
            return scene_of_map(load_map(options.registers), units=options.units, seed=options.seed)
        except ConfigError as error:
            if error.path.startswith(str(options.registers)):
                raise
            raise ConfigError(f"{options.registers}: {error.path}", error.problem) from None
    if options.models:
        return scene_of_manifests(*load_manifests(options.models), units=options.units, seed=options.seed)
    return boiler_scene(options.seed, units=options.units)


def _tls(options: Options) -> ssl.SSLContext:
    if options.cert is None or options.key is None:
        raise ConfigError("cert" if options.cert is None else "key", "is missing: TLS needs a certificate and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.cert, options.key)
        if options.ca is not None:
            context.load_verify_locations(options.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("cert", f"cannot be loaded: {error}") from error
    return context
