"""A hundred devices for a minute, and kills in every order: what takes minutes."""

import random
import time

import pytest

from benchmarks.fleet import PatchCounter, lost
from benchmarks.modbus_fleet import running_fleet
from kubetwin.demo.plan import NODE, PROCESSES
from tests.e2e.harness import Demo, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def test_100_devices_of_10_properties_for_a_minute_lose_nothing(demo: Demo) -> None:
    units, registers, seconds = 100, 10, 60.0
    with running_fleet(units, registers) as fleet:
        demo.kubectl("apply", "-f", "-", stdin=fleet.manifests(NODE))
        wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what="every device reports")
        with PatchCounter(demo) as patches:
            start = time.monotonic()
            fleet.change_every_second(seconds)
            elapsed = time.monotonic() - start
        wait_for(lambda: lost(demo, fleet) == 0, within_s=5, what="the last value of each of 1000 properties")
        assert sum(patches.writes.values()) > units * 30  # the counter saw what it counts
        for device, writes in patches.writes.items():
            assert writes <= elapsed + 3, f"{device} was written {writes} times in {elapsed:.0f} s"
        demo.kubectl("delete", "--raw", fleet.collection)


@pytest.mark.parametrize("seed", range(4))
def test_kills_in_any_order_while_values_change(demo: Demo, seed: int) -> None:
    order = random.Random(seed)
    names = list(PROCESSES)
    with running_fleet(3, 5) as fleet:
        demo.kubectl("apply", "-f", "-", stdin=fleet.manifests(NODE))
        wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what="the fleet reports")
        order.shuffle(names)
        down: list[str] = []
        for name in names:
            demo.kill(name)
            for unit in fleet.wanted:
                fleet.write(unit, [order.randrange(65536) for _ in range(5)])
            if order.random() < 0.5:  # one after the other, or together with the next
                demo.restart(name)
            else:
                down.append(name)
        order.shuffle(down)
        for name in down:
            demo.restart(name)
        wait_for(lambda: lost(demo, fleet) == 0, within_s=10, what=f"every value is right, seed {seed}, order {names}")
        before = int(demo.reported("boiler-1", "cycles"))
        wait_for(
            lambda: demo.quality("boiler-1", "cycles") == "good" and int(demo.reported("boiler-1", "cycles")) != before,
            within_s=10, what="the example's device is live",
        )  # fmt: skip
