"""Turning a running simulator's switches: one command a line, one line in reply, on a unix socket of its user's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast, get_args

import msgspec

from dmi.errors import ConfigError
from mappers.drivers.modbus.settings import BITS, MAX_BITS, Register
from mappers.drivers.modbus.simulator.faults import parse_faults
from mappers.drivers.modbus.simulator.memory import ANY_UNIT
from mappers.drivers.modbus.simulator.simulator import Simulator

__all__ = ["COMMANDS", "control", "obey", "send"]

COMMANDS: Final = (
    "fault delay=500ms,... | clear | get KIND ADDRESS [COUNT [UNIT]] | set KIND ADDRESS VALUE,... [UNIT] | stats"
)
_LINE: Final = 8192
_REPLY_S: Final = 10.0


async def obey(simulator: Simulator, line: str) -> str:
    """Do what a command says; the reply, without its end of line, begins with `ok` or `error`."""
    match line.split():
        case ["fault", *texts]:
            try:
                parse_faults(texts, simulator.faults)
            except ConfigError as error:
                return f"error {error}"
            return "ok"
        case ["clear"]:
            simulator.faults.clear()
            return "ok"
        case ["stats"]:
            return f"ok {_stats(simulator)}"
        case ["get", kind, *numbers] if 1 <= len(numbers) <= 3:
            return await _get(simulator, kind, numbers)
        case ["set", kind, address, values, *unit] if len(unit) <= 1:
            return await _set(simulator, kind, address, values, unit)
        case _:
            return f"error there are: {COMMANDS}"


@asynccontextmanager
async def control(simulator: Simulator, path: Path) -> AsyncIterator[None]:
    """Listen on `path` (mode 0600) while the block runs. A socket that a dead process left there is taken over.

    Raises:
        OSError: Somebody else listens there, or it cannot be made.
    """
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        serving.add(task)
        try:
            while line := await reader.readline():
                writer.write((await obey(simulator, line.decode(errors="replace")) + "\n").encode())
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # gone; a line longer than any command; or the end of the simulator, which is this task's owner
        finally:
            serving.discard(task)
            writer.close()

    _take_over(path)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path, limit=_LINE)
    except OSError as error:
        raise OSError(f"control: cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
        tasks = list(serving)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def send(path: Path, command: str) -> str:
    """Send one command to a running simulator; its reply.

    Raises:
        OSError: Nobody listens there, or there is no reply.
    """
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(_REPLY_S)
        end.connect(str(path))
        end.sendall(command.replace("\n", " ").encode() + b"\n")
        with end.makefile() as replies:
            return replies.readline().rstrip("\n")


def _take_over(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(f"{path} is there, and is no socket")
        with socket.socket(socket.AF_UNIX) as end:
            try:
                end.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(f"another process listens on {path}")


async def _get(simulator: Simulator, kind: str, numbers: Sequence[str]) -> str:
    register, defaults = _register(kind), ("0", "1", str(ANY_UNIT))
    try:
        address, count, unit = (int(n) for n in (*numbers, *defaults[len(numbers) :]))
        if register is None or not 1 <= count <= MAX_BITS:
            raise ValueError
        cells = await simulator.read(register, address, count, unit=unit)
    except (ValueError, KeyError):
        return f"error there is no {kind} {' '.join(numbers)}"
    return "ok " + ",".join(str(c) for c in cells)


async def _set(simulator: Simulator, kind: str, address: str, values: str, unit: Sequence[str]) -> str:
    register = _register(kind)
    try:
        cells = [int(v) for v in values.split(",")]
        most = 1 if register in BITS else 0xFFFF
        if register is None or not all(0 <= c <= most for c in cells):
            raise ValueError
        await simulator.write(register, int(address), cells, unit=int(unit[0]) if unit else ANY_UNIT)
    except (ValueError, KeyError):
        return f"error cannot set {kind} {address} to {values}"
    return "ok"


def _register(text: str) -> Register | None:
    kinds: dict[str, Register] = {str(kind).lower(): kind for kind in get_args(Register)}
    return kinds.get(text.lower())


def _stats(simulator: Simulator) -> str:
    requests = [
        {"unit": unit, "function": function, "requests": count}
        for (unit, function), count in sorted(simulator.requests.items())
    ]
    return msgspec.json.encode({"requests": requests, "faults": dict(simulator.faults.seen)}).decode()
