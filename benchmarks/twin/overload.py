"""Far more reports than edge core can take, then an ordinary load, with real edgecore, cloudcore and embedded API.

Client processes report 1,000 devices of ten properties as fast as they are answered, together with more calls in flight
than a mapper may have waiting; one that is refused goes on with newer values at once, where a mapper would pause.
They have the lower priority: what they cannot use is what the others are measured with. Then a tenth
of the devices change each second, as in `twin.fleet`.

Memory must be flat, and 5 s after the flood's end the API must show of each device its newest value of then, or newer.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.figures import cpu_seconds, figure
from benchmarks.twin.edge import PROPERTIES, report, rss_mb
from benchmarks.twin.load import Api
from benchmarks.twin.report import METHOD
from dmi import DeviceId
from dmi.rpc import open_channel
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, running_demo, wait_for

DEVICES = 1000
CLIENTS = 8
IN_FLIGHT = 100
"""By each client: together more than one mapper's reports that may be under way and wait."""
NORMAL_RATE = 200
"""Reports a second of the ordinary load of `twin.fleet`: a tenth of the devices changes, a tenth confirms."""
PROCESSES = ("edgecore", "cloudcore", "apiserver")
GIVE_UP_S = 120.0
NICE = 5
SETTLE_S = 5.0


def run(seconds: float) -> None:
    duration_s = 60.0 if seconds >= 60 else 10.0
    with running_demo() as demo:
        demo.kubectl("delete", "devices,devicemodels", "--all", "-A")
        Api(Path(demo.summary["kubeconfig"])).create(_manifests())
        devices = [DeviceId(f"default/load-{index}") for index in range(DEVICES)]
        wait_for(lambda: _all_known(demo, devices), within_s=GIVE_UP_S, what="the edge knows every device")
        wait_for(lambda: _behind(demo, _first(devices)) == 0, within_s=GIVE_UP_S, what="every first value is seen")
        watch = _Memory(demo)
        flood = _Flood(demo, devices, duration_s)
        calls, refused, accepted = flood.ended()
        ended = time.monotonic()
        watch.stop()
        figure("overload.offered", calls / duration_s, "reports/s")
        figure("overload.accepted", (calls - refused) / duration_s, "reports/s")
        figure("overload.refused", refused / duration_s, "reports/s")
        figure("overload.times_a_fleet", calls / duration_s / NORMAL_RATE, "")
        first = _behind(demo, accepted)
        while _behind(demo, accepted) and time.monotonic() < ended + GIVE_UP_S:
            time.sleep(0.2)
        figure("overload.recovery", time.monotonic() - ended, "s")
        figure("overload.devices_behind_at_first_look", first, f"of_{DEVICES}")
        last = flood.stop()
        time.sleep(SETTLE_S)
        figure("overload.wrong_newest_values", _behind(demo, last), f"of_{DEVICES}")
        for name in PROCESSES:
            figure(f"overload.rss.{name}.first_third", watch.mean(name, 0), "MB")
            figure(f"overload.rss.{name}.last_third", watch.mean(name, 2), "MB")
            figure(f"overload.rss.{name}.after", rss_mb(demo.pid(name)), "MB")
            figure(f"overload.cpu.{name}", watch.cpu(name) * 100, "percent_of_a_core")


def _manifests() -> list[dict[str, Any]]:
    """A protocol no mapper runs: the clients are all there is."""
    model = {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"name": "load", "namespace": "default"},
        "spec": {
            "protocol": "load",
            "properties": [{"name": n, "type": "INT", "accessMode": "ReadWrite"} for n in PROPERTIES],
        },
    }
    items: list[dict[str, Any]] = [
        {
            "apiVersion": "devices.kubeedge.io/v1beta1",
            "kind": "Device",
            "metadata": {"name": f"load-{index}", "namespace": "default"},
            "spec": {
                "deviceModelRef": {"name": "load"},
                "nodeName": NODE,
                "protocol": {"protocolName": "load", "configData": {}},
                "properties": [{"name": n, "visitors": {"protocolName": "load"}} for n in PROPERTIES],
            },
        }
        for index in range(DEVICES)
    ]
    return [model, *items]


def _first(devices: Sequence[DeviceId]) -> dict[DeviceId, int]:
    return dict.fromkeys(devices, 0)


def _all_known(demo: Demo, devices: Sequence[DeviceId]) -> bool:
    """Report a first value of every device, which is refused as long as it is not known."""

    async def report_all() -> bool:
        async with open_channel(demo.directory / "dmi.sock") as channel:
            call = channel.unary_unary(METHOD)
            for device in devices:
                try:
                    await call(_request(device, 0), timeout=10)
                except grpc.aio.AioRpcError:
                    return False
        return True

    return asyncio.run(report_all())


def _request(device: DeviceId, number: int) -> bytes:
    return report(device, [number] * len(PROPERTIES), time.time_ns() // 1_000_000)


class _Flood:
    """The client processes, each with its share of the devices."""

    def __init__(self, demo: Demo, devices: Sequence[DeviceId], seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._clients = []
        for index in range(CLIENTS):
            here, there = context.Pipe()
            share = devices[index::CLIENTS]
            client = context.Process(target=_client, args=(str(demo.directory / "dmi.sock"), share, seconds, there))
            client.start()
            self._ends.append(here)
            self._clients.append(client)

    def ended(self) -> tuple[int, int, dict[DeviceId, int]]:
        """Calls, refused calls, and the newest accepted number of each device, once the flood is over."""
        results = [end.recv() for end in self._ends]
        newest = {device: number for _, _, newest in results for device, number in newest.items()}
        return sum(r[0] for r in results), sum(r[1] for r in results), newest

    def stop(self) -> dict[DeviceId, int]:
        """End the ordinary load too; the newest accepted numbers."""
        for end in self._ends:
            end.send("stop")
        newest = {device: number for end in self._ends for device, number in end.recv().items()}
        for client in self._clients:
            client.join()
        return newest


def _client(socket: str, devices: Sequence[DeviceId], seconds: float, parent: Connection) -> None:
    os.nice(NICE)
    asyncio.run(_report(Path(socket), devices, seconds, parent))


async def _report(socket: Path, devices: Sequence[DeviceId], seconds: float, parent: Connection) -> None:
    newest = _first(devices)
    calls = refused = 0
    async with open_channel(socket) as channel:
        call = channel.unary_unary(METHOD)

        async def report_next(device: DeviceId, number: int) -> None:
            nonlocal calls, refused
            calls += 1
            try:
                await call(_request(device, number), timeout=60)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refused += 1
            else:
                newest[device] = number

        end = time.monotonic() + seconds

        async def worker(own: Sequence[DeviceId]) -> None:
            number = 0
            while time.monotonic() < end:
                number += 1
                for device in own:
                    await report_next(device, number)
                    if time.monotonic() >= end:
                        return

        await asyncio.gather(*(worker(devices[index::IN_FLIGHT]) for index in range(IN_FLIGHT)))
        parent.send((calls, refused, dict(newest)))
        number = max(newest.values())
        changing = devices[: len(devices) // 10]
        while not parent.poll():
            number += 1
            started = time.monotonic()
            for device in changing:
                await report_next(device, number)
                await asyncio.sleep(0.5 / len(changing))
            await asyncio.sleep(max(0.0, started + 1.0 - time.monotonic()))
        parent.send(newest)


def _behind(demo: Demo, wanted: dict[DeviceId, int]) -> int:
    """Of how many devices the API shows a value older than their wanted one."""
    seen = {
        f"default/{s['metadata']['name']}": [t["reported"]["value"] for t in s.get("status", {}).get("twins", ())]
        for s in Api(Path(demo.summary["kubeconfig"])).statuses()
    }
    return sum(
        len(seen.get(device, ())) != len(PROPERTIES) or min(int(value) for value in seen[device]) < number
        for device, number in wanted.items()
    )


class _Memory:
    """Looks at the processes every half second."""

    def __init__(self, demo: Demo) -> None:
        self._pids = {name: demo.pid(name) for name in PROCESSES}
        self._samples: dict[str, list[float]] = {name: [] for name in PROCESSES}
        self._start = time.monotonic()
        self._cpu = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        self._used: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        elapsed = time.monotonic() - self._start
        self._used = {name: (cpu_seconds(pid) - self._cpu[name]) / elapsed for name, pid in self._pids.items()}

    def cpu(self, name: str) -> float:
        return self._used[name]

    def mean(self, name: str, third: int) -> float:
        samples = self._samples[name]
        size = max(len(samples) // 3, 1)
        return statistics.fmean(samples[third * size : (third + 1) * size] or samples[-1:])

    def _look(self) -> None:
        while not self._ending.wait(0.5):
            for name, pid in self._pids.items():
                self._samples[name].append(rss_mb(pid))
