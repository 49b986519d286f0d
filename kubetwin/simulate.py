"""`kubetwin simulate`: devices to try against, no hardware."""

from __future__ import annotations

import re
from pathlib import Path

import click

from kubetwin.needs import needs

__all__ = ["simulate"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_PATH = click.Path(path_type=Path)
_MODES = ("tcp", "tls", "udp", "rtu", "rtuovertcp", "ascii")


@click.group()
def simulate() -> None:
    """A device to try against, no hardware."""


def _units(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    units: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        bounds = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if not first <= last <= 255:
            raise click.BadParameter("write units from 0 to 255, such as 1,2,10-20")
        units += range(first, last + 1)
    return tuple(dict.fromkeys(units))


@simulate.command("modbus")
@click.option("--mode", type=click.Choice(_MODES, case_sensitive=False), default="tcp", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=1502, show_default=True, help="0: a free one.")
@click.option("--serial", default="", metavar="PATH", help="Serial port of rtu and ascii. [default: as --pty]")
@click.option("--pty", is_flag=True, help="rtu and ascii: make a pseudo-terminal, and print its path.")
@click.option("--baud", type=int, default=9600, show_default=True)
@click.option("--units", default="", callback=_units, metavar="1,2,10-20", help="[default: every unit]")
@click.option("--registers", type=_FILE, help="A register map; see docs/simulate-modbus.md.")
@click.option("--model", "models", type=_FILE, multiple=True, help="Manifests of a DeviceModel and Devices of it.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the values' wandering and of faults.")
@click.option("--fault", "faults", multiple=True, help="Such as delay=500ms,drop=0.1,silent-unit=3,exception=2@40.")
@click.option("--control", type=_PATH, help="A unix socket for `kubetwin simulate control`.")
@click.option("--cert", type=_FILE, help="tls: the certificate,")
@click.option("--key", type=_FILE, help="its key,")
@click.option("--ca", type=_FILE, help="and the CA of clients' certificates, which are then asked for.")
def simulate_modbus(
    mode: str,
    host: str,
    port: int,
    serial: str,
    pty: bool,
    baud: int,
    units: tuple[int, ...],
    registers: Path | None,
    models: tuple[Path, ...],
    seed: int,
    faults: tuple[str, ...],
    control: Path | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
) -> None:
    """A Modbus device; prints where it listens. Without --registers and --model it is a small boiler."""
    serial_mode = mode in ("rtu", "ascii")
    if (serial or pty) and not serial_mode:
        raise click.UsageError(f"--serial and --pty are for rtu and ascii, not for {mode}")
    if serial and pty:
        raise click.UsageError("--serial or --pty, not both")
    simulator = needs("mappers.drivers.modbus.simulator", "modbus")
    simulator.run(
        simulator.Options(
            mode=mode, host=host, port=port, serial=serial, baud_rate=baud, units=units, registers=registers,
            models=models, seed=seed, faults=faults, control=control, cert=cert, key=key, ca=ca,
        )
    )  # fmt: skip


@simulate.command("control")
@click.argument("path", type=_PATH, metavar="SOCKET")
@click.argument("command", nargs=-1, required=True)
def simulate_control(path: Path, command: tuple[str, ...]) -> None:
    """Turn a running simulator's switches.

    \b
    fault delay=500ms,drop=0.1   faults on, as of --fault
    clear                        faults off
    get HoldingRegister 0 2 1    raw registers: kind, address, count, unit
    set HoldingRegister 0 5,6 1  kind, address, values, unit
    stats                        requests by unit and function, faults that struck
    """
    try:
        reply: str = needs("mappers.drivers.modbus.simulator.control", "modbus").send(path, " ".join(command))
    except OSError as error:
        raise click.ClickException(f"{path}: no simulator listens there: {error.strerror or error}") from error
    if not reply.startswith("ok"):
        raise click.ClickException(reply.removeprefix("error ") or "the simulator closed the connection")
    click.echo(reply.removeprefix("ok").strip() or "ok")
