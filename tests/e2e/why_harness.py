"""Runs `kubetwin why` against a demo, and waits for a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result
from msgspec import Struct

from kubetwin.why.command import why as why_command
from tests.e2e.harness import Demo

BOTH, CLOUD, EDGE = "both", "cloud", "edge"


class Told(Struct, frozen=True):
    exit_code: int
    verdict: dict[str, Any]

    @property
    def states(self) -> dict[int, str]:
        return {step["number"]: step["state"] for step in self.verdict["steps"]}

    @property
    def summary(self) -> str:
        return str(self.verdict["summary"])

    def __str__(self) -> str:
        lines = [f"{s['number']:2} {s['state']:8} {s['name']}: {s['message']}" for s in self.verdict["steps"]]
        return "\n".join([self.summary, *lines, *self.verdict["notes"]])


def arguments(demo: Demo, seen_from: str) -> list[str]:
    """The options that leave only one end of the path to ask, or none out."""
    cloud = ["--kubeconfig", demo.summary["kubeconfig"]]
    edge = ["--edge", demo.summary["edge"]]
    return {BOTH: [*cloud, *edge], CLOUD: [*cloud, "--no-edge"], EDGE: ["--no-api", *edge]}[seen_from]


def run_why(*words: str) -> Result:
    """In this process: a verdict is asked for often, and starting Python costs more than finding out."""
    return CliRunner().invoke(why_command, words)


def why(demo: Demo, device: str = "default/boiler-1", seen_from: str = BOTH) -> Told:
    result = run_why(*arguments(demo, seen_from), "-o", "json", device)
    assert result.stdout, result.stderr
    return Told(result.exit_code, json.loads(result.stdout))


def why_until(
    demo: Demo, exit_code: int, device: str = "default/boiler-1", *, seen_from: str = BOTH, within_s: float = 40,
    again: Callable[[], None] = lambda: None,
) -> Told:  # fmt: skip
    """Ask until the exit code is the one; `again` is done before each question."""
    deadline = time.monotonic() + within_s
    while True:
        again()
        told = why(demo, device, seen_from)
        if told.exit_code == exit_code:
            return told
        assert time.monotonic() < deadline, f"not within {within_s:g} s: exit code {exit_code}, but {told}"


def device(name: str, demo: Demo, *, port: int = 0, visitor: dict[str, Any] | None = None, **changes: Any) -> str:
    """A manifest: a boiler with its temperature and its set point."""
    common = {"collectCycle": 500, "reportToCloud": True}
    registers = {
        "temperature": {"register": "InputRegister", "offset": 0, "dataType": "int", "scale": 0.1},
        "set-point": {"register": "HoldingRegister", "offset": 0, "dataType": "int", "scale": 0.1},
    }
    registers["temperature"].update(visitor or {})
    properties = [
        {"name": property_, **common, "visitors": {"protocolName": "modbus", "configData": register}}
        for property_, register in registers.items()
    ]
    desired = changes.pop("desired", {})
    for property_ in properties:
        if property_["name"] in desired:
            property_["desired"] = {"value": desired[property_["name"]]}
    config = {"ip": "127.0.0.1", "port": port or int(demo.summary["modbus"].rpartition(":")[2]), "slaveID": 1}
    spec = {
        "deviceModelRef": {"name": "boiler"}, "nodeName": "edge-1",
        "protocol": {"protocolName": "modbus", "configData": config}, "properties": properties, **changes,
    }  # fmt: skip
    return yaml.safe_dump(
        {"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name}, "spec": spec}
    )


def apply(demo: Demo, manifest: str) -> None:
    demo.kubectl("apply", "-f", "-", stdin=manifest)


def start(directory: Path, *command: str) -> tuple[subprocess.Popen[str], str]:
    """A program beside the demo, once it has said its first line."""
    with (directory / "beside.log").open("a") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()
