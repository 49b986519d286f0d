"""`python -m benchmarks [NAME...] [--seconds N]`: prints `name value unit`, one line a figure."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import platform
import subprocess
from typing import Final

BENCHMARKS: Final = {
    "memory": "RSS of every process, idle",
    "latency": "report to API and desired to register on an idle path",
    "fleet": "100 devices x 10 properties at 1 s: nothing lost, PATCHes per device, CPU, RSS",
    "mapper.modbus": "the Modbus driver against a hand-written pymodbus loop; requests for a dense map",
    "mapper.virtual": "1,000 virtual devices x 10 properties at 1 s in one mapper: CPU, RSS, overruns",
    "mapper.memory": "RSS of each way to run a mapper, with one Modbus device",
    "mapper.dead_unit": "one dead unit among 32 on a link: how late the others are",
    "mapper.sink": "an hour's cut of a sink at 100 values/s: nothing lost, live values not delayed",
    "twin.report": "ReportDeviceStatus against a bare gRPC server that parses and answers",
    "twin.path": "a mapper's report to a watch of the API on an idle path",
    "twin.fleet": "1,000 devices x 10 properties at 1 s, a tenth changing: lost, late, CPU",
    "twin.overload": "far more reports than can be taken: memory, newest values, recovery",
    "twin.memory": "RSS of edge core idle, with 1,000 and 5,000 devices, and over an accelerated day",
    "channel.nodes": "idle nodes with mutual TLS at one CloudCore: memory each, and all back after a restart",
    "channel.devices": "5,000 new devices of one node: how long until the edge knows them, and RSS",
    "channel.updates": "twin updates through the channel against plain PATCHes of the same API server",
    "channel.takeover": "a replica of CloudCore is killed: how long until its nodes are served by another",
    "channel.churn": "nodes and devices that come and go, for hours in minutes: RSS slope of CloudCore",
    "outage": "100 values changed while cloudcore is away; recovery from kill -9 of each process",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(f"{n}: {d}" for n, d in BENCHMARKS.items()))
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a load phase; the short form is 20")
    parser.add_argument("--nodes", type=int, help="nodes, where a benchmark has them")
    parser.add_argument("--devices", type=int, help="devices, where a benchmark has them")
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"no benchmark called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"
    print(f"# commit {commit.strip() or 'unknown'}, {machine}")
    for name in options.names or BENCHMARKS:
        run = importlib.import_module(f"benchmarks.{name}").run
        takes = inspect.signature(run).parameters
        sizes = {"nodes": options.nodes, "devices": options.devices}
        run(options.seconds, **{size: n for size, n in sizes.items() if n is not None and size in takes})


main()
