"""100 devices of 10 registers, all changing every second, collected every second: what arrives, and what it costs.

Every register is written by a plain Modbus client; after the load the API must show the last value of each.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter

from benchmarks.figures import cpu_seconds, figure, rss_mib
from benchmarks.modbus_fleet import Fleet, running_fleet
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, running_demo, wait_for

UNITS = 100
REGISTERS = 10
PROCESSES = ("edgecore", "cloudcore", "mapper-modbus", "apiserver")


def run(seconds: float) -> None:
    with running_demo() as demo, running_fleet(UNITS, REGISTERS) as fleet:
        demo.kubectl("delete", "devices", "--all")
        demo.kubectl("apply", "-f", "-", stdin=fleet.manifests(NODE))
        wait_for(lambda: lost(demo, fleet) == 0, within_s=60, what="every device reports")
        with PatchCounter(demo) as patches:
            cpu = {name: cpu_seconds(demo.pid(name)) for name in PROCESSES}
            start = time.monotonic()
            written = fleet.change_every_second(seconds)
            elapsed = time.monotonic() - start
            for name in PROCESSES:
                used = cpu_seconds(demo.pid(name)) - cpu[name]
                figure(f"fleet.cpu.{name}", used / elapsed * 100, "percent_of_a_core")
                figure(f"fleet.rss.{name}", rss_mib(demo.pid(name)), "MiB")
            figure("fleet.writes_per_device_and_second.mean", sum(patches.writes.values()) / UNITS / elapsed, "1/s")
            figure("fleet.writes_per_device_and_second.max", max(patches.writes.values()) / elapsed, "1/s")
            figure("fleet.shortest_time_between_writes_of_a_device", patches.shortest_s, "s")
        while (wrong := lost(demo, fleet)) and time.monotonic() < written + 30:
            pass  # each look takes a kubectl's time
        figure("fleet.last_value_at_api_after_its_write", time.monotonic() - written, "s")
        figure("fleet.lost_last_values", wrong, f"of_{UNITS * REGISTERS}")


def lost(demo: Demo, fleet: Fleet) -> int:
    """How many registers the API shows with another value than the device has."""
    statuses = {
        s["metadata"]["name"]: s for s in json.loads(demo.kubectl("get", "devicestatuses", "-o", "json"))["items"]
    }
    wrong = 0
    for unit, values in fleet.wanted.items():
        twins = statuses.get(fleet.name(unit), {}).get("status", {}).get("twins", [])
        seen = {t["propertyName"]: t["reported"]["value"] for t in twins}
        wrong += sum(seen.get(f"r{i}") != str(value) for i, value in enumerate(values))
    return wrong


class PatchCounter:
    """Counts the writes of each DeviceStatus from the outside: every write is one event of a watch."""

    def __init__(self, demo: Demo) -> None:
        self.writes: Counter[str] = Counter()
        self.shortest_s = float("inf")
        self._demo = demo
        self._live = threading.Event()
        self._last: dict[str, float] = {}

    def __enter__(self) -> PatchCounter:
        """Return once kubectl watches: it lists what there is, which is not counted, and watches on from there."""
        listed = len(self._demo.kubectl("get", "devicestatuses", "-o", "name").splitlines())
        command = [
            self._demo.summary["kubectl"], "--kubeconfig", self._demo.summary["kubeconfig"], "get", "devicestatuses",
            "--watch", "--no-headers", "-o", "custom-columns=NAME:.metadata.name",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(listed,), daemon=True)
        self._reader.start()
        if not self._live.wait(30):
            raise AssertionError("kubectl did not list the device statuses")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, listed: int) -> None:
        for number, line in enumerate(self._process.stdout or (), start=1):
            if number >= listed:
                self._live.set()
            if number <= listed:
                continue
            name, now = line.strip(), time.monotonic()
            self.writes[name] += 1
            if name in self._last:
                self.shortest_s = min(self.shortest_s, now - self._last[name])
            self._last[name] = now
