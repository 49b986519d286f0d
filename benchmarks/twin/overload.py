"""Far more reports than 1,000 devices of ten properties make at one a second: two clients, 32 calls in flight each, as
fast as they are taken, with real edgecore, cloudcore and embedded API. A fleet at 1 s makes 1,000 reports a second;
what is beyond the mapper limit is refused, and the client goes on with newer values.

Memory must be flat, the newest accepted values right at the API, and that within 5 s of the end.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
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
from benchmarks.twin.report import METHOD
from dmi import DeviceId
from dmi.rpc import open_channel
from kubetwin.demo.plan import NODE
from tests.e2e.harness import Demo, running_demo, wait_for

DEVICES = 1000
CLIENTS = 2
IN_FLIGHT = 32
NORMAL_RATE = 1000
PROCESSES = ("edgecore", "cloudcore", "apiserver")
GIVE_UP_S = 120.0


def run(seconds: float) -> None:
    duration_s = 60.0 if seconds >= 60 else 10.0
    with running_demo() as demo:
        demo.kubectl("delete", "devices,devicemodels", "--all", "-A")
        demo.kubectl("apply", "-f", "-", stdin=_manifests())
        devices = [DeviceId(f"default/load-{index}") for index in range(DEVICES)]
        wait_for(lambda: _all_known(demo, devices), within_s=GIVE_UP_S, what="the edge knows every device")
        wait_for(lambda: _behind(demo, _first(devices)) == 0, within_s=GIVE_UP_S, what="every first value is seen")
        watch = _Memory(demo)
        calls, refused, accepted, ended = _overload(demo, devices, duration_s)
        watch.stop()
        figure("overload.offered", calls / duration_s, "reports/s")
        figure("overload.accepted", (calls - refused) / duration_s, "reports/s")
        figure("overload.refused", refused / duration_s, "reports/s")
        figure("overload.times_a_fleet", calls / duration_s / NORMAL_RATE, "")
        first = _behind(demo, accepted)
        while (behind := _behind(demo, accepted)) and time.monotonic() < ended + GIVE_UP_S:
            time.sleep(0.1)
        figure("overload.recovery", time.monotonic() - ended, "s")
        figure("overload.devices_behind_at_first_look", first, f"of_{DEVICES}")
        figure("overload.wrong_newest_values", behind, f"of_{DEVICES}")
        for name in PROCESSES:
            figure(f"overload.rss.{name}.first_third", watch.mean(name, 0), "MB")
            figure(f"overload.rss.{name}.last_third", watch.mean(name, 2), "MB")
            figure(f"overload.cpu.{name}", watch.cpu(name) * 100, "percent_of_a_core")


def _manifests() -> str:
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
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [model, *items]})


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


def _overload(demo: Demo, devices: Sequence[DeviceId], seconds: float) -> tuple[int, int, dict[DeviceId, int], float]:
    """Calls, refused calls, the newest accepted number of each device, and when it ended."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    clients = []
    for index in range(CLIENTS):
        here, there = context.Pipe(duplex=False)
        share = devices[index::CLIENTS]
        client = context.Process(target=_client, args=(str(demo.directory / "dmi.sock"), share, seconds, there))
        client.start()
        ends.append(here)
        clients.append(client)
    results = [end.recv() for end in ends]
    ended = time.monotonic()
    for client in clients:
        client.join()
    accepted = {device: number for _, _, newest in results for device, number in newest.items()}
    return sum(r[0] for r in results), sum(r[1] for r in results), accepted, ended


def _client(socket: str, devices: Sequence[DeviceId], seconds: float, result: Connection) -> None:
    """A process that reports as fast as it can."""
    result.send(asyncio.run(_flood(Path(socket), devices, seconds)))


async def _flood(socket: Path, devices: Sequence[DeviceId], seconds: float) -> tuple[int, int, dict[DeviceId, int]]:
    newest = _first(devices)
    calls = refused = 0
    async with open_channel(socket) as channel:
        call = channel.unary_unary(METHOD)
        end = time.monotonic() + seconds

        async def worker(own: Sequence[DeviceId]) -> None:
            nonlocal calls, refused
            number = 0
            while time.monotonic() < end:
                number += 1
                for device in own:
                    calls += 1
                    try:
                        await call(_request(device, number), timeout=30)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                            raise
                        refused += 1
                    else:
                        newest[device] = number
                    if time.monotonic() >= end:
                        return

        await asyncio.gather(*(worker(devices[index::IN_FLIGHT]) for index in range(IN_FLIGHT)))
    return calls, refused, newest


def _behind(demo: Demo, wanted: dict[DeviceId, int]) -> int:
    """How many devices the API shows with another value than their newest accepted one."""
    items = json.loads(demo.kubectl("get", "devicestatuses", "-o", "json"))["items"]
    seen = {
        f"{i['metadata']['namespace']}/{i['metadata']['name']}": i.get("status", {}).get("twins", []) for i in items
    }
    return sum(
        [twin["reported"]["value"] for twin in seen.get(device, [])] != [str(number)] * len(PROPERTIES)
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
