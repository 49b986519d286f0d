"""A cloud with its edge controller, and an edge core of upstream's to play against it, with recorded requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloudcore.audit import Audit
from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.devicecontroller import DeviceController
from cloudcore.edgecontroller import EdgeController, EdgeSettings, Records
from cloudcore.edgecontroller.kinds import CONFIG_MAPS, NODES, PODS, SECRETS
from cloudcore.kube import Key, KubeClient, Object
from cloudedge import Message, tls
from dmi.metrics import Gauge, Metrics
from tests.cloudcore.support import Cloud, Edge

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "captures" / "upstream-websocket.jsonl").read_text().splitlines()
]


def recorded(direction: str, operation: str, resource: str, at: int = 0) -> Any:
    """A recorded message of edge core (`up`) or cloud core (`down`), of node edge1."""
    wanted = {"up": "edge->cloud", "down": "cloud->edge"}[direction]
    found = [
        line["msg"]
        for line in RECORDED
        if line["dir"] == wanted
        and (line["msg"]["route"]["operation"], line["msg"]["route"]["resource"]) == (operation, resource)
        and line["msg"]["route"]["source"] in ("edged", "edgecontroller")
        and not (direction == "up" and line["msg"]["header"].get("parent_msg_id"))
    ]
    return found[at]


class EdgeCloud(Cloud):
    def __init__(self, devices: DeviceController, hub: CloudHub, certs: Path, edge: EdgeController, metrics: Metrics):
        super().__init__(devices, hub, certs)
        self.edge_controller = edge
        self.metrics = metrics

    def refused(self, reason: str) -> int:
        return int(self.metrics.counter("kubetwin_cloudcore_refused_total", "", "reason").values[reason,])

    def waiting(self) -> int:
        """Requests that wait or are worked on."""
        gauge = self.metrics.entries["kubetwin_cloudcore_edge_requests"].source
        assert isinstance(gauge, Gauge)
        return int(sum(gauge.read().values()))

    def outcomes(self, type_: str) -> dict[str, int]:
        counter = self.metrics.counter("kubetwin_cloudcore_edge_requests_total", "", "type", "outcome")
        return {outcome: int(count) for (kind, outcome), count in counter.values.items() if kind == type_}


@asynccontextmanager
async def edge_cloud(
    client: KubeClient, certs: Path, *, settings: EdgeSettings | None = None, records: Records | None = None
) -> AsyncIterator[EdgeCloud]:
    metrics = Metrics()
    audit = Audit(metrics)
    devices = DeviceController(client, audit=audit)
    context = tls.server_context(
        ca_file=certs / "ca.crt", cert_file=certs / "server.crt", key_file=certs / "server.key"
    )

    def node_of_device(key: Key) -> str:
        device = devices.devices.get(key)
        return str(device["spec"].get("nodeName")) if device is not None else ""

    edge = EdgeController(
        client,
        settings or EdgeSettings(address="192.0.2.10"),
        node_of_device=node_of_device,
        records=records,
        audit=audit,
        metrics=metrics,
    )
    hub = CloudHub(HubSettings(host="127.0.0.1", port=0), ssl_context=context, devices=devices, requests=edge)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in (devices, edge, hub)]
        try:
            await hub.listening.wait()
            yield EdgeCloud(devices, hub, certs, edge, metrics)
        finally:
            for task in tasks:
                task.cancel()


async def ask(edge: Edge, operation: str, resource: str, content: Any = None, **route: Any) -> Message:
    """Ask as module edged does, and wait for the answer."""
    route = {"source": "edged", "group": "meta", **route}
    return await edge.answer(await edge.send(operation=operation, resource=resource, content=content, **route))


def said(answer: Message) -> tuple[str, Any]:
    """Operation and content."""
    return answer.route.operation, json.loads(bytes(answer.content))


def text(patch: Any) -> str:
    """As a patch travels."""
    return json.dumps(patch)


def node(name: str = "edge-1", **labels: str) -> Object:
    all_labels = {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": "", **labels}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": all_labels}, "spec": {}}


def pod(name: str = "p1", on: str = "edge-1", **spec: Any) -> Object:
    """One that refers to config map `cm1` and secret `s1`."""
    container = {
        "name": "c",
        "image": "i",
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm1", "key": "a"}}}],
    }
    whole = {
        "nodeName": on,
        "containers": [container],
        "volumes": [{"name": "s", "secret": {"secretName": "s1"}}],
        **spec,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": whole}


def config_map(name: str = "cm1", value: str = "b") -> Object:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": value}}


def secret(name: str = "s1", value: str = "cQ==") -> Object:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"p": value}}


async def furnish(kube: KubeClient) -> dict[str, Object]:
    """Two edge nodes, a pod of edge-1 with what it refers to, and things of others."""
    made: dict[str, Object] = {}
    for kind, obj in (
        (NODES, node()),
        (NODES, node("edge-2")),
        (CONFIG_MAPS, config_map()),
        (SECRETS, secret()),
        (CONFIG_MAPS, config_map("cm-other")),
        (SECRETS, secret("s-other")),
        (PODS, pod()),
        (PODS, pod("p2", on="edge-2", volumes=[{"name": "s", "secret": {"secretName": "s-other"}}])),
    ):
        stored = await kube.create(kind, obj)
        made[f"{kind.kind.lower()}/{stored['metadata']['name']}"] = stored
    return made
