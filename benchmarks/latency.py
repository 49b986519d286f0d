"""How long a value takes on an idle path: from the mapper's report to a watch on the API, and from a patch of `desired`
to the register, both with the demo's processes on this machine.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from queue import Queue

from benchmarks.figures import figure, percentile
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
    figure("latency.collected_to_watch.p99", percentile(counted, 0.99), "ms")


def _desired_to_register(demo: Demo) -> None:
    """From kubectl's answer to `patch` until a plain Modbus client reads the new value."""
    properties = demo.get("device", DEVICE)["spec"]["properties"]
    index = [p["name"] for p in properties].index(PROPERTY)
    times: list[float] = []
    with demo.modbus() as modbus:

        def register() -> int:
            return modbus.read_holding_registers(0, count=1, device_id=1).registers[0]

        for round_ in range(ROUNDS):
            before = register()
            patch = [
                {"op": "replace", "path": f"/spec/properties/{index}/desired/value", "value": str(40 + round_ % 2)}
            ]
            demo.kubectl("patch", "device", DEVICE, "--type", "json", "-p", json.dumps(patch))
            start = time.monotonic()
            while register() == before:
                time.sleep(0.001)
                if time.monotonic() > start + 10:
                    raise AssertionError("the register did not change within 10 s")
            times.append((time.monotonic() - start) * 1000)
    figure("latency.desired_to_register_after_kubectl.p50", percentile(times, 0.5), "ms")
    figure("latency.desired_to_register_after_kubectl.p99", percentile(times, 0.99), "ms")
