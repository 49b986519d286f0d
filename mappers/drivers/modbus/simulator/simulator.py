"""The simulator as a context: a device that answers while the block runs."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from mappers.drivers.modbus.plant import Image
from mappers.drivers.modbus.settings import Mode, Register
from mappers.drivers.modbus.simulator.device import Device, Request
from mappers.drivers.modbus.simulator.faults import Faults
from mappers.drivers.modbus.simulator.memory import ANY_UNIT, Memory
from mappers.drivers.modbus.simulator.scene import Scene, boiler_scene
from mappers.drivers.modbus.simulator.servers import SerialPort, Server, listen

__all__ = ["Simulator"]


class Simulator:
    """A device on `host`:`port`, or on a serial line, while the block runs.

    Args:
        units: Unit id → what it holds; such a device stands still until written to. Unit 0 stands in for every unit
            not given. None: the boiler, on every unit, moving once a second, the same way for the same `seed`.
        mode: How frames travel. RTU and ASCII without `serial` make a pseudo-terminal: `address` is its path.
        tls: For mode TLS: the server's context, with its certificate.
        faults: Switches that may be turned while it runs.
        scene: In place of `units`: what the units hold, and what moves it.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        units: Mapping[int, Image] | None = None,
        seed: int = 0,
        mode: Mode = "TCP",
        serial: SerialPort | None = None,
        tls: ssl.SSLContext | None = None,
        faults: Faults | None = None,
        scene: Scene | None = None,
    ) -> None:
        self.host = host
        self.port = port
        """0 before the block: any free one; inside, the real one. On a serial line always 0."""
        self.address = ""
        """Inside the block: `host:port`, or the path of the serial port or pseudo-terminal."""
        self.mode = mode
        self.faults = faults if faults is not None else Faults()
        if scene is None:
            scene = Scene(units) if units is not None else boiler_scene(seed)
        self._scene = scene
        self._serial = serial
        self._tls = tls
        self._memory = Memory(scene.units)
        self._device = Device(self._memory, self.faults, mode, seed)
        self._server: Server | None = None
        self._moving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._server = await listen(self._device, self.host, self.port, serial=self._serial, tls=self._tls)
        self.port, self.address = self._server.port, self._server.address
        if self._scene.motion is not None:
            self._moving = asyncio.create_task(self._move(), name="simulated plant")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.wait([self._moving])
        await self._device.close()
        if server is not None:
            await server.close()
        if self._moving is not None and not self._moving.cancelled():
            self._moving.result()  # the plant failed: say so

    @property
    def requests(self) -> Counter[tuple[int, int]]:
        """(unit, function code) → requests that arrived so far."""
        return self._device.requests

    @property
    def log(self) -> deque[Request]:
        """The last 10,000 requests, the newest last. May be cleared."""
        return self._device.log

    async def read(self, register: Register, address: int, count: int = 1, *, unit: int = ANY_UNIT) -> list[int]:
        """What the device holds, seen from inside. Bits come as 0 and 1.

        Raises:
            KeyError: There is no such unit, or no such address.
        """
        return self._memory.read(unit, register, address, count)

    async def write(self, register: Register, address: int, values: Sequence[int], *, unit: int = ANY_UNIT) -> None:
        """Change what the device holds, also where a client could not.

        Raises:
            KeyError: As of `read`; nothing was changed.
        """
        self._memory.write(unit, register, address, [int(v) for v in values])

    async def _move(self) -> None:
        motion = self._scene.motion
        assert motion is not None  # noqa: S101  # for mypy
        loop = asyncio.get_running_loop()
        begin = loop.time()
        moves = 0
        while True:
            moves += 1
            await asyncio.sleep(begin + moves * motion.every_s - loop.time())
            motion.move(self._memory, loop.time() - begin)
