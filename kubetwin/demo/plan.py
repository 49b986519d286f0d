"""What the demo needs on disk and on the command line, derived from one folder. Pure but for `write`."""

from __future__ import annotations

import os
import socket
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from dmi.errors import ConfigError
from kubetwin.kubectl import kubectl_path

__all__ = ["NODE", "PROCESSES", "Plan", "make_plan"]

NODE: Final = "edge-1"
PROCESSES: Final = ("apiserver", "cloudcore", "edgecore", "mapper-modbus", "simulator")
_SOCKET_PATH_LIMIT: Final = 90


class Plan(Struct, frozen=True):
    """Where everything is."""

    directory: Path
    hub_port: int
    modbus_port: int
    http_port: int
    """Of the mapper's HTTP API and metrics."""

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def certificates(self) -> Path:
        return self.directory / "certs"

    @property
    def modbus(self) -> str:
        return f"127.0.0.1:{self.modbus_port}"

    @property
    def edge(self) -> Path:
        """Edge core's local API."""
        return self.directory / "edgecore.sock"

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def command(self, name: str) -> list[str]:
        """How to start a process, the same every time: what is running can be told by it."""
        d, python = self.directory, sys.executable
        match name:
            case "apiserver":
                data, kubeconfig = str(d / "apiserver"), str(self.kubeconfig)
                # --data comes last: a kubectl may well be running that ends in --kubeconfig and our file.
                return [python, "-m", "kubetwin", "apiserver", "--kubeconfig", kubeconfig, "--data", data]
            case "cloudcore" | "edgecore":
                return [python, "-m", name, "--config", str(d / f"{name}.yaml")]
            case "mapper-modbus":
                return [python, "-m", "kubetwin", "mapper", "run", "modbus", "--config", str(d / f"{name}.yaml")]
            case "simulator":
                return [python, "-m", "kubetwin", "simulate", "modbus", "--port", str(self.modbus_port)]
        raise ValueError(name)

    def settings(self) -> dict[str, Any]:
        """The configuration files by name: upstream's keys, nothing that a real installation would not write."""
        d, certs = self.directory, self.certificates
        return {
            "cloudcore.yaml": {
                "apiVersion": "cloudcore.config.kubeedge.io/v1alpha1",
                "kind": "CloudCore",
                "kubeAPIConfig": {"kubeConfig": str(self.kubeconfig)},
                "modules": {
                    "cloudHub": {
                        "tlsCAFile": str(certs / "ca.crt"),
                        "tlsCAKeyFile": str(certs / "ca.key"),
                        "tlsCertFile": str(certs / "server.crt"),
                        "tlsPrivateKeyFile": str(certs / "server.key"),
                        "advertiseAddress": ["127.0.0.1"],
                        "https": {"address": "127.0.0.1", "port": 0},
                        "websocket": {"enable": True, "address": "127.0.0.1", "port": self.hub_port},
                    }
                },
            },
            "edgecore.yaml": {
                "apiVersion": "edgecore.config.kubeedge.io/v1alpha2",
                "kind": "EdgeCore",
                "database": {"dataSource": str(d / "edgecore.db")},
                "modules": {
                    "edged": {"hostnameOverride": NODE},
                    "edgeHub": {
                        "tlsCaFile": str(certs / "ca.crt"),
                        "tlsCertFile": str(certs / f"{NODE}.crt"),
                        "tlsPrivateKeyFile": str(certs / f"{NODE}.key"),
                        "websocket": {"enable": True, "server": f"127.0.0.1:{self.hub_port}"},
                    },
                    "deviceTwin": {"dmiSockPath": str(d)},
                },
            },
            "mapper-modbus.yaml": {
                "grpc_server": {"socket_path": str(d / "modbus.sock")},
                "common": {
                    "name": "modbus-mapper",
                    "version": "v1.0.0",
                    "api_version": "v1.0.0",
                    "protocol": "modbus",
                    "edgecore_sock": str(d / "dmi.sock"),
                    "http_port": self.http_port,
                },
            },
        }

    def manifests(self) -> str:
        """`examples/modbus`, with the address of the simulator."""
        documents: list[dict[str, Any]] = []
        for name in ("model.yaml", "device.yaml"):
            documents += yaml.safe_load_all((_examples() / name).read_text())
        for document in documents:
            if document["kind"] == "Device":
                document["spec"]["nodeName"] = NODE
                document["spec"]["protocol"]["configData"].update(ip="127.0.0.1", port=self.modbus_port)
        return yaml.safe_dump_all(documents, sort_keys=False)

    def write(self) -> None:
        """Put the configuration files in place."""
        (self.directory / "logs").mkdir(exist_ok=True)
        for name, content in self.settings().items():
            (self.directory / name).write_text(yaml.safe_dump(content, sort_keys=False))

    def write_summary(self, pids: dict[str, int]) -> None:
        """`demo.json`, for programs that drive the demo. Replaced whole, so that a reader never sees half of it."""
        content = {
            "kubeconfig": str(self.kubeconfig),
            "kubectl": kubectl_path(),
            "modbus": self.modbus,
            "mapper": f"http://127.0.0.1:{self.http_port}",
            "edge": str(self.edge),
            "pids": pids,
            "commands": {name: self.command(name) for name in PROCESSES},
        }
        file = self.directory / "demo.json"
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        temporary.replace(file)


def make_plan(directory: Path | None) -> Plan:
    """Choose and create the folder, private to the user, and find free ports.

    Raises:
        ConfigError: The folder belongs to somebody else, or its path is too long for unix sockets.
    """
    directory = (directory or Path(f"/tmp/kubetwin-demo-{os.getuid()}")).absolute()  # noqa: S108 - ownership is checked
    if len(os.fsencode(directory)) > _SOCKET_PATH_LIMIT:
        raise ConfigError("--dir", f"{directory} is too long a path for unix sockets: choose one under 90 bytes")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise ConfigError("--dir", f"{directory} belongs to another user: choose another with --dir")
    hub_port, modbus_port, http_port = _free_ports(3)
    return Plan(directory=directory, hub_port=hub_port, modbus_port=modbus_port, http_port=http_port)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on. They are chosen now and bound by the processes, so that a restart finds them again."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _examples() -> Any:
    """`examples/modbus`: inside the package when installed from a wheel, in the repository otherwise."""
    packaged = files("kubetwin") / "examples" / "modbus"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent.parent / "examples" / "modbus"
