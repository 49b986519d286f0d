"""A cloud with all that keeps nodes and the API the same, and an edge that says what it has."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.kube import Key, KubeError, Object
from cloudcore.synccontroller import Records, SyncController, SyncSettings
from cloudcore.synccontroller.record import RECORDS
from cloudedge import Message, new_message, tls
from dmi.metrics import Metrics
from tests.cloudcore.support import DEADLINE_S, Cloud, Edge, Kubernetes

FAST = SyncSettings(every_s=0.2)


class SyncedCloud(Cloud):
    def __init__(self, controller: DeviceController, hub: CloudHub, certs: Path, records: Records) -> None:
        super().__init__(controller, hub, certs)
        self.records = records
        self.metrics = Metrics()

    def count(self, name: str, *labels: str) -> float:
        """A counter, in all or of these label values."""
        counter = self.metrics.counter(f"kubetwin_cloudcore_{name}", "")
        return counter.values[labels] if labels else counter.total()


@asynccontextmanager
async def synced_cloud(kube: Kubernetes, certs: Path, settings: SyncSettings = FAST) -> AsyncIterator[SyncedCloud]:
    metrics = Metrics()
    records = Records(kube, metrics=metrics)
    controller = DeviceController(kube, ControllerSettings(patch_interval_s=0.05), records=records, metrics=metrics)
    sync = SyncController(kube, records, [controller.downstream], settings, metrics=metrics)
    context = tls.server_context(
        ca_file=certs / "ca.crt", cert_file=certs / "server.crt", key_file=certs / "server.key"
    )
    hub = CloudHub(HubSettings(host="127.0.0.1", port=0), ssl_context=context, devices=controller)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in (controller, sync, hub)]
        try:
            await hub.listening.wait()
            cloud = SyncedCloud(controller, hub, certs, records)
            cloud.metrics = metrics
            yield cloud
        finally:
            for task in tasks:
                task.cancel()


async def ask(edge: Edge, objects: object) -> Message:
    """Ask for the membership as our edge core does, and wait for the confirmation."""
    content = {"event_type": "group_membership_event", "event_id": "e", "operation": "detail", "objects": objects}
    request = new_message(
        source="twin", group="resource", operation="get", resource="membership/detail", content=json.dumps(content)
    )
    await edge.connection.send(request)
    return await edge.answer(request)


def stored(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]


def sent(edge: Edge) -> list[tuple[str, str]]:
    """Operation and resource of every object message."""
    return [(m.route.operation, m.route.resource) for m in edge.received if m.route.group == "resource"]


async def recorded(kube: Kubernetes, node: str, obj: Object) -> Object | None:
    """The ObjectSync about an object at a node."""
    try:
        return await kube.get(RECORDS, Key("default", f"{node}.{obj['metadata']['uid']}"))
    except KubeError:
        return None


async def until_recorded(kube: Kubernetes, node: str, obj: Object, version: str | None) -> Object | None:
    """Until the record has that version; None: until there is none."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            record = await recorded(kube, node, obj)
            has = None if record is None else record.get("status", {}).get("objectResourceVersion")
            if has == version:
                return record
            await asyncio.sleep(0.02)
