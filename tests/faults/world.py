"""The whole path, with ways between its parts that can be spoilt, and devices whose values are known.

    device ── mapper ── edgecore ──[hub path, join path]── cloudcore ──[API path]── apiserver

A test looks at the API server directly, and at the devices with a Modbus client of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from pymodbus.client import ModbusTcpClient

from benchmarks.modbus_fleet import Fleet
from cloudcore import crds
from tests.e2e.harness import wait_for
from tests.e2e.six_parts import _ports
from tests.faults.loop_thread import LoopThread
from tests.faults.parts import NODE, PARTS, REGISTERS, UNITS, Parts
from tests.faults.proxy import fault_proxy

__all__ = ["NODE", "WITHIN_S", "World", "faulty_world"]

WISHED: Final = REGISTERS - 1
"""The register that the cloud wants a value of; the device changes the others by itself."""
CYCLE_MS: Final = 200
WITHIN_S: Final = 45.0
GROWTH_BYTES: Final = {"edgecore": 6_000_000, "cloudcore": 12_000_000, "mapper-modbus": 4_000_000}
"""How much more memory a process may have after a scenario than when all was well before the first one."""
SETTLE_S: Final = 40.0
"""Connections to the API that an outage left over are closed after 15 s without use, each with 300 KiB of buffers."""
_API: Final = "/apis/devices.kubeedge.io/v1beta1/namespaces/default"


class World(Parts):
    """Made by `faulty_world`; every part runs at first."""

    def __init__(self, thread: LoopThread, directory: Path, **paths: Any) -> None:
        super().__init__(directory, **paths)
        self.thread = thread
        """Where the paths are."""
        self.wished: dict[int, int] = {}
        self.fleet: Fleet
        self._modbus = ModbusTcpClient("127.0.0.1", port=self.plan.modbus_port, timeout=10)
        self._memory: dict[str, int] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        self._modbus.close()
        if hasattr(self, "fleet"):
            self.fleet.close()
        super().stop()

    def declare(self) -> None:
        self.fleet = Fleet(self.plan.modbus_port, UNITS, REGISTERS)
        documents = list(yaml.safe_load_all(self.fleet.manifests(NODE)))
        for document in documents[1:]:
            for property_ in document["spec"]["properties"]:
                property_["collectCycle"] = CYCLE_MS
        self.kubectl("apply", "-f", "-", stdin=crds.render())
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def turn(self, unit: int, values: Sequence[int]) -> None:
        """What the device itself has from now on."""
        with self._lock:
            self.fleet.write(unit, list(values))

    def turn_all(self, seed: int) -> None:
        rng = random.Random(seed)
        for unit in self.fleet.wanted:
            self.turn(unit, rng.sample(range(60_000), WISHED))

    def wish(self, unit: int, value: int) -> None:
        """What the operator wants of a device's last register."""
        patch = [{"op": "add", "path": f"/spec/properties/{WISHED}/desired", "value": {"value": str(value)}}]
        with self.direct() as api:
            api.request("PATCH", f"{_API}/devices/{self.fleet.name(unit)}", patch, kind="application/json-patch+json")
        self.wished[unit] = value

    def at_device(self, unit: int) -> int:
        """What its last register has."""
        with self._lock:
            answer = self._modbus.read_holding_registers(WISHED, count=1, device_id=unit)
        assert not answer.isError(), answer
        return int(answer.registers[0])

    def wish_all(self, first: int) -> None:
        for unit in self.fleet.wanted:
            self.wish(unit, first + unit)

    def wrong(self) -> list[str]:
        """What is not as it should be at either end: each device's reported values and states at the API, and the
        wished ones at the devices.
        """
        with self.direct() as api:
            statuses = {s["metadata"]["name"]: s for s in api.request("GET", f"{_API}/devicestatuses")["items"]}
        found = []
        for unit, values in self.fleet.wanted.items():
            status = statuses.get(self.fleet.name(unit), {}).get("status", {})
            twins = {t["propertyName"]: t for t in status.get("twins", ())}
            wanted = dict(enumerate(map(str, values[:WISHED])))
            if unit in self.wished:
                wanted[WISHED] = str(self.wished[unit])
                at_device = self.at_device(unit)
                if at_device != self.wished[unit]:
                    found.append(f"device {unit} has {at_device}, wished {self.wished[unit]}")
            for number, value in wanted.items():
                twin = twins.get(f"r{number}", {})
                reported = twin.get("reported", {})
                shown = reported.get("value"), reported.get("metadata", {}).get("quality", "good")
                if shown != (value, "good"):
                    found.append(f"{self.fleet.name(unit)}/r{number} shows {shown}, not {value}")
                write = twin.get("observedDesired", {}).get("metadata", {}).get("write", "")
                if number == WISHED and write != "applied":
                    found.append(f"{self.fleet.name(unit)}/r{number}: write is {write!r}")
            if (state := status.get("state")) != "online":
                found.append(f"{self.fleet.name(unit)} is {state}")
        return found

    def all_right(self, within_s: float = WITHIN_S) -> float:
        """Wait until every last value is at the API and every wish at the device; returns how long it took."""
        began, last = time.monotonic(), ["nothing was looked at"]

        def right() -> bool:
            nonlocal last
            last = self.wrong()
            return not last

        try:
            wait_for(right, within_s=within_s, what="every last value is right")
        except AssertionError as error:
            raise AssertionError(f"{error}: {last[:6]}, {len(last)} in all") from error
        return time.monotonic() - began

    @contextlib.contextmanager
    def changing(self, *, seed: int, period_s: float = 0.05, wishes: bool = True) -> Iterator[None]:
        """Every device's values, and every few times a wish, go on changing while the block runs."""
        rng, enough = random.Random(seed), threading.Event()
        errors: list[BaseException] = []

        def change() -> None:
            try:
                count = 0
                while not enough.wait(period_s):
                    unit = rng.choice(list(self.fleet.wanted))
                    self.turn(unit, rng.sample(range(60_000), WISHED))
                    count += 1
                    if wishes and count % 10 == 0:
                        self.wish(rng.choice(list(self.fleet.wanted)), rng.randrange(60_000))
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
                errors.append(error)

        thread = threading.Thread(target=change, name="changing values")
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()
        assert not errors, errors

    def note_memory(self) -> None:
        """What each process has now counts as normal."""
        self._memory = self.memory()

    def memory(self) -> dict[str, int]:
        """Resident bytes by part."""
        return {part: psutil.Process(self.pid(part)).memory_info().rss for part in GROWTH_BYTES if part in self.running}

    def assert_well(self, said: Mapping[str, int]) -> None:
        """Every part runs, has not grown, and has logged no traceback since its log was `said` long."""
        for part, process in self.running.items():
            assert process.poll() is None, f"{part} has ended:\n{self.log(part)[-3000:]}"
            log = self.log(part)[said.get(part, 0) :]
            if (at := log.find("Traceback")) >= 0:
                raise AssertionError(f"{part} has logged a traceback:\n{log[max(0, at - 500) : at + 3000]}")
        deadline = time.monotonic() + SETTLE_S
        while any(grown > GROWTH_BYTES[part] for part, grown in self.grown().items()):
            assert time.monotonic() < deadline, f"grown by {self.grown()} bytes, {SETTLE_S:g} s after all was well"
            time.sleep(0.5)

    def grown(self) -> dict[str, int]:
        """Resident bytes by part, beyond what was noted."""
        return {part: bytes_ - self._memory.get(part, bytes_) for part, bytes_ in self.memory().items()}


@contextlib.contextmanager
def faulty_world(
    changes: Mapping[str, Any] | None = None, *, seed: int, addresses: int = 1, joined: bool = True
) -> Iterator[World]:
    """All parts, running, with devices that have reported everything.

    `addresses`: of the hub's path, so many; after a cut edge core tries the next at once. Not `joined`: edge core has
    no certificate, and neither it nor the mapper runs.
    """
    with tempfile.TemporaryDirectory(prefix="kt-") as name, LoopThread() as thread, contextlib.ExitStack() as around:
        hub_port, join_port, *others = _ports(5)
        hub = around.enter_context(fault_proxy(thread, ("127.0.0.1", hub_port), seed=seed, ports=addresses))
        join = around.enter_context(fault_proxy(thread, ("127.0.0.1", join_port), seed=seed))
        api = around.enter_context(fault_proxy(thread, ("127.0.0.1", 0), seed=seed))
        world = World(thread, Path(name), hub=hub, join=join, api=api, ports=[join_port, *others])
        world.configure(changes or {}, joined=joined)
        try:
            for part in PARTS:
                if part == "edgecore" and not joined:
                    break
                world.start(part)
                if part == "apiserver":
                    world.declare()
            if joined:
                world.turn_all(seed)
                world.wish_all(100)
                world.all_right()
            yield world
        finally:
            world.stop()
            if keep := os.environ.get("KUBETWIN_FAULTS_LOGS"):
                shutil.copytree(world.plan.directory / "logs", Path(keep), dirs_exist_ok=True)
