"""A cloud (controller and hub in this process), fake edges on real TLS WebSockets, and objects to give them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloudcore import crds
from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Key, Kind, KubeClient, KubeError, Object, Unavailable
from cloudedge import ConnectionLost, Message, new_message, reply, tls
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.message import now_ms
from cloudedge.resources import state_resource, twin_resource
from kubetwin.apiserver import ApiServer

DEADLINE_S = 15.0
CRDS = Kind(
    group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions", kind="CustomResourceDefinition"
)
NODES = ("edge-1", "edge-2")


async def until(condition: Callable[[], Any], *, what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, looked at often."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what or condition}"
        await asyncio.sleep(0.01)
    return value


class Kubernetes(KubeClient):
    """The real client, which remembers its writes and can be cut off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patched: list[tuple[float, Key, Object]] = []
        self.created: list[Key] = []
        self.cut = False

    async def patch(self, kind: Kind, key: Key, patch: Object, **how: Any) -> Object:
        if self.cut:
            raise Unavailable("cut off by the test")
        began = time.monotonic()
        answer = await super().patch(kind, key, patch, **how)
        if kind is STATUSES:
            self.patched.append((began, key, patch))
        return answer

    async def create(self, kind: Kind, obj: Object) -> Object:
        if self.cut:
            raise Unavailable("cut off by the test")
        answer = await super().create(kind, obj)
        if kind is STATUSES:
            self.created.append(Key("default", obj["metadata"]["name"]))
        return answer

    async def apply(self, kind: Kind, obj: Object) -> Object:
        """Create, or replace the spec."""
        try:
            return await super().create(kind, obj)
        except KubeError:
            key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
            return await super().patch(kind, key, {"spec": obj["spec"]})

    async def status(self, name: str) -> Object:
        status: Object = (await self.get(STATUSES, Key("default", name))).get("status") or {}
        return status

    async def until_status(self, name: str, condition: Callable[[Object], Any]) -> Object:
        """The DeviceStatus's status once the condition holds."""
        end, status = time.monotonic() + DEADLINE_S, {}
        while True:
            try:
                status = await self.status(name)
                if condition(status):
                    return status
            except KubeError:
                pass
            assert time.monotonic() < end, f"{name}: last seen {status}"
            await asyncio.sleep(0.02)


class Edge:
    """Plays a node: acknowledges objects like an edge core, and keeps all that came."""

    def __init__(self, connection: Connection, node: str) -> None:
        self.connection = connection
        self.node = node
        self.received: list[Message] = []
        self.acknowledging = True

    async def send(self, **route: Any) -> Message:
        message = new_message(**route)
        await self.connection.send(message)
        return message

    async def keep_alive(self) -> None:
        await self.send(source="websocket", group="resource", operation="keepalive", resource="node", content="ping")

    async def ask_membership(self) -> Message:
        text = f'{{"event_type":"group_membership_event","event_id":"e","group_id":"{self.node}","operation":"detail"}}'
        return await self.send(
            source="twin", group="resource", operation="get", resource="membership/detail", content=text
        )

    async def report(self, device: str, twins: dict[str, Any], *, type_: str = "int") -> Message:
        """`twins`: property → value, or a whole entry of the message."""
        content = {
            "event_id": "e",
            "timestamp": now_ms(),
            "twin": {
                n: v if isinstance(v, dict) or v is None else entry(str(v), type_=type_) for n, v in twins.items()
            },
        }
        resource = twin_resource("default", device)
        return await self.send(source="twin", group="resource", operation="update", resource=resource, content=content)

    async def report_state(self, device: str, state: str, **extra: Any) -> Message:
        content = {"event_id": "e", "timestamp": now_ms(), "device": {"name": device, "state": state, **extra}}
        resource = state_resource("default", device)
        return await self.send(source="twin", group="resource", operation="update", resource=resource, content=content)

    async def run(self) -> None:
        try:
            while True:
                message = await self.connection.receive()
                self.received.append(message)
                if message.route.group == "resource" and not message.header.parent_msg_id and self.acknowledging:
                    await self.connection.send(reply(message, source="meta", group="twin"))
        except ConnectionLost:
            return

    def answers(self, message: Message) -> list[Message]:
        return [m for m in self.received if m.header.parent_msg_id == message.id]

    async def answer(self, message: Message) -> Message:
        answers: list[Message] = await until(lambda: self.answers(message), what=f"answer to {message.describe()}")
        return answers[0]

    def objects(self, name: str) -> list[Message]:
        """Object messages about a device or model."""
        return [m for m in self.received if m.route.group == "resource" and m.route.resource.endswith(f"/{name}")]


def entry(value: str | None, *, type_: str = "int", at_ms: int | None = None, **extra: Any) -> dict[str, Any]:
    """One property of a twin report."""
    at_ms = now_ms() if at_ms is None else at_ms
    return {
        "actual": {"value": value, "metadata": {"timestamp": at_ms}},
        "optional": True,
        "metadata": {"type": type_},
        **extra,
    }


class Cloud:
    def __init__(self, controller: DeviceController, hub: CloudHub, certs: Path) -> None:
        self.controller = controller
        self.hub = hub
        self._certs = certs

    async def dial(self, node: str, *, certificate: str = "") -> Connection:
        name = certificate or node
        context = tls.client_context(
            ca_file=self._certs / "ca.crt",
            cert_file=self._certs / f"{name}.crt",
            key_file=self._certs / f"{name}.key",
        )
        return await connect(f"wss://127.0.0.1:{self.hub.port}", node=node, ssl_context=context)

    @asynccontextmanager
    async def edge(self, node: str = "edge-1", *, ask: bool = True) -> AsyncIterator[Edge]:
        edge = Edge(await self.dial(node), node)
        receiving = asyncio.create_task(edge.run())
        try:
            await edge.keep_alive()
            if ask:
                request = await edge.ask_membership()
                await edge.answer(request)
            yield edge
        finally:
            await edge.connection.close()
            await receiving


def model(name: str = "thermo", properties: list[dict[str, Any]] | None = None, **spec: Any) -> Object:
    properties = properties or [
        {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly", "unit": "Celsius"},
        {"name": "valve", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "10"},
    ]
    return {
        "apiVersion": MODELS.api_version,
        "kind": "DeviceModel",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"protocol": "modbus", "properties": properties, **spec},
    }


def device(name: str = "thermo-1", **spec: Any) -> Object:
    whole = {
        "deviceModelRef": {"name": "thermo"},
        "nodeName": "edge-1",
        "protocol": {"protocolName": "modbus", "configData": {"ip": "127.0.0.1"}},
        "properties": [
            {"name": "temperature", "visitors": {"protocolName": "modbus", "configData": {"offset": 0}}},
            {"name": "valve", "desired": {"value": "1"}},
        ],
        **spec,
    }
    return {
        "apiVersion": DEVICES.api_version,
        "kind": "Device",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {key: value for key, value in whole.items() if value is not None},
    }


async def open_client(api: ApiServer) -> Kubernetes:
    return await Kubernetes.open(kubeconfig=str(api.kubeconfig))


async def install_crds(kube: Kubernetes) -> None:
    for definition in crds.load():
        await kube.create(CRDS, definition)


@asynccontextmanager
async def running_cloud(
    client: KubeClient, certs: Path, *, hub: HubSettings | None = None, controller: ControllerSettings | None = None
) -> AsyncIterator[Cloud]:
    """Controller and hub until the block ends."""
    device_controller = DeviceController(client, controller)
    context = tls.server_context(
        ca_file=certs / "ca.crt", cert_file=certs / "server.crt", key_file=certs / "server.key"
    )
    settings = hub or HubSettings(host="127.0.0.1", port=0)
    cloud_hub = CloudHub(settings, ssl_context=context, devices=device_controller)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(device_controller.run()), group.create_task(cloud_hub.run())]
        try:
            await cloud_hub.listening.wait()
            yield Cloud(device_controller, cloud_hub, certs)
        finally:
            for task in tasks:
                task.cancel()
