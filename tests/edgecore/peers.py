"""Edge core's two peers, real on the wire: a small cloud on `cloudedge.serve`, and a mapper on `dmi`."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from picows import WSCloseCode

from cloudedge import ConnectionLost, Message, new_message, reply
from cloudedge.connection import Connection
from cloudedge.listening import Listener, ListenerLimits, serve
from cloudedge.message import now_ms
from cloudedge.resources import device_report
from cloudedge.tls import server_context
from dmi import (
    Desired,
    Device,
    DeviceId,
    DeviceModel,
    DmiError,
    ModelId,
    Reported,
    Twin,
    UnknownDevice,
    device_id,
)
from dmi.client import EdgeCoreClient, MapperInfo, Registration
from dmi.errors import PeerUnavailable
from dmi.server import serve_mapper

NODE = "edge-1"
DEADLINE_S = 15.0

Json = dict[str, Any]


class Watched:
    """Waiting for a condition on something that changes, with a deadline."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    async def notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        try:
            async with asyncio.timeout(DEADLINE_S), self._changed:
                await self._changed.wait_for(lambda: bool(condition()))
        except TimeoutError:
            raise AssertionError(f"never true within {DEADLINE_S:g} s: {what or condition}") from None


class FakeCloud(Watched):
    """Takes a node, answers as the real one does, and remembers the newest of everything."""

    def __init__(self, certificates: Path) -> None:
        super().__init__()
        self._certificates = certificates
        self._server: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._versions = itertools.count(1000)
        self.port = 0
        self.connection: Connection | None = None
        self.connected = 0
        self.confirming = True
        self.answers_membership = True
        self.confirms_uploads = False
        """Whether it says at the upgrade that it does, as ours; upstream's answers no upload. Set it before `start`."""
        self.answers_uploads = True
        self.limits = ListenerLimits()
        """As the one before."""
        self.uploads: list[Message] = []
        self.objects: dict[str, Json] = {}
        self.messages: list[Message] = []
        self.twins: dict[tuple[str, str], Json] = {}
        self.states: dict[str, Json] = {}
        self.acknowledged: set[str] = set()

    async def start(self) -> None:
        d = self._certificates
        context = server_context(ca_file=d / "ca.crt", cert_file=d / "server.crt", key_file=d / "server.key")
        self._server = await serve(
            lambda headers: headers["node_id"],
            self._open,
            host="127.0.0.1",
            port=self.port,
            ssl_context=context,
            confirms_uploads=self.confirms_uploads,
            limits=self.limits,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self.cut()
            await self._server.wait_closed()
            self._server = None

    async def cut(self) -> None:
        """Drop the connection, as a network does."""
        tasks = list(self._tasks)
        if self.connection is not None:
            self.connection.abort()
        if tasks:
            await asyncio.wait(tasks)

    def _open(self, connection: Connection) -> None:
        if self.connection is not None and not self.connection.is_closed:
            self.connection.hang_up(WSCloseCode.POLICY_VIOLATION, "a newer connection took over")
        self.connection = connection
        self.connected += 1
        task = asyncio.create_task(self._serve(connection), name="fake cloud")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                message = await connection.receive()
                self.messages.append(message)
                await self._take(connection, message)
                await self.notify()
        if self.connection is connection:
            self.connection = None
        await connection.close()

    async def _take(self, connection: Connection, message: Message) -> None:
        route = message.route
        if route.operation == "response":
            self.acknowledged.add(message.header.parent_msg_id)
        elif route.operation == "upload":
            self.uploads.append(message)
            if self.confirms_uploads and self.answers_uploads:
                await connection.send(reply(message, source="cloudhub"))
        elif route.resource == "membership/detail":
            if self.answers_membership:
                await self._answer_membership(connection, message)
        elif (report := device_report(route.resource)) is not None:
            device = f"{report.namespace}/{report.name}"
            if report.what == "state":
                self.states[device] = message.data()["device"]
            else:
                for name, twin in message.data()["twin"].items():
                    before = self.twins.get((device, name))
                    assert before is None or _time(twin) >= _time(before), f"older over newer: {before} {twin}"
                    self.twins[device, name] = twin
            if self.confirming:
                await self.confirm(message)

    async def confirm(self, report: Message) -> None:
        assert self.connection is not None
        answer = reply(report, source="devicecontroller", group="twin")
        route = msgspec.structs.replace(answer.route, resource="twin")
        await self.connection.send(msgspec.structs.replace(answer, route=route))

    async def _answer_membership(self, connection: Connection, message: Message) -> None:
        await connection.send(reply(message, source="devicecontroller", group="twin"))
        devices = [o["metadata"] for o in self.objects.values() if o["kind"] == "Device"]
        listed = [{"id": f"{m['namespace']}/{m['name']}", "name": m["name"]} for m in devices]
        content = {"event_id": "e", "timestamp": now_ms(), "devices": listed}
        await connection.send(
            new_message(
                source="devicecontroller",
                group="twin",
                operation="update",
                resource="membership/detail",
                content=content,
            )
        )
        for kind, operation in (("DeviceModel", "insert"), ("Device", "update")):
            for obj in self.objects.values():
                if obj["kind"] == kind:
                    await connection.send(object_message(operation, obj))

    async def send(self, message: Message) -> None:
        await self.until(lambda: self.connection is not None, "a node is connected")
        assert self.connection is not None
        await self.connection.send(message)

    def keep(self, obj: Json) -> Json:
        """An object as the API has it, with a new version."""
        version = str(next(self._versions))
        metadata = {"uid": f"uid-{obj['metadata']['name']}", **obj["metadata"], "resourceVersion": version}
        obj = {**obj, "metadata": metadata}
        self.objects[f"{obj['kind']}/{metadata['namespace']}/{metadata['name']}"] = obj
        return obj

    async def put(self, obj: Json, operation: str = "insert") -> None:
        """Create or change an object, and wait until the edge has it."""
        message = object_message(operation, self.keep(obj))
        await self.send(message)
        await self.until(lambda: message.id in self.acknowledged, f"{message.describe()} acknowledged")

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        obj = self.objects.pop(f"{kind}/{namespace}/{name}")
        message = object_message("delete", obj)
        await self.send(message)
        await self.until(lambda: message.id in self.acknowledged, f"{message.describe()} acknowledged")

    async def until_value(self, device: str, name: str, value: str) -> Json:
        def there() -> bool:
            twin = self.twins.get((device, name))
            return twin is not None and twin.get("actual", {}).get("value") == value

        await self.until(there, f"{device} {name} = {value}, not {self.twins.get((device, name))}")
        return self.twins[device, name]

    async def until_state(self, device: str, state: str) -> Json:
        await self.until(lambda: self.states.get(device, {}).get("state") == state, f"{device} is {state}")
        return self.states[device]


def _time(twin: Json) -> int:
    """When it was collected; 0: it never was."""
    return int(twin.get("actual", {}).get("metadata", {}).get("timestamp", 0))


def object_message(operation: str, obj: Json, source: str = "devicecontroller") -> Message:
    metadata = obj["metadata"]
    return new_message(
        source=source,
        group="resource",
        operation=operation,
        resource=f"{metadata['namespace']}/{obj['kind'].lower()}/{metadata['name']}",
        content=obj,
        resource_version=metadata["resourceVersion"],
    )


def model_object(name: str = "boiler", protocol: str = "modbus", types: Mapping[str, str] | None = None) -> Json:
    types = types or {"temperature": "FLOAT", "setpoint": "INT", "label": "STRING"}
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "protocol": protocol,
            "properties": [{"name": n, "type": t, "accessMode": "ReadWrite"} for n, t in types.items()],
        },
    }


def device_object(
    name: str = "boiler-1",
    *,
    model: str = "boiler",
    protocol: str = "modbus",
    properties: Sequence[str] = ("temperature", "setpoint"),
    desired: Mapping[str, str] | None = None,
) -> Json:
    return {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "Device",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "deviceModelRef": {"name": model},
            "nodeName": NODE,
            "protocol": {"protocolName": protocol, "configData": {"ip": "127.0.0.1", "port": 1502}},
            "properties": [
                {
                    "name": p,
                    "desired": {"value": (desired or {}).get(p, "")},
                    "visitors": {"protocolName": protocol, "configData": {"register": "HoldingRegister", "offset": i}},
                    "collectCycle": 1000,
                    "reportToCloud": True,
                }
                for i, p in enumerate(properties)
            ],
        },
        "status": {},
    }


class FakeMapper(Watched):
    """A mapper that reports what the test tells it to, and remembers what it was told."""

    def __init__(self, directory: Path, *, name: str = "mapper-1", protocol: str = "modbus") -> None:
        super().__init__()
        self.info = MapperInfo(name=name, protocol=protocol, address=str(directory / f"{name}.sock"))
        self.client = EdgeCoreClient(directory / "dmi.sock")
        self.devices: dict[DeviceId, Device] = {}
        self.models: dict[ModelId, DeviceModel] = {}
        self.calls: list[tuple[str, str]] = []
        self.refusing = ""
        self.held: asyncio.Event | None = None

    async def register(self) -> Registration:
        answer = await self._registered()
        self.devices = {d.id: d for d in answer.devices}
        self.models = {m.id: m for m in answer.models}
        return answer

    async def _registered(self) -> Registration:
        """As mappers do: an edge core that cannot be reached, on a busy machine too, is tried again."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return await self.client.register(self.info)
                except PeerUnavailable:
                    await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def running(self, *, register: bool = True) -> AsyncIterator["FakeMapper"]:
        async with serve_mapper(self, self.info.address), self.client:
            if register:
                await self.register()
            yield self

    async def report(self, device: str, *, at_ms: int = 0, **values: str) -> None:
        at_ms = at_ms or now_ms()
        twins = [Twin(n, reported=Reported(value=v, type="float", collected_ms=at_ms)) for n, v in values.items()]
        await self.client.report_twins(DeviceId(device), twins)

    async def apply_device(self, device: Device) -> None:
        await self._called("device", device.id)
        self.devices[device.id] = device
        await self.notify()

    async def remove_device(self, device: DeviceId) -> None:
        await self._called("remove", device)
        if device not in self.devices:
            raise UnknownDevice(device)  # upstream's Go mappers crash here
        del self.devices[device]
        await self.notify()

    async def apply_model(self, model: DeviceModel) -> None:
        await self._called("model", model.id)
        self.models[model.id] = model
        await self.notify()

    async def remove_model(self, model: ModelId) -> None:
        await self._called("remove model", model)
        self.models.pop(model, None)

    async def get_device(self, device: DeviceId) -> tuple[Device, Sequence[Twin]]:
        raise AssertionError("never called: Go mappers crash on it")

    async def _called(self, what: str, which: str) -> None:
        self.calls.append((what, which))
        await self.notify()
        if self.held is not None:
            await self.held.wait()
        if self.refusing:
            raise DmiError(self.refusing)

    async def until_device(self, name: str, condition: Callable[[Device], object] = lambda _: True) -> Device:
        id_ = device_id("default", name)
        await self.until(lambda: id_ in self.devices and condition(self.devices[id_]), f"{id_} at the mapper")
        return self.devices[id_]


def desired_twin(name: str, value: str, write: Any = "applied", at_ms: int = 0) -> Twin:
    return Twin(
        name,
        reported=Reported(value=value, type="int", collected_ms=at_ms or now_ms()),
        desired=Desired(value=value, type="int", updated_ms=at_ms or now_ms(), write=write),
    )
