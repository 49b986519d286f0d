"""New devices of one node, created as fast as the API takes them: how long after the last one the edge has stored all.

Then the edge core is started again with everything unchanged, and with its store gone: what it takes to bring it up to
date, in objects sent and CPU of both sides.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import cpu_seconds, figure, rss_mib
from benchmarks.twin.load import Api, manifests
from kubetwin.demo.plan import NODE
from kubetwin.twin.edge import EdgeAway, edge_get
from tests.e2e.harness import Demo, running_demo, wait_for

__all__ = ["run"]

DEVICES = 5000
SHORT = 1000
FULL_FROM_S = 60.0
"""`--seconds` of this and more make all 5,000."""
PROPERTIES = 10
CREATORS = 4
WITHIN_S = 300.0
SETTLE_S = 15.0
MB_PER_MIB = 1.048576
PROCESSES = ("cloudcore", "edgecore", "apiserver")


def run(seconds: float, *, devices: int = 0) -> None:
    with running_demo() as demo:
        demo.kubectl("delete", "devices", "--all")
        demo.kill("mapper-modbus")
        demo.kill("simulator")
        count = devices or (DEVICES if seconds >= FULL_FROM_S else SHORT)
        _created(demo, count)
        _reconnected(demo, count, "unchanged")
        _reconnected(demo, count, "store_gone")


def _created(demo: Demo, count: int) -> None:
    cpu = _cpu(demo)
    created_s = _create(demo, count)
    last = time.monotonic()
    while _stored(demo) < count and time.monotonic() < last + WITHIN_S:
        time.sleep(0.1)
    known_s = time.monotonic() - last
    figure("channel.devices.created", created_s, "s")
    figure("channel.devices.creation_rate", count / created_s, "1/s")
    figure("channel.devices.known_after_the_last", known_s, "s")
    figure("channel.devices.unknown", count - _stored(demo), f"of_{count}")
    for name, used in _cpu(demo).items():
        figure(f"channel.devices.cpu.{name}", used - cpu[name], "s")
    time.sleep(SETTLE_S)
    for name in PROCESSES:
        figure(f"channel.devices.rss.{name}", rss_mib(demo.pid(name)) * MB_PER_MIB, "MB")


def _reconnected(demo: Demo, count: int, how: str) -> None:
    time.sleep(SETTLE_S)
    cloud_s = _cpu(demo)["cloudcore"]
    known = demo.log("cloudcore").count("told of")
    demo.kill("edgecore")
    for file in demo.directory.glob("edgecore.db*") if how == "store_gone" else ():
        file.unlink()
    demo.restart("edgecore")
    began = time.monotonic()
    wait_for(lambda: demo.log("cloudcore").count("told of") > known, within_s=60, what="the node is told")
    wait_for(lambda: _stored(demo) >= count, within_s=WITHIN_S, what="the edge has all devices")
    figure(f"channel.devices.{how}.known_after_start", time.monotonic() - began, "s")
    time.sleep(SETTLE_S)
    told = [line for line in demo.log("cloudcore").splitlines() if "told of" in line][-1]
    figure(f"channel.devices.{how}.objects_sent", int(told.partition("models; ")[2].split()[0]), f"of_{count}")
    figure(f"channel.devices.{how}.cpu.cloudcore", _cpu(demo)["cloudcore"] - cloud_s, "s")
    figure(f"channel.devices.{how}.cpu.edgecore", _cpu(demo)["edgecore"], "s_with_start")


def _cpu(demo: Demo) -> dict[str, float]:
    return {name: cpu_seconds(demo.pid(name)) for name in PROCESSES}


def _create(demo: Demo, count: int) -> float:
    """The model, then the devices over a few connections; seconds for these."""
    model, *devices = manifests(count, PROPERTIES, NODE)
    apis = [Api(Path(demo.summary["kubeconfig"])) for _ in range(CREATORS)]
    apis[0].create([model])
    shares: list[list[dict[str, Any]]] = [devices[number::CREATORS] for number in range(CREATORS)]
    threads = [threading.Thread(target=api.create, args=(share,)) for api, share in zip(apis, shares, strict=True)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def _stored(demo: Demo) -> int:
    """Devices that the edge core says it has, which it does once they are in its store."""
    with contextlib.suppress(EdgeAway):
        return int(edge_get(demo.directory / "edgecore.sock", "/readyz")["devices"])
    return 0
