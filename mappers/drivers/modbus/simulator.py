"""A Modbus TCP device without hardware: pymodbus' own server, with the boiler of `plant` or a fixed register image."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self, cast

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from mappers.drivers.modbus.plant import Boiler, Image, boiler_image
from mappers.drivers.modbus.settings import BITS, READ_CODES, Register

__all__ = ["Image", "Simulator", "run"]

ANY_UNIT: Final = 0
"""Unit 0 stands in for every unit that is not given."""


class Simulator:
    """A device on `host`:`port` while the block runs.

    Args:
        units: Unit id → what it holds; such a device stands still until written to. None: the boiler, on every unit,
            moving once a second, the same way for the same `seed`.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, units: Mapping[int, Image] | None = None, seed: int = 0
    ) -> None:
        self.host = host
        self.port = port
        """0 before the block: any free one; inside, the real one."""
        self._boiler = Boiler() if units is None else None
        self._units = units if units is not None else {ANY_UNIT: boiler_image(Boiler())}
        self._rng = random.Random(seed)  # noqa: S311  # a wandering temperature
        self._server: ModbusTcpServer | None = None
        self._moving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        devices = [_device(unit, image) for unit, image in self._units.items()]
        self._server = ModbusTcpServer(devices, address=(self.host, self.port))
        try:
            await self._server.serve_forever(background=True)
        except RuntimeError as error:  # what pymodbus makes of a port that is taken
            self._server = None
            raise OSError(f"cannot listen on {self.host}:{self.port}: {error}") from error
        self.port = cast("asyncio.Server", self._server.transport).sockets[0].getsockname()[1]
        if self._boiler is not None:
            self._moving = asyncio.create_task(self._move(self._boiler), name="boiler")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.wait([self._moving])
            if not self._moving.cancelled():
                self._moving.result()  # the plant failed: say so
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]  # pymodbus leaves it bare

    async def read(self, register: Register, address: int, count: int = 1, *, unit: int = ANY_UNIT) -> list[int]:
        """What the device holds, seen from inside. Bits come as 0 and 1."""
        return [int(v) for v in await self._running.async_getValues(unit, READ_CODES[register], address, count)]

    async def write(self, register: Register, address: int, values: Sequence[int], *, unit: int = ANY_UNIT) -> None:
        """Change what the device holds, also where a client could not."""
        cells = [bool(v) for v in values] if register in BITS else list(values)
        await self._running.async_setValues(unit, READ_CODES[register], address, cells)

    @property
    def _running(self) -> ModbusTcpServer:
        if self._server is None:
            raise RuntimeError("the simulator does not run: use it in an `async with` block")
        return self._server

    async def _move(self, boiler: Boiler) -> None:
        while True:
            await asyncio.sleep(1.0)
            set_point, pump = await self.read("HoldingRegister", 0), await self.read("CoilRegister", 0)
            boiler = boiler.step(set_point_c=set_point[0] / 10, pump=bool(pump[0]), rng=self._rng)
            await self.write("InputRegister", 0, boiler.input_registers())
            await self.write("DiscreteInputRegister", 0, [boiler.door_open])


def run(host: str = "127.0.0.1", port: int = 1502, *, seed: int = 0) -> None:
    """`kubetwin simulate modbus`: the boiler, until SIGTERM or SIGINT. Prints where it listens, on one line."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what clients get wrong is theirs to see
    asyncio.run(_serve(host, port, seed))


async def _serve(host: str, port: int, seed: int) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Simulator(host, port, seed=seed) as simulator:
        sys.stdout.write(f"modbus tcp listening on {simulator.host}:{simulator.port}\n")
        sys.stdout.flush()
        await stop.wait()


def _device(unit: int, image: Image) -> SimDevice:
    return SimDevice(
        id=unit,
        simdata=(
            _bits(image.coils),
            _bits(image.discrete_inputs),
            _registers(image.holding_registers),
            _registers(image.input_registers),
        ),
    )


def _bits(cells: Mapping[int, bool]) -> list[SimData]:
    """pymodbus wants each of the four blocks, so an empty one gets a bit at the far end."""
    return [SimData(start, values=[bool(v) for v in run], datatype=DataType.BITS) for start, run in _runs(cells)] or [
        SimData(65_535, values=[False], datatype=DataType.BITS)
    ]


def _registers(cells: Mapping[int, int]) -> list[SimData]:
    return [SimData(start, values=list(run), datatype=DataType.REGISTERS) for start, run in _runs(cells)] or [
        SimData(65_535, datatype=DataType.INVALID)
    ]


def _runs(cells: Mapping[int, int]) -> list[tuple[int, list[int]]]:
    """Address → value as runs of adjacent addresses."""
    runs: list[tuple[int, list[int]]] = []
    for address in sorted(cells):
        if runs and address == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(cells[address])
        else:
            runs.append((address, [cells[address]]))
    return runs
