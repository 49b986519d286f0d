"""`kubectl twin` on the whole path: values that move, writes that are applied, refused, and waited for in vain."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Demo, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEADLINE_S = 30.0


def command(demo: Demo, *arguments: str) -> tuple[list[str], dict[str, str]]:
    # kubectl finds the plugin on PATH, as it does for a person.
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(demo.directory)}
    return [demo.summary["kubectl"], "twin", *arguments, "--kubeconfig", demo.summary["kubeconfig"]], environment


def twin(demo: Demo, *arguments: str) -> subprocess.CompletedProcess[str]:
    line, environment = command(demo, *arguments)
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60, env=environment)


@contextlib.contextmanager
def following(demo: Demo, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    line, environment = command(demo, *arguments)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1) as process:
        try:
            yield process
        finally:
            process.terminate()


def until(process: subprocess.Popen[str], *parts: str) -> str:
    """The next line with all of the parts."""
    assert process.stdout is not None
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1.0)[0]:
            line = process.stdout.readline()
            assert line, "it ended"
            if all(part in line for part in parts):
                return line
    raise AssertionError(f"no line with {parts} within {DEADLINE_S:g} s")


def test_a_write_is_waited_for_and_on_the_device_then(demo: Demo) -> None:
    for value in ("42", "55.5"):
        ran = twin(demo, "set", "boiler-1", f"set-point={value}", "pump=true", "--wait")
        assert ran.returncode == 0, ran.stderr
        assert f"boiler-1: set-point={value} applied\n" in ran.stdout
        with demo.modbus() as modbus:
            assert modbus.read_holding_registers(0, count=1, device_id=1).registers == [float(value) * 10]
    row = twin(demo, "get", "boiler-1", "-p", "set-point", "--no-headers").stdout.split()
    assert row[:6] == ["boiler-1", "set-point", "55.5", "Celsius", "55.5", "yes"]
    assert row[-1] == "good"


def test_a_write_that_the_device_refuses_has_failed_with_its_reason(demo: Demo) -> None:
    wrong = demo.get("device", "boiler-1")
    wrong["metadata"] = {"name": "boiler-x", "namespace": "default"}
    wrong["spec"]["properties"] = [p for p in wrong["spec"]["properties"] if p["name"] == "set-point"]
    wrong["spec"]["properties"][0].pop("desired")
    wrong["spec"]["properties"][0]["visitors"]["configData"]["offset"] = 9000  # the boiler has no such register
    wrong.pop("status", None)
    demo.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    try:
        ran = twin(demo, "set", "default/boiler-x", "set-point=42", "--wait=60s")
        assert ran.returncode == 1, ran
        assert "set-point=42 failed: " in ran.stderr
        assert "llegal" in ran.stderr.rpartition("failed: ")[2]
        row = twin(demo, "get", "boiler-x", "--no-headers").stdout.split()
        assert row[3:6] == ["Celsius", "42", "failed"] or row[2:6] == ["-", "Celsius", "42", "failed"]
    finally:
        demo.kubectl("delete", "device", "boiler-x")


def test_a_watch_follows_the_device_and_says_when_its_node_is_away(demo: Demo) -> None:
    with following(demo, "get", "boiler-1", "-w", "-o", "json", "-p", "cycles") as watch:
        first = json.loads(until(watch, '"cycles"'))
        later = json.loads(until(watch, '"good"'))
        assert int(later["reported"]) > int(first["reported"])
        demo.kill("edgecore")
        away = json.loads(until(watch, '"stale"'))
        assert (away["state"], "edge-1" in away["reason"]) == ("unknown", True)
        ran = twin(demo, "set", "boiler-1", "set-point=44", "--wait=2s")
        assert ran.returncode == 4
        assert "set-point=44 is pending: the device is unknown" in ran.stderr
        ran = twin(demo, "history", "boiler-1")
        assert (ran.returncode, "edge-1" in ran.stderr) == (1, True), ran.stderr
        assert "boiler-1" in twin(demo, "describe", "boiler-1").stdout
        demo.restart("edgecore")
        until(watch, '"good"')
    ran = twin(demo, "set", "boiler-1", "set-point=44", "--wait")  # the one before has waited at the API
    assert ran.returncode == 0, ran.stderr


def test_history_that_is_off_is_said(demo: Demo) -> None:
    ran = wait_for(
        lambda: ran if "history" in (ran := twin(demo, "history", "boiler-1", "set-point")).stderr else None,
        within_s=20, what="the node answers",
    )  # fmt: skip
    assert ran.returncode == 1
    assert "modules.deviceTwin.history.enable" in ran.stderr
    extensions = demo.status("boiler-1")["extensions"]
    assert not extensions.get("queries")


def test_a_description_tells_the_state_and_its_events(demo: Demo) -> None:
    ran = twin(demo, "describe", "boiler-1")
    assert ran.returncode == 0, ran.stderr
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert "Node: edge-1 (connected)" in lines
    assert any(line.startswith("State: online since ") for line in lines)
    assert "set-point: FLOAT, ReadWrite, Celsius" in lines
