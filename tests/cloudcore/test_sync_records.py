"""ObjectSync and ClusterObjectSync: what upstream's cloud core finds when it takes over (channel contract 4.4)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import Key, Kind, Object
from cloudcore.replicas import Replicas, ReplicaSettings
from cloudcore.synccontroller import Records, SyncController, SyncSettings
from cloudcore.synccontroller.record import (
    CLUSTER_RECORDS,
    RECORDS,
    acknowledged_object,
    newer,
    next_step,
    read_record,
    record_of,
    slim,
)
from cloudedge import new_message
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Kubernetes, device, model, open_client, until
from tests.cloudcore.sync_support import ask, recorded, stored, synced_cloud, until_recorded

THERMO_1 = Key("default", "thermo-1")
NODES = Kind(group="", version="v1", plural="nodes", kind="Node")


async def test_a_record_follows_what_the_node_acknowledges(kube: Kubernetes, certs: Path) -> None:
    made_model = await kube.create(MODELS, model())
    made = await kube.create(DEVICES, device())
    async with synced_cloud(kube, certs) as cloud, cloud.edge() as edge:
        record = await until_recorded(kube, "edge-1", made, stored(made)[1])
        assert record is not None
        assert record["kind"] == "ObjectSync"
        assert record["metadata"]["namespace"] == "default"
        assert record["spec"] == {
            "objectAPIVersion": "devices.kubeedge.io/v1beta1",
            "objectKind": "Device",
            "objectName": "thermo-1",
        }
        await until_recorded(kube, "edge-1", made_model, stored(made_model)[1])
        edge.acknowledging = False
        changed = await kube.patch(DEVICES, THERMO_1, {"spec": {"properties": [{"name": "valve"}]}})
        message = await until(
            lambda: [m for m in edge.objects("thermo-1") if m.header.resourceversion == stored(changed)[1]]
        )
        await asyncio.sleep(0.1)
        record = await recorded(kube, "edge-1", made)
        assert record is not None
        assert record["status"]["objectResourceVersion"] == stored(made)[1]  # sent is not acknowledged
        edge.acknowledging = True
        await edge.send(
            source="meta", group="twin", operation="response", resource=message[0].route.resource,
            content="OK", parent=message[0].id,
        )  # fmt: skip
        await until_recorded(kube, "edge-1", made, stored(changed)[1])
        await kube.delete(DEVICES, THERMO_1)
        await until_recorded(kube, "edge-1", made, None)
        await until_recorded(kube, "edge-1", made_model, None)
        assert cloud.count("sync_record_writes_total", "created") == 2
        assert cloud.count("sync_record_writes_total", "deleted") == 2


async def test_an_object_of_the_cluster_is_recorded_before_it_is_sent(kube: Kubernetes) -> None:
    records = Records(kube)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1", "uid": "uid-1", "resourceVersion": "7"}}
    running = asyncio.create_task(records.run())
    try:
        await until(lambda: records.synced)
        await records.ensure("edge-1", node)
        found = await kube.get(CLUSTER_RECORDS, Key("", "edge-1.uid-1"))
        assert found["status"] == {"objectResourceVersion": "0"}
        assert found["spec"] == {"objectAPIVersion": "v1", "objectKind": "Node", "objectName": "edge-1"}
        assert [r.version for r in records.known("edge-1", {"Node"})] == ["0"]
        assert not records.known("edge-1", {"Pod"})
        message = new_message(
            source="edgecontroller", group="resource", operation="update", resource="null/node/edge-1",
            content=node, resource_version="7",
        )  # fmt: skip
        records.acknowledged("edge-1", message)
        await until(lambda: not records.behind)
        found = await kube.get(CLUSTER_RECORDS, Key("", "edge-1.uid-1"))
        assert found["status"] == {"objectResourceVersion": "7"}
        records.forget("edge-1", "uid-1")
        assert not records.known("edge-1", {"Node"})
        await until(lambda: not records.nodes())
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_what_is_acknowledged_while_the_api_is_away_is_written_when_it_is_back(
    kube: Kubernetes, certs: Path
) -> None:
    await kube.create(MODELS, model())
    made = await kube.create(DEVICES, device())
    async with synced_cloud(kube, certs) as cloud:
        await until(lambda: cloud.controller.devices.get(THERMO_1) and cloud.records.synced)
        kube.cut = True
        async with cloud.edge():
            await until(lambda: cloud.records.behind == 2)
            await asyncio.sleep(0.2)
            assert await recorded(kube, "edge-1", made) is None
            kube.cut = False
            await until_recorded(kube, "edge-1", made, stored(made)[1])
        await until(lambda: not cloud.records.behind)


async def test_records_of_a_node_that_is_no_more_are_dropped(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    made = await kube.create(DEVICES, device())
    elsewhere = await kube.create(DEVICES, device("elsewhere", nodeName="edge-2"))
    for name in ("edge-1", "edge-2"):
        await kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    async with synced_cloud(kube, certs, SyncSettings(collect_every_s=0.1)) as cloud:
        async with cloud.edge("edge-1"), cloud.edge("edge-2"):
            await until_recorded(kube, "edge-1", made, stored(made)[1])
            await until_recorded(kube, "edge-2", elsewhere, stored(elsewhere)[1])
        await kube.delete(NODES, Key("", "edge-1"))
        await until_recorded(kube, "edge-1", made, None)
        assert await recorded(kube, "edge-2", elsewhere) is not None
        assert cloud.count("sync_collected_total") == 2


async def test_only_the_leader_collects(kube: Kubernetes) -> None:
    left = {
        "apiVersion": RECORDS.api_version,
        "kind": "ObjectSync",
        "metadata": {"name": "edge-9.uid-9", "namespace": "default"},
        "spec": {"objectAPIVersion": "v1", "objectKind": "Pod", "objectName": "p"},
    }
    await kube.create(RECORDS, left)
    records, leading = Records(kube), False
    sync = SyncController(kube, records, [], SyncSettings(collect_every_s=0.02), is_leader=lambda: leading)
    running = asyncio.create_task(sync.run())
    try:
        await until(records.nodes)
        await asyncio.sleep(0.2)
        assert records.nodes() == ("edge-9",)
        leading = True
        await until(lambda: not records.nodes())
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_leases_of_nodes_that_are_no_more_are_dropped(kube: Kubernetes) -> None:
    replicas = Replicas(kube, ReplicaSettings(name="a"))
    sync = SyncController(kube, Records(kube), [], SyncSettings(collect_every_s=0.05), owners=replicas)
    for name in ("away", "deleted"):
        await kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    running = [asyncio.create_task(part.run()) for part in (replicas, sync)]
    try:
        for name in ("away", "deleted", "connected"):
            await replicas.acquire(name)
        replicas.released("away")
        replicas.released("deleted")
        await kube.delete(NODES, Key("", "deleted"))
        await until(lambda: replicas.absent_nodes() == ["away"])
        assert replicas.status().owned == 2
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def test_an_upstream_record_without_a_status_is_taken_up(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    made = await kube.create(DEVICES, device())
    empty = {
        "apiVersion": RECORDS.api_version,
        "kind": "ObjectSync",
        "metadata": {"name": f"edge-1.{made['metadata']['uid']}", "namespace": "default"},
        "spec": {"objectAPIVersion": DEVICES.api_version, "objectKind": "Device", "objectName": "thermo-1"},
    }
    await kube.create(RECORDS, empty)
    async with synced_cloud(kube, certs) as cloud, cloud.edge() as edge:
        await ask(edge, {"default/device/thermo-1": stored(made)})
        await until_recorded(kube, "edge-1", made, stored(made)[1])


@pytest.mark.parametrize("version", ("", "0", "seven", "-1", "١٢", "9" * 40))
def test_a_version_that_is_no_number_is_older_than_all(version: str) -> None:
    assert newer("1", version)
    assert not newer(version, "1")
    assert not newer(version, version)


def _found(version: Any) -> Object:
    return slim(
        {"metadata": {"name": "n.u", "namespace": "d"}, "spec": {}, "status": {"objectResourceVersion": version}}
    )


def test_a_version_never_goes_back() -> None:
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d", "uid": "u"}}
    assert next_step(None, record_of("n", obj, "3")) == "create"
    assert next_step(_found(None), record_of("n", obj, "0")) == "update"
    assert next_step(_found("2"), record_of("n", obj, "3")) == "update"
    assert next_step(_found("3"), record_of("n", obj, "3")) == "nothing"
    assert next_step(_found("4"), record_of("n", obj, "3")) == "nothing"
    assert next_step(_found("4"), None) == "delete"
    assert next_step(None, None) == "nothing"
    record = read_record(_found("4"))
    assert record is not None
    assert (record.id.node, record.uid, record.version) == ("n", "u", "4")


def test_a_node_name_with_dots_is_all_but_the_last_element() -> None:
    record = read_record(slim({"metadata": {"name": "edge.a.b.uid-1", "namespace": "d"}}))
    assert record is not None
    assert (record.id.node, record.uid, record.version) == ("edge.a.b", "uid-1", "0")
    assert read_record(slim({"metadata": {"name": "nodots", "namespace": "d"}})) is None


async def test_records_stand_back_while_values_wait_to_be_written(kube: Kubernetes) -> None:
    busy = True
    records = Records(kube, busy=lambda: busy)
    running = asyncio.create_task(records.run())
    obj = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1", "uid": "uid-1"}}
    try:
        await until(lambda: records.synced)
        records.stored("edge-1", obj, "3")
        await asyncio.sleep(0.3)
        assert records.behind == 1
        assert not records.nodes()
        assert records.get("edge-1", "uid-1") is not None  # known before it is written
        busy = False
        await until(lambda: not records.behind)
        assert records.nodes() == ("edge-1",)
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_a_cluster_object_with_a_namespace_in_its_path_is_the_clusters() -> None:
    obj = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "v", "uid": "u"}}
    message = new_message(
        source="edgecontroller", group="resource", operation="response", resource="default/volumeattachment/v",
        content=obj, resource_version="4",
    )  # fmt: skip
    news = acknowledged_object("n", message)
    assert news is not None
    assert news.record == record_of("n", obj, "4")
    assert news.record.namespace == ""


@pytest.mark.parametrize("content", ("OK", None, [], {"metadata": {"uid": 3}}, {"metadata": {}}))
def test_an_acknowledged_message_about_no_object_is_no_news(content: Any) -> None:
    message = new_message(
        source="edgecontroller", group="resource", operation="update", resource="default/pod/p", content=content
    )
    assert acknowledged_object("n", message) is None


async def test_a_record_that_there_can_never_be_holds_nobody_up(kube: Kubernetes) -> None:
    records = Records(kube)
    running = asyncio.create_task(records.run())
    try:
        await until(lambda: records.synced)
        uid = "12345678-1234-1234-1234-123456789012"
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n" * 230, "uid": uid}}
        async with asyncio.timeout(4):  # less than a first send waits for its record
            await records.ensure("n" * 230, node)
        assert not records.known("n" * 230, {"Node"})
    finally:
        running.cancel()


async def test_records_of_a_node_that_another_replica_has_are_kept(api: ApiServer, kube: Kubernetes) -> None:
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "uid-1"}}
    async with await open_client(api) as other:
        leader, owner = (Replicas(c, ReplicaSettings(name=n)) for c, n in ((kube, "a"), (other, "b")))
        records = Records(kube)
        sync = SyncController(kube, records, [], is_leader=lambda: True, owners=leader)
        running = [asyncio.create_task(part.run()) for part in (leader, owner, sync)]
        try:
            await owner.acquire("edge-1")  # one that does not register itself
            await until(lambda: leader.is_elsewhere("edge-1"))
            await until(lambda: records.synced)
            await records.ensure("edge-1", obj)
            for _ in range(3):
                await sync._collect_now()
            assert records.known("edge-1", {"Pod"})
            await owner.forget_node("edge-1")
            assert not owner.absent_nodes()
            owner.released("edge-1")
            await owner.forget_node("edge-1")
            await until(lambda: not leader.is_elsewhere("edge-1"))
            for _ in range(2):
                await sync._collect_now()
            assert not records.known("edge-1", {"Pod"})
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
