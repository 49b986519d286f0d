"""A running demo, driven as a person would: through `demo.json`, a real kubectl and a plain Modbus client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pymodbus.client import ModbusTcpClient

_T = TypeVar("_T")
_POLL_S = 0.05


def wait_for(check: Callable[[], _T | bool | None], *, within_s: float, what: str) -> _T:
    """Ask again until the answer is something; how the outside of other processes is observed."""
    deadline = time.monotonic() + within_s
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if (result := check()) not in (None, False):
                return result  # type: ignore[return-value]  # neither None nor False
        except (AssertionError, KeyError, subprocess.CalledProcessError) as error:
            last = error
        time.sleep(_POLL_S)
    raise AssertionError(f"not within {within_s:g} s: {what}" + (f" (last: {last!r})" if last else ""))


class Demo:
    """What `demo.json` says, and the means to act on it."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.process = process
        self.restarted: list[subprocess.Popen[bytes]] = []

    @property
    def summary(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.directory / "demo.json").read_text())
        return result

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [self.summary["kubectl"], "--kubeconfig", self.summary["kubeconfig"], *arguments]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True, timeout=30).stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return result

    def status(self, device: str) -> dict[str, Any]:
        result: dict[str, Any] = self.get("devicestatus", device).get("status", {})
        return result

    def twin(self, device: str, property_name: str) -> dict[str, Any]:
        """`reported` and `observedDesired` of one property; KeyError until there is one."""
        twins = {t["propertyName"]: t for t in self.status(device).get("twins", [])}
        result: dict[str, Any] = twins[property_name]
        return result

    def reported(self, device: str, property_name: str) -> str:
        result: str = self.twin(device, property_name)["reported"]["value"]
        return result

    def quality(self, device: str, property_name: str) -> str:
        result: str = self.twin(device, property_name)["reported"]["metadata"].get("quality", "good")
        return result

    def set_desired(self, device: str, property_name: str, value: str) -> None:
        properties = self.get("device", device)["spec"]["properties"]
        index = [p["name"] for p in properties].index(property_name)
        patch = [{"op": "replace", "path": f"/spec/properties/{index}/desired/value", "value": value}]
        self.kubectl("patch", "device", device, "--type", "json", "-p", json.dumps(patch))

    @contextlib.contextmanager
    def modbus(self) -> Iterator[ModbusTcpClient]:
        """A client that has nothing to do with kubetwin."""
        host, _, port = self.summary["modbus"].partition(":")
        client = ModbusTcpClient(host, port=int(port), timeout=5)
        wait_for(client.connect, within_s=10, what="the device listens")  # it may have been started just now
        try:
            yield client
        finally:
            client.close()

    def pid(self, name: str) -> int:
        result: int = self.summary["pids"][name]
        return result

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one process, and return when it is gone."""
        victim = psutil.Process(self.pid(name))
        victim.send_signal(number)
        with contextlib.suppress(psutil.NoSuchProcess):
            # Our own restarts are our children and must be reaped; the demo reaps its own.
            for child in self.restarted:
                if child.pid == victim.pid:
                    child.wait(10)
            victim.wait(10)

    def restart(self, name: str) -> None:
        """Start a process with the command that the demo shows for it."""
        log = (self.directory / "logs" / f"{name}.log").open("ab")
        with log:
            child = subprocess.Popen(
                self.summary["commands"][name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.restarted.append(child)

        def seen() -> bool:
            assert child.poll() is None, f"{name} ended at once:\n" + self.log(name)[-3000:]
            return bool(self.summary["pids"].get(name) == child.pid)

        wait_for(seen, within_s=10, what=f"the demo sees the new {name}")

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")


def processes_under(directory: Path) -> list[int]:
    """Every process whose command line names a folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in part for part in process.info["cmdline"] or ())
    ]


@contextlib.contextmanager
def running_demo(*, arguments: Sequence[str] = ()) -> Iterator[Demo]:
    """Start `kubetwin demo` in a folder of its own (short, for unix sockets), hand it out, end it with Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        directory = Path(name)
        output = (directory / "screen.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "kubetwin", "demo", "--dir", str(directory), *arguments],
            stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        demo = Demo(directory, process)
        try:
            wait_for(
                lambda: (directory / "demo.json").exists() or process.poll() is not None,
                within_s=60, what="demo.json is written",
            )  # fmt: skip
            assert process.poll() is None, (directory / "screen.log").read_text()
            yield demo
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, (directory / "screen.log").read_text()
            for child in demo.restarted:
                child.wait(10)
            assert processes_under(directory) == []
        finally:
            output.close()
            if process.poll() is None:
                process.kill()
                process.wait()
            for child in demo.restarted:
                child.kill()
                child.wait()
