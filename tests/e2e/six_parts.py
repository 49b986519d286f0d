"""The six parts of the path as processes that are killed and started one by one, in any order: the Kubernetes API,
cloud core, edge core, an MQTT broker, a mapper, and its device.
"""

import contextlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pymodbus.client import ModbusTcpClient

from benchmarks.twin.load import Api
from cloudcore import crds
from cloudedge.certificates import mint
from kubetwin.demo.plan import NODE, Plan
from kubetwin.kubectl import kubectl_path
from tests.e2e.gateway_app import GatewayApp
from tests.e2e.harness import wait_for

PARTS: Final = ("apiserver", "cloudcore", "edgecore", "broker", "mapper-modbus", "device")
DEVICE: Final = "boiler"
READ, WRITTEN = "level", "set-point"
_API: Final = "/apis/devices.kubeedge.io/v1beta1/namespaces/default"
_TWIN: Final = f"$hw/events/device/default/{DEVICE}/twin"
_RULE: Final = f"plant/{DEVICE}/{READ}"


class SixParts:
    """Made by `six_parts`; every part runs at first."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        hub, modbus, http, self.broker_port = ports
        self.plan = Plan(directory=directory, hub_port=hub, modbus_port=modbus, http_port=http)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.app = GatewayApp(self.broker_port, [f"{_TWIN}/get/result", f"{_TWIN}/update/document", _RULE])

    def write(self) -> None:
        """Configuration, certificates."""
        self.plan.write()
        edge = self.plan.directory / "edgecore.yaml"
        config = yaml.safe_load(edge.read_text())
        config["modules"]["eventBus"] = {
            "enable": True,
            "mqttMode": 2,
            "mqttServerExternal": f"tcp://127.0.0.1:{self.broker_port}",
            "topicRules": [{"devices": "default/*", "publish": "plant/{device}/{property}"}],
        }
        edge.write_text(yaml.safe_dump(config))
        mint(self.plan.certificates, nodes=[NODE], names=["127.0.0.1"])

    def declare(self) -> None:
        for manifest in (crds.render(), yaml.safe_dump_all(_manifests(self.plan.modbus_port))):
            command = [kubectl_path(), "--kubeconfig", str(self.plan.kubeconfig), "apply", "-f", "-"]
            subprocess.run(command, input=manifest, text=True, check=True, capture_output=True, timeout=30)

    def start(self, part: str) -> None:
        """Start a part, and return when it can be talked to."""
        with self.plan.log(part).open("ab") as log:
            self.running[part] = subprocess.Popen(
                self._command(part), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: self._listens(part), within_s=30, what=f"{part} listens")

    def kill(self, part: str) -> None:
        process = self.running.pop(part)
        assert process.poll() is None, f"{part} had ended by itself:\n{self.plan.log(part).read_text()[-3000:]}"
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def forget(self) -> None:
        """Empty the disks of an edge core and an API that are not running: what is left is as installed."""
        for database in ("edgecore.db", "apiserver/objects.db"):
            for file in self.plan.directory.glob(f"{database}*"):
                file.unlink()

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)

    def assert_running(self) -> None:
        for part, process in self.running.items():
            assert process.poll() is None, f"{part} has ended:\n{self.plan.log(part).read_text()[-3000:]}"

    # What is outside of the six: a hand at the device, an operator, and an app on the gateway.

    def turn(self, value: int) -> None:
        """The value that the device has from now on."""
        with self._modbus() as modbus:
            assert not modbus.write_register(0, value, device_id=1).isError()

    def register(self) -> int:
        with self._modbus() as modbus:
            return int(modbus.read_holding_registers(1, count=1, device_id=1).registers[0])

    def want(self, value: int) -> None:
        """What the operator wants of the other register."""
        patch = [{"op": "add", "path": "/spec/properties/1/desired", "value": {"value": str(value)}}]
        with self._api() as api:
            api.request("PATCH", f"{_API}/devices/{DEVICE}", patch, kind="application/json-patch+json")

    def shown(self) -> dict[str, Any]:
        """State, and by property the reported value, its quality and what became of the desired one."""
        with self._api() as api:
            status = api.request("GET", f"{_API}/devicestatuses/{DEVICE}").get("status", {})
        shown: dict[str, Any] = {"state": status.get("state")}
        for twin in status.get("twins", ()):
            reported, desired = twin["reported"], twin["observedDesired"]
            shown[twin["propertyName"]] = (
                reported["value"],
                reported.get("metadata", {}).get("quality", "good"),
                desired.get("metadata", {}).get("write", ""),
            )
        return shown

    def heard_over_mqtt(self) -> tuple[str, str]:
        """The read property's value as the app was last told of it: upstream's document, and the rule's topic."""
        document = self.app.json(f"{_TWIN}/update/document")["twin"][READ]
        return document["current"]["actual"]["value"], self.app.text(_RULE)

    def asked_over_mqtt(self, within_s: float) -> str:
        """The read property's value as the app gets it when it asks."""
        value: str = self.app.ask(f"{_TWIN}/get", within_s)["twin"][READ]["actual"]["value"]
        return value

    def why(self) -> subprocess.CompletedProcess[str]:
        ends = ["--kubeconfig", str(self.plan.kubeconfig), "--edge", str(self.plan.edge)]
        command = [sys.executable, "-m", "kubetwin", "why", *ends, f"default/{DEVICE}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def _command(self, part: str) -> list[str]:
        match part:
            case "broker":
                return [sys.executable, "-m", "tests.e2e.small_broker", str(self.broker_port)]
            case "device":
                return [sys.executable, "-m", "benchmarks.modbus_fleet", "1", "2", str(self.plan.modbus_port)]
        return self.plan.command(part)

    def _listens(self, part: str) -> bool:
        self.assert_running()
        match part:
            case "apiserver":
                with self._api() as api:
                    return bool(api.request("GET", "/version"))
            case "edgecore":
                return _accepts(socket.AF_UNIX, str(self.plan.directory / "dmi.sock"))
        port = {
            "cloudcore": self.plan.hub_port,
            "broker": self.broker_port,
            "mapper-modbus": self.plan.http_port,
            "device": self.plan.modbus_port,
        }[part]
        return _accepts(socket.AF_INET, ("127.0.0.1", port))

    @contextlib.contextmanager
    def _api(self) -> Iterator[Api]:
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

    @contextlib.contextmanager
    def _modbus(self) -> Iterator[ModbusTcpClient]:
        client = ModbusTcpClient("127.0.0.1", port=self.plan.modbus_port, timeout=5)
        wait_for(client.connect, within_s=10, what="the device takes a connection")
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def six_parts() -> Iterator[SixParts]:
    """All six, running, with one device of two registers that has reported."""
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        world = SixParts(Path(name), _ports(4))
        world.write()
        try:
            world.start("apiserver")
            world.declare()
            for part in PARTS[1:]:
                world.start(part)
            with world.app:
                yield world
        finally:
            world.stop()


def _ports(count: int) -> list[int]:
    """Free ones below those that Linux gives to whoever dials out: nobody takes them while their owner is dead."""
    free: list[int] = []
    while len(free) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(port)
    return free


def _accepts(family: socket.AddressFamily, address: Any) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(5)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


def _manifests(modbus_port: int) -> list[dict[str, Any]]:
    api = {"apiVersion": "devices.kubeedge.io/v1beta1"}
    properties = [
        {
            "name": name,
            "type": "INT",
            "accessMode": "ReadWrite",
            "visitors": {
                "protocolName": "modbus",
                "configData": {"register": "HoldingRegister", "offset": offset, "limit": 1, "dataType": "int"},
            },
        }
        for offset, name in enumerate((READ, WRITTEN))
    ]
    return [
        {
            **api,
            "kind": "DeviceModel",
            "metadata": {"name": "boiler", "namespace": "default"},
            "spec": {"protocol": "modbus", "properties": properties},
        },
        {
            **api,
            "kind": "Device",
            "metadata": {"name": DEVICE, "namespace": "default"},
            "spec": {
                "deviceModelRef": {"name": "boiler"},
                "nodeName": NODE,
                "protocol": {
                    "protocolName": "modbus",
                    "configData": {"ip": "127.0.0.1", "port": modbus_port, "slaveID": 1},
                },
                "properties": [{"name": n, "collectCycle": 500, "reportToCloud": True} for n in (READ, WRITTEN)],
            },
        },
    ]
