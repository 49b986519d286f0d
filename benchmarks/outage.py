"""What a cut costs: 100 values changed while cloudcore is away, and kill -9 of each process of the path in turn.

Times count from the moment the process is started again until the API shows the last value of every register.
"""

from __future__ import annotations

import time

from benchmarks.figures import figure
from benchmarks.fleet import lost
from benchmarks.modbus_fleet import running_fleet
from kubetwin.demo.plan import NODE
from tests.e2e.harness import running_demo, wait_for

UNITS = 10
REGISTERS = 10
PROCESSES = ("apiserver", "cloudcore", "edgecore", "mapper-modbus")


def run(seconds: float) -> None:  # noqa: ARG001 - as long as it takes
    with running_demo() as demo, running_fleet(UNITS, REGISTERS) as fleet:
        demo.kubectl("delete", "devices", "--all")
        demo.kubectl("apply", "-f", "-", stdin=fleet.manifests(NODE))
        wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what="every device reports")

        demo.kill("cloudcore")
        for unit in range(1, UNITS + 1):
            fleet.write(unit, [1000 + unit * REGISTERS + i for i in range(REGISTERS)])
        time.sleep(3)  # the mapper collects, the edge stores
        start = time.monotonic()
        demo.restart("cloudcore")
        wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what="what changed meanwhile arrives")
        figure("outage.100_values_after_cloudcore_start", time.monotonic() - start, "s")

        for number, name in enumerate(PROCESSES):
            demo.kill(name)
            for unit in range(1, UNITS + 1):
                fleet.write(unit, [2000 + number * 1000 + unit * REGISTERS + i for i in range(REGISTERS)])
            start = time.monotonic()
            demo.restart(name)
            wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what=f"the path is right after {name} was killed")
            figure(f"outage.right_after_kill_of.{name}", time.monotonic() - start, "s")
