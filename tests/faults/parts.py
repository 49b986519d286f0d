"""The parts of the path as processes: configured, started, killed, and looked at from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.twin.load import Api
from cloudedge.certificates import mint
from kubetwin.demo.plan import NODE, Plan
from kubetwin.kubectl import kubectl_path
from tests.e2e.harness import wait_for
from tests.faults.proxy import FaultProxy

__all__ = ["NODE", "PARTS", "REGISTERS", "UNITS", "Parts"]

PARTS: Final = ("device", "apiserver", "cloudcore", "edgecore", "mapper-modbus")
UNITS: Final = 4
REGISTERS: Final = 5


class Parts:
    """`configure` them, then `start` them in the order of `PARTS`."""

    def __init__(
        self, directory: Path, *, hub: FaultProxy, join: FaultProxy, api: FaultProxy, ports: Sequence[int]
    ) -> None:
        """`ports`: of the join service, the device, the mapper's HTTP and cloud core's metrics."""
        self.hub_port = hub.target[1]
        """Cloud core's own, past the path."""
        self.hub = hub
        self.join = join
        self.api = api
        self.join_port, modbus, http, self.monitor_port = ports
        self.plan = Plan(directory=directory, hub_port=self.hub_port, modbus_port=modbus, http_port=http)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment: dict[str, dict[str, str]] = {}
        """Besides our own, by part."""
        self.prefix: dict[str, Sequence[str]] = {}
        """What a part's command begins with, by part."""

    def configure(self, changes: Mapping[str, Any], *, joined: bool) -> None:
        """Write configurations and certificates. `changes` by file, merged into what the demo would write."""
        settings = self.plan.settings()
        hub = settings["cloudcore.yaml"]["modules"]["cloudHub"]
        hub["https"]["port"] = self.join_port
        settings["cloudcore.yaml"]["kubeAPIConfig"]["kubeConfig"] = str(self.cloud_kubeconfig)
        settings["cloudcore.yaml"]["commonConfig"] = {
            "monitorServer": {"bindAddress": f"127.0.0.1:{self.monitor_port}"}
        }
        edge = settings["edgecore.yaml"]["modules"]["edgeHub"]
        edge["websocket"]["server"] = self.hub.addresses
        edge["httpServer"] = f"https://{self.join.addresses}"
        for file, change in changes.items():
            _merge(settings[file], change)
        (self.plan.directory / "logs").mkdir(exist_ok=True)
        for file, content in settings.items():
            (self.plan.directory / file).write_text(yaml.safe_dump(content))
        mint(self.plan.certificates, nodes=[NODE] if joined else [], names=["127.0.0.1"])

    @property
    def cloud_kubeconfig(self) -> Path:
        """Cloud core's: the same but for the address, which is the spoilt path's."""
        return self.plan.directory / "cloud.kubeconfig"

    def reconfigure(self, file: str, change: Mapping[str, Any]) -> None:
        """For the next start of the part."""
        path = self.plan.directory / file
        content = yaml.safe_load(path.read_text())
        _merge(content, change)
        path.write_text(yaml.safe_dump(content))

    def start(self, part: str) -> None:
        """Start a part, and return when it can be talked to."""
        self.launch(part)
        wait_for(lambda: self._answers(part), within_s=30, what=f"{part} answers")
        if part == "apiserver":
            self._route_api()

    def launch(self, part: str) -> None:
        """Start a part, and do not wait."""
        command = [*self.prefix.get(part, ()), *self._command(part)]
        with self.plan.log(part).open("ab") as log:
            self.running[part] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment.get(part, {})},
            )  # fmt: skip

    def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(part)
        assert process.poll() is None, f"{part} had ended by itself:\n{self.log(part)[-3000:]}"
        process.send_signal(number)
        process.wait(20)

    def restart(self, part: str, number: int = signal.SIGKILL) -> None:
        self.kill(part, number)
        self.start(part)

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.kill()
            process.wait(10)
        self.running.clear()

    def pid(self, part: str) -> int:
        return self.running[part].pid

    def log(self, part: str) -> str:
        return self.plan.log(part).read_text(errors="replace")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [kubectl_path(), "--kubeconfig", str(self.plan.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True, timeout=30).stdout

    def metrics(self) -> dict[str, float]:
        """Cloud core's, by name with labels as in the text."""
        with _http(self.monitor_port) as text:
            lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def count(self, name: str, *labels: str) -> float:
        """Of cloud core's metrics all of a name whose labels contain every one of these texts, added up."""
        name = f"kubetwin_cloudcore_{name}"
        found = {n: v for n, v in self.metrics().items() if n == name or n.startswith(name + "{")}
        return sum(v for n, v in found.items() if all(label in n for label in labels))

    def _command(self, part: str) -> list[str]:
        if part == "device":
            numbers = [str(UNITS), str(REGISTERS), str(self.plan.modbus_port)]
            return [sys.executable, "-m", "benchmarks.modbus_fleet", *numbers]
        return self.plan.command(part)

    def _answers(self, part: str) -> bool:
        process = self.running[part]
        assert process.poll() is None, f"{part} has ended:\n{self.log(part)[-3000:]}"
        match part:
            case "apiserver":
                with self.direct() as api:
                    return bool(api.request("GET", "/version"))
            case "edgecore":
                return _accepts(socket.AF_UNIX, str(self.plan.directory / "dmi.sock"))
        ports = {
            "cloudcore": self.plan.hub_port,
            "mapper-modbus": self.plan.http_port,
            "device": self.plan.modbus_port,
        }
        return _accepts(socket.AF_INET, ("127.0.0.1", ports[part]))

    def _route_api(self) -> None:
        content = yaml.safe_load(self.plan.kubeconfig.read_text())
        cluster = content["clusters"][0]["cluster"]
        self.api.target = ("127.0.0.1", int(cluster["server"].rpartition(":")[2]))
        cluster["server"] = f"https://127.0.0.1:{self.api.port}"
        self.cloud_kubeconfig.touch(0o600)
        self.cloud_kubeconfig.write_text(yaml.safe_dump(content))

    @contextlib.contextmanager
    def direct(self) -> Iterator[Api]:
        """The API server, past the path that cloud core takes."""
        try:
            api = Api(self.plan.kubeconfig)
        except (OSError, TypeError) as error:  # not written yet
            raise AssertionError(error) from error
        try:
            yield api
        except OSError as error:
            raise AssertionError(error) from error
        finally:
            api.connection.close()


def _merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _accepts(family: socket.AddressFamily, address: Any) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(5)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _http(port: int) -> Iterator[str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            yield answer.read().decode()
    except OSError as error:
        raise AssertionError(error) from error
