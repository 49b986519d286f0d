"""A mapper made of nothing but reports, and a watcher of DeviceStatuses: what the twin figures are taken with."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from dmi import Device, DeviceId, DeviceModel, ModelId, Reported, Twin
from dmi.client import Sockets
from dmi.ports import EdgeCorePort, MapperInfo

__all__ = ["Api", "Reporter", "StatusWatch", "device_name", "manifests", "reporting"]

PROTOCOL = "load"


def device_name(number: int) -> str:
    return f"load-{number}"


def manifests(devices: int, properties: int, node: str) -> list[dict[str, Any]]:
    """One model and its devices."""
    names = [f"p{i}" for i in range(properties)]
    api = "devices.kubeedge.io/v1beta1"
    model = {
        "apiVersion": api,
        "kind": "DeviceModel",
        "metadata": {"name": "load", "namespace": "default"},
        "spec": {
            "protocol": PROTOCOL,
            "properties": [{"name": n, "type": "FLOAT", "accessMode": "ReadOnly", "unit": "C"} for n in names],
        },
    }
    spec = {
        "deviceModelRef": {"name": "load"},
        "nodeName": node,
        "protocol": {"protocolName": PROTOCOL, "configData": {}},
        "properties": [
            {"name": n, "collectCycle": 1000, "reportToCloud": True, "visitors": {"protocolName": PROTOCOL}}
            for n in names
        ],
    }
    return [
        model,
        *(
            {
                "apiVersion": api,
                "kind": "Device",
                "metadata": {"name": device_name(i), "namespace": "default", "labels": {"part": "load"}},
                "spec": spec,
            }
            for i in range(devices)
        ),
    ]


class Reporter:
    """Serves as a mapper of protocol `load`, and reports what it is told to."""

    def __init__(self, edgecore: EdgeCorePort) -> None:
        self._edgecore = edgecore
        self.devices: set[DeviceId] = set()
        self.last: dict[DeviceId, dict[str, str]] = {}
        """By device and property the newest value that was answered."""
        self._more = asyncio.Event()

    async def runs(self, devices: Sequence[DeviceId]) -> None:
        """Return once the edge core has handed over all of these."""
        async with asyncio.timeout(120):
            while not self.devices.issuperset(devices):
                self._more.clear()
                await self._more.wait()

    async def report(self, device: DeviceId, values: Mapping[str, str]) -> None:
        now_ms = time.time_ns() // 1_000_000
        twins = [Twin(n, Reported(v, "float", now_ms)) for n, v in values.items()]
        await self._edgecore.report_twins(device, twins)
        self.last.setdefault(device, {}).update(values)

    async def state(self, device: DeviceId) -> None:
        await self._edgecore.report_state(device, "online")

    # What the edge core calls; the devices are known from the manifests.

    async def apply_device(self, device: Device) -> None:
        self.devices.add(device.id)
        self._more.set()

    async def remove_device(self, device: DeviceId) -> None:
        self.devices.discard(device)

    async def apply_model(self, model: DeviceModel) -> None: ...

    async def remove_model(self, model: ModelId) -> None: ...

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        raise NotImplementedError("no edge core asks for it")


@contextlib.asynccontextmanager
async def reporting(dmi_socket: Path, *, folder: Path) -> AsyncIterator[Reporter]:
    """A registered mapper while the block runs."""
    side = Sockets(dmi_socket)
    address = str(folder / "load.sock")
    async with side.edgecore() as edgecore:
        reporter = Reporter(edgecore)
        async with side.serve_mapper(reporter, address):
            async with asyncio.timeout(60):
                await edgecore.wait_ready()
                answer = await edgecore.register(MapperInfo(name="load", protocol=PROTOCOL, address=address))
            reporter.devices.update(d.id for d in answer.devices)
            yield reporter


class Api:
    """One connection to the API: starting a kubectl takes longer than what is measured."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self.connection = http.client.HTTPSConnection(urlsplit(cluster["server"]).netloc, context=trust)
        self._headers = {"Authorization": f"Bearer {user['token']}"}

    def request(self, method: str, path: str, body: object = None, *, kind: str = "application/json") -> Any:
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {**self._headers, "Content-Type": kind})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise AssertionError(f"{method} {path}: {answer.status} {data[:300].decode()}")
        return msgspec.json.decode(data)

    def create(self, objects: Sequence[dict[str, Any]]) -> None:
        for obj in objects:
            plural = {"Device": "devices", "DeviceModel": "devicemodels"}[obj["kind"]]
            self.request("POST", f"/apis/devices.kubeedge.io/v1beta1/namespaces/default/{plural}", obj)

    def statuses(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.request("GET", "/apis/devices.kubeedge.io/v1beta1/devicestatuses")["items"]
        return items

    def stream(self, path: str) -> http.client.HTTPResponse:
        self.connection.request("GET", path, headers=self._headers)
        return self.connection.getresponse()


class _Metadata(msgspec.Struct, frozen=True):
    timestamp: str = "0"


class _Side(msgspec.Struct, frozen=True):
    value: str = ""
    metadata: _Metadata = _Metadata()


class _TwinSeen(msgspec.Struct, frozen=True):
    reported: _Side
    property_name: str = msgspec.field(name="propertyName")


class _Status(msgspec.Struct, frozen=True):
    twins: tuple[_TwinSeen, ...] = ()


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Object(msgspec.Struct, frozen=True):
    metadata: _Name
    status: _Status = _Status()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: _Object


class StatusWatch:
    """Follows all DeviceStatuses from now on: for each newly seen value the time from its collection until here."""

    def __init__(self, kubeconfig: Path) -> None:
        self.ages_ms: list[float] = []
        self.writes = 0
        self._seen: dict[tuple[str, str], int] = {}
        path = "/apis/devices.kubeedge.io/v1beta1/devicestatuses"
        api = Api(kubeconfig)
        listed = api.request("GET", path)
        for item in listed["items"]:
            status = msgspec.convert(item, _Object)
            self._note(status, None)
        self._api = api
        version = listed["metadata"]["resourceVersion"]
        self._response = api.stream(f"{path}?watch=true&resourceVersion={version}&timeoutSeconds=3600")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._api.connection.sock is not None:
            self._api.connection.sock.shutdown(2)
        self._thread.join(10)
        self._response.close()
        self._api.connection.close()

    def _read(self) -> None:
        decoder = msgspec.json.Decoder(_Event)
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            for line in self._response:
                now_ms = time.time_ns() / 1e6
                event = decoder.decode(line)
                if event.type in ("ADDED", "MODIFIED"):
                    self.writes += 1
                    self._note(event.object, now_ms)

    def _note(self, status: _Object, now_ms: float | None) -> None:
        for twin in status.status.twins:
            key = (status.metadata.name, twin.property_name)
            collected = int(twin.reported.metadata.timestamp)
            if collected > self._seen.get(key, 0):
                self._seen[key] = collected
                if now_ms is not None:
                    self.ages_ms.append(now_ms - collected)
