"""Registers a second of the Modbus driver against a hand-written pymodbus loop with perfect batching, in one run.

A dense map of 1,000 holding registers, one property each (INT; and FLOAT with a scale of 0.1), on a server of its own
process that does nothing but answer. The loop reads the same registers in 8 requests of 125 and does nothing with them;
the driver also decodes and names them. They take turns, a second each.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from statistics import median

from pymodbus.client import AsyncModbusTcpClient

from benchmarks.figures import figure
from dmi.types import DeviceId, ModelProperty
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.sdk import Property

__all__ = ["measure", "run"]

REGISTERS = 1000
BATCH = 125
TURN_S = 1.0


def run(seconds: float) -> None:
    for name, value, unit in asyncio.run(measure(seconds)):
        figure(name, value, unit)


async def measure(seconds: float) -> list[tuple[str, float, str]]:
    """(name, value, unit) of each figure."""
    async with fast_server() as (port, requests), contextlib.AsyncExitStack() as stack:
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=10)
        await client.connect()
        stack.callback(client.close)

        async def plain() -> None:
            for start in range(0, REGISTERS, BATCH):
                await client.read_holding_registers(start, count=BATCH, device_id=1)

        driver = ModbusDriver()
        config = driver.check_config(ModbusConfig("127.0.0.1", port=port, slave_id=1, timeout=10_000))
        link = await stack.enter_async_context(driver.connect(DeviceId("bench/dense"), config))
        model = ModelProperty("r", "INT")

        def dense(scale: str, model: ModelProperty) -> tuple[Property[ModbusVisitor], ...]:
            return tuple(
                Property(f"r{a}", driver.resolve(ModbusVisitor("HoldingRegister", a, 1, Decimal(scale)), model), model)
                for a in range(REGISTERS)
            )

        plain_map, scaled_map = dense("1", model), dense("0.1", ModelProperty("r", "FLOAT"))

        async def driven() -> None:
            results = await link.read_many(plain_map)
            if results["r999"] not in (999, 1000):
                raise AssertionError(f"register 999 holds 999 or 1000, read {results['r999']!r}")

        async def driven_scaled() -> None:
            results = await link.read_many(scaled_map)
            if results["r999"] not in (99.9, 100):
                raise AssertionError(f"a tenth of register 999 is 99.9 or 100, read {results['r999']!r}")

        before = await requests()
        await driven()
        asked = await requests() - before
        await plain()
        ratios, scaled, rates = [], [], []
        for _ in range(max(3, round(seconds / 3 / TURN_S))):
            by_hand, by_driver, by_driver_scaled = await _rate(plain), await _rate(driven), await _rate(driven_scaled)
            ratios.append(by_driver / by_hand)
            scaled.append(by_driver_scaled / by_hand)
            rates.append((by_driver, by_hand))
    return [
        ("mapper.modbus.driver", median(r[0] for r in rates), "registers/s"),
        ("mapper.modbus.pymodbus_loop", median(r[1] for r in rates), "registers/s"),
        ("mapper.modbus.ratio", median(ratios), "driver/loop"),
        ("mapper.modbus.ratio_scaled", median(scaled), "driver/loop"),
        ("mapper.modbus.requests_per_1000_properties", asked, "requests"),
    ]


async def _rate(read_all: Callable[[], Awaitable[None]]) -> float:
    passes, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < TURN_S:
        await read_all()
        passes += 1
    return passes * REGISTERS / elapsed


@contextlib.asynccontextmanager
async def fast_server() -> AsyncIterator[tuple[int, Callable[[], Awaitable[int]]]]:
    """The server's port, and how many requests it has answered so far."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.mapper.modbus", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None  # PIPE
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())

        async def requests() -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            return int(await process.stdout.readline())

        yield port, requests
    finally:
        process.stdin.close()
        await process.wait()


class _Server(asyncio.Protocol):
    """Answers function 3; register n holds n in every other reply, and n + 1 in the others, so that all change."""

    answered = 0
    _everything = struct.pack(f">{REGISTERS + 1}H", *range(REGISTERS + 1))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        number, _, _, unit, _, start, count = struct.unpack(">HHHBBHH", data[:12])
        _Server.answered += 1
        start += _Server.answered // (REGISTERS // BATCH) % 2
        header = struct.pack(">HHHBBB", number, 0, 3 + 2 * count, unit, 3, 2 * count)
        self._transport.write(header + self._everything[2 * start : 2 * (start + count)])


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()

    def asked() -> None:
        if not sys.stdin.buffer.readline():
            ended.set()
            return
        print(_Server.answered, flush=True)

    loop.add_reader(sys.stdin.fileno(), asked)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    asyncio.run(_serve())
