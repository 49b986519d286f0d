"""One dead unit among 32 on a link: how late the others' cycles are, before and after it dies, and how often.

The Modbus driver reads 32 units of one Modbus TCP gateway once every CYCLE_MS, through the shared line, with a
timeout of TIMEOUT_MS. Lateness of a read is how much longer after the unit's one before it ended than a cycle.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import pairwise

from benchmarks.figures import figure, percentile
from dmi.types import DeviceId, ModelProperty
from mappers.drivers.modbus import ModbusConfig, ModbusDriver, ModbusVisitor
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk import DeviceError, Property

__all__ = ["measure", "run"]

UNITS = 32
DEAD = 17
CYCLE_MS = 200
TIMEOUT_MS = 1000


def run(seconds: float) -> None:
    for name, value, unit in asyncio.run(measure(seconds)):
        figure(name, value, unit)


async def measure(seconds: float) -> list[tuple[str, float, str]]:
    """(name, value, unit) of each figure."""
    ends: dict[int, list[float]] = defaultdict(list)
    driver, model, loop = ModbusDriver(), ModelProperty("r", "INT"), asyncio.get_running_loop()
    properties = tuple(
        Property(f"r{a}", driver.resolve(ModbusVisitor("HoldingRegister", a), model), model) for a in range(10)
    )

    async def poll(unit: int, port: int) -> None:
        """What the runtime does, without reports: a cycle on a fixed grid, dialling again when the link ends."""
        config = driver.check_config(ModbusConfig("127.0.0.1", port=port, slave_id=unit, timeout=TIMEOUT_MS))
        due = loop.time() + unit * CYCLE_MS / 1000 / UNITS
        while True:
            try:
                async with driver.connect(DeviceId(f"bench/unit-{unit}"), config) as link:
                    while True:
                        await asyncio.sleep(due - loop.time())
                        results = await link.read_many(properties)
                        if not isinstance(results["r0"], DeviceError):
                            ends[unit].append(loop.time())
                        while due <= loop.time():
                            due += CYCLE_MS / 1000
            except DeviceError:
                await asyncio.sleep(0.5)

    images = {unit: Image(holding_registers=dict.fromkeys(range(10), unit)) for unit in range(1, UNITS + 1)}
    async with Simulator(units=images) as gateway:
        polls = [asyncio.create_task(poll(unit, gateway.port), name=f"unit {unit}") for unit in images]
        await asyncio.sleep(seconds / 2)
        died = loop.time()
        gateway.faults.silent_units = {DEAD}
        await asyncio.sleep(seconds / 2)
        probes = sum(1 for r in gateway.log if r.unit == DEAD)
        gateway.faults.clear()
        back_by = loop.time() + 40
        alive = len(ends[DEAD])
        while len(ends[DEAD]) == alive and loop.time() < back_by:  # noqa: ASYNC110  # a figure, not a test
            await asyncio.sleep(0.1)
        back = loop.time()
        for task in polls:
            task.cancel()
        await asyncio.wait(polls)
    before, after = _lateness(ends, 0.0, died), _lateness(ends, died, back)
    half_timeout_ms = TIMEOUT_MS / 2
    return [
        ("mapper.dead_unit.late_before.p99", percentile(before, 0.99), "ms"),
        ("mapper.dead_unit.late_after.p99", percentile(after, 0.99), "ms"),
        ("mapper.dead_unit.late_after.max", max(after), "ms"),
        ("mapper.dead_unit.late_after.max_in_timeouts", max(after) / TIMEOUT_MS, "timeouts"),
        (
            "mapper.dead_unit.most_such_in_one_unit",
            max(
                sum(late > half_timeout_ms for late in _lateness({u: e}, died, back))
                for u, e in ends.items()
                if u != DEAD
            ),
            "cycles",
        ),
        ("mapper.dead_unit.requests_to_the_dead_unit", probes, "requests"),
        ("mapper.dead_unit.back_after", back - (back_by - 40), "s"),
    ]


def _lateness(ends: dict[int, list[float]], start: float, end: float) -> list[float]:
    """Milliseconds, of each read that ended in that time, of the living units."""
    return [
        max(0.0, (b - a) * 1000 - CYCLE_MS)
        for unit, times in ends.items()
        if unit != DEAD
        for a, b in pairwise(times)
        if start < b <= end
    ]
