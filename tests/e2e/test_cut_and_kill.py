"""No cut, crash or restart of any process loses a last value."""

import contextlib
import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator

import pytest

from benchmarks.fleet import lost
from benchmarks.modbus_fleet import Fleet, running_fleet
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

UNITS, REGISTERS = 10, 10
values = itertools.count(1)


@pytest.fixture(scope="module")
def fleet(demo: Demo) -> Iterator[Fleet]:
    """Ten devices of ten registers beside the example, all reporting."""
    with running_fleet(UNITS, REGISTERS) as fleet:
        demo.kubectl("apply", "-f", "-", stdin=fleet.manifests(NODE))
        wait_for(lambda: lost(demo, fleet) == 0, within_s=30, what="the fleet reports")
        yield fleet


def change_every_register(fleet: Fleet) -> None:
    for unit in fleet.wanted:
        fleet.write(unit, [next(values) for _ in range(REGISTERS)])


def test_100_values_changed_while_the_cloud_is_away_arrive(demo: Demo, fleet: Fleet) -> None:
    demo.kill("cloudcore")
    change_every_register(fleet)
    assert lost(demo, fleet) == UNITS * REGISTERS
    demo.restart("cloudcore")
    wait_for(lambda: lost(demo, fleet) == 0, within_s=10, what="100 of 100 arrive")


def test_they_arrive_also_when_edge_and_mapper_died_before_the_cloud_came_back(demo: Demo, fleet: Fleet) -> None:
    demo.kill("cloudcore")
    change_every_register(fleet)
    wait_for(lambda: _stored(demo, fleet), within_s=10, what="the edge has stored what changed")
    demo.kill("mapper-modbus")
    demo.kill("edgecore")
    demo.restart("edgecore")
    demo.restart("cloudcore")
    wait_for(lambda: lost(demo, fleet) == 0, within_s=15, what="the stored values arrive without the mapper")
    demo.restart("mapper-modbus")


@pytest.mark.parametrize("name", ("apiserver", "cloudcore", "edgecore", "mapper-modbus"))
def test_after_kill_9_of_one_process_every_last_value_is_right_within_ten_seconds(
    demo: Demo, fleet: Fleet, name: str
) -> None:
    demo.kill(name)
    change_every_register(fleet)
    demo.restart(name)
    wait_for(lambda: lost(demo, fleet) == 0, within_s=10, what=f"every value is right after {name} was killed")


def test_after_kill_9_of_the_device_its_values_come_back(demo: Demo) -> None:
    demo.kill("simulator")
    demo.restart("simulator")
    with demo.modbus() as modbus:
        wait_for(
            lambda: modbus.read_holding_registers(0, count=1, device_id=1).registers[0] == 600,
            within_s=10, what="what is desired is written to the new device",
        )  # fmt: skip
    before = demo.reported("boiler-1", "cycles")
    wait_for(
        lambda: demo.quality("boiler-1", "cycles") == "good" and demo.reported("boiler-1", "cycles") != before,
        within_s=10, what="its values are live again",
    )  # fmt: skip


def test_all_at_once(demo: Demo, fleet: Fleet) -> None:
    names = ("cloudcore", "mapper-modbus", "apiserver", "edgecore")
    for name in names:
        demo.kill(name)
    change_every_register(fleet)
    for name in reversed(names):
        demo.restart(name)
    wait_for(lambda: lost(demo, fleet) == 0, within_s=15, what="every value is right")


def _stored(demo: Demo, fleet: Fleet) -> bool:
    """Whether the edge's database has every value of the fleet. The running edge core holds the file, so this reads a
    copy of it and of its write-ahead log, which is what a restart would find.
    """
    with tempfile.TemporaryDirectory() as directory:
        for file in demo.directory.glob("edgecore.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, directory)
        with contextlib.closing(sqlite3.connect(f"{directory}/edgecore.db")) as database:
            rows = database.execute("SELECT device, property, reported FROM twin").fetchall()
    seen = {(device, property_): value for device, property_, value in rows}
    return all(
        seen.get((f"default/{fleet.name(unit)}", f"r{i}")) == str(value)
        for unit, registers in fleet.wanted.items()
        for i, value in enumerate(registers)
    )
