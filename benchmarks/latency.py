"""How long a value takes on an idle path, with the demo's processes on this machine: from its collection at the device
to kubectl watching the API, and from sending a patch of `desired` to the register as a plain Modbus client reads it.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from queue import Queue

from benchmarks.figures import figure, percentile
from benchmarks.twin.load import Api
from tests.e2e.harness import Demo, running_demo, wait_for

DEVICE = "boiler-1"
PROPERTY = "set-point"
ROUNDS = 30
SETTLE_ROUNDS = 4
"""Reports of the start, when everything connects at once, that are not counted."""


def run(seconds: float) -> None:  # noqa: ARG001 - the number of rounds is fixed
    with running_demo() as demo:
        wait_for(lambda: demo.reported(DEVICE, PROPERTY), within_s=60, what="the first value")
        _report_to_watch(demo)
        _desired_to_register(demo)


def _report_to_watch(demo: Demo) -> None:
    """A watch sees each reported value; its age then is the time from collection at the device to the client."""
    command = [
        demo.summary["kubectl"], "--kubeconfig", demo.summary["kubeconfig"],
        "get", "devicestatus", DEVICE, "-w", "-o", "json", "--output-watch-events=false",
    ]  # fmt: skip
    ages: list[float] = []
    seen: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        decoder, text = json.JSONDecoder(), ""
        assert watch.stdout is not None  # PIPE
        lines: Queue[str] = Queue()

        def read() -> None:
            for line in watch.stdout or ():
                lines.put(line)

        threading.Thread(target=read, daemon=True).start()
        while len(ages) < SETTLE_ROUNDS + ROUNDS:
            text += lines.get(timeout=60)
            now_ms = time.time_ns() / 1e6
            try:
                status, end = decoder.raw_decode(text.lstrip())
            except ValueError:
                continue
            text = text.lstrip()[end:]
            stamps = [t["reported"].get("metadata", {}).get("timestamp", "") for t in status["status"].get("twins", [])]
            newest = max((s for s in stamps if s), default="")
            if newest and newest not in seen:
                if seen:  # the first is as old as it happens to be
                    ages.append(now_ms - int(newest))
                seen.add(newest)
        watch.terminate()
    counted = ages[SETTLE_ROUNDS:]
    figure("latency.collected_to_watch.p50", percentile(counted, 0.5), "ms")
    figure("latency.collected_to_watch.max", max(counted), "ms")


def _desired_to_register(demo: Demo) -> None:
    properties = demo.get("device", DEVICE)["spec"]["properties"]
    index = [p["name"] for p in properties].index(PROPERTY)
    api = Api(Path(demo.summary["kubeconfig"]))
    times: list[float] = []
    with demo.modbus() as modbus:

        def register() -> int:
            return modbus.read_holding_registers(0, count=1, device_id=1).registers[0]

        for round_ in range(ROUNDS):
            before = register()
            value = str(40 + round_ % 2)
            start = time.monotonic()
            api.request(
                "PATCH",
                f"/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices/{DEVICE}",
                [{"op": "replace", "path": f"/spec/properties/{index}/desired/value", "value": value}],
                kind="application/json-patch+json",
            )
            while register() == before:
                time.sleep(0.001)
                if time.monotonic() > start + 10:
                    raise AssertionError("the register did not change within 10 s")
            times.append((time.monotonic() - start) * 1000)
    figure("latency.desired_to_register.p50", percentile(times, 0.5), "ms")
    figure("latency.desired_to_register.max", max(times), "ms")
