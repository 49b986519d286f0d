"""What edge nodes are sent: their Node, their pods, and the ConfigMaps and Secrets these refer to (contract 5.3)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cloudcore.edgecontroller.kinds import CONFIG_MAPS, NODES, PODS, SECRETS
from cloudcore.kube import Key, Object
from cloudcore.synccontroller import Records
from cloudedge import Message
from tests.cloudcore.edge_world import ask, config_map, edge_cloud, furnish, node, pod, recorded, secret, text
from tests.cloudcore.support import Edge, Kubernetes, until

CM, S, P, N = "default/configmap/cm1", "default/secret/s1", "default/pod/p1", "null/node/edge-1"


def sent(edge: Edge, resource: str) -> list[tuple[str, Any]]:
    """Operations and contents, acknowledged or not."""
    return [
        (m.route.operation, json.loads(bytes(m.content)))
        for m in edge.received
        if m.route.resource == resource and not m.header.parent_msg_id
    ]


async def until_sent(edge: Edge, resource: str, count: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = await until(
        lambda: s if len(s := sent(edge, resource)) >= count else None, what=f"{count} of {resource}"
    )
    return found


def check_object(message: Message, original: Any) -> None:
    content = json.loads(bytes(message.content))
    assert (message.route.source, message.route.group) == ("edgecontroller", "resource")
    assert message.header.resourceversion == content["metadata"]["resourceVersion"]
    assert {"apiVersion", "kind"} <= set(content)
    assert content["metadata"]["uid"]
    assert (content["apiVersion"], content["kind"]) == (
        original["content"]["apiVersion"],
        original["content"]["kind"],
    )


async def test_a_node_gets_what_is_its_own(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        assert (await until_sent(edge, P, 1))[0][0] == "insert"
        assert (await until_sent(edge, CM, 1))[0][1]["data"] == {"a": "b"}
        assert (await until_sent(edge, S, 1))[0][0] == "update"
        assert (await until_sent(edge, N, 1))[0][0] == "update"
        for resource, original in ((P, "default/pod/p1"), (CM, "default/configmap/cm1"), (N, "null/node/edge1")):
            message = next(m for m in edge.received if m.route.resource == resource)
            check_object(message, recorded("down", "insert" if resource == P else "update", original))

        # A change of the config map, of the secret, of the pod's and the node's labels.
        await kube.patch(CONFIG_MAPS, Key("default", "cm1"), {"data": {"a": "c"}})
        assert (await until_sent(edge, CM, 2))[1][1]["data"] == {"a": "c"}
        await kube.patch(SECRETS, Key("default", "s1"), {"data": {"p": "cg=="}})
        assert (await until_sent(edge, S, 2))[1][1]["data"] == {"p": "cg=="}
        await kube.patch(PODS, Key("default", "p1"), {"metadata": {"labels": {"a": "b"}}})
        assert (await until_sent(edge, P, 2))[1][0] == "update"
        await kube.patch(NODES, Key("", "edge-1"), {"metadata": {"labels": {"a": "b"}}})
        assert (
            "a"
            in (await until(lambda: [c for _, c in sent(edge, N) if "a" in c["metadata"]["labels"]]))[0]["metadata"][
                "labels"
            ]
        )

        # Status alone is nothing to be sent (contract 8.3 #12), nor is what belongs to others.
        nodes_before = len(sent(edge, N))
        await ask(edge, "patch", "default/podpatch/p1", text({"status": {"phase": "Running"}}))
        await ask(edge, "patch", "null/nodepatch/edge-1", text({"status": {"phase": "Running"}}))
        # A secret that the pod refers to from now on, and one it does not any more.
        await kube.create(SECRETS, secret("s2"))
        await kube.create(PODS, pod("p3", volumes=[{"name": "s", "secret": {"secretName": "s2"}}]))
        await until_sent(edge, "default/secret/s2", 1)
        assert len(sent(edge, P)) == 2
        assert len(sent(edge, N)) == nodes_before

        await kube.delete(PODS, Key("default", "p3"))
        assert (await until_sent(edge, "default/pod/p3", 2))[1][0] == "delete"
        operation, content = (await until_sent(edge, "default/secret/s2", 2))[1]
        assert operation == "delete"
        assert set(content) == {"apiVersion", "kind", "metadata"}
        assert set(content["metadata"]) == {"name", "namespace", "uid"}
        await kube.delete(CONFIG_MAPS, Key("default", "cm1"))
        assert (await until_sent(edge, CM, 3))[2][0] == "delete"

        foreign = [m.route.resource for m in edge.received if "other" in m.route.resource or "p2" in m.route.resource]
        assert foreign == []


async def test_a_node_is_an_edge_by_its_label(kube: Kubernetes, certs: Path) -> None:
    plain: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}}
    await kube.create(NODES, plain)
    await kube.create(CONFIG_MAPS, config_map())
    await kube.create(SECRETS, secret())
    await kube.create(PODS, pod())
    async with (
        edge_cloud(kube, certs) as cloud,
        cloud.edge(ask=False) as edge,
        cloud.edge("edge-2", ask=False) as other,
    ):
        await kube.create(NODES, node("edge-2"))  # one that appears while connected
        await until_sent(other, "null/node/edge-2", 1)
        assert not [m for m in edge.received if m.route.group == "resource"]
        label = {"metadata": {"labels": {"node-role.kubernetes.io/edge": ""}}}
        await kube.patch(NODES, Key("", "edge-1"), label)
        for resource in (N, P, CM, S):
            await until_sent(edge, resource, 1)
        await until(lambda: marked(cloud.edge_controller.objects.edge_node("edge-1")))
        # Pods that came before the label are known whole: what they refer to is the node's.
        assert (await ask(edge, "query", CM)).route.operation == "response"


def marked(known: Object | None) -> bool:
    return known is not None and (known["metadata"].get("annotations") or {}).get("cloudcore") == "192.0.2.10"


async def test_what_changed_while_a_node_was_away(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    records = Records(kube)
    following = asyncio.create_task(records.run())
    try:
        await until(lambda: records.synced)
        async with edge_cloud(kube, certs, records=records) as cloud, cloud.edge(ask=False) as edge:
            for resource in (P, CM, S, N):
                await until_sent(edge, resource, 1)
            await until(
                lambda: all(int(r.version) for r in records.known("edge-1", ["Pod", "Secret"])) and not records.behind
            )
        # Neither node nor cloud are there when these go.
        await kube.delete(PODS, Key("default", "p1"))
        await kube.delete(SECRETS, Key("default", "s1"))
        async with edge_cloud(kube, certs, records=records) as cloud, cloud.edge(ask=False) as edge:
            for resource in (P, S, CM):
                operation, content = (await until_sent(edge, resource, 1))[0]
                assert (operation, bool(content["metadata"]["uid"])) == ("delete", True)
            await until(
                lambda: {r.kind for r in records.known("edge-1", ["Pod", "Secret", "ConfigMap", "Node"])} == {"Node"}
            )
    finally:
        following.cancel()


async def test_a_comparison_finds_what_events_did_not_tell(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        for resource in (P, CM, S, N):
            await until_sent(edge, resource, 1)
        downstream = cloud.edge_controller.downstream
        await until(lambda: list(downstream.told_nodes) == ["edge-1"])
        assert downstream.reconcile("edge-1") == (0, 0)
        downstream._views["edge-1"].told.pop(("Pod", Key("default", "p1")))
        assert downstream.reconcile("edge-1") == (1, 0)
        await until_sent(edge, P, 2)


@pytest.mark.parametrize("how", ("reconnect", "takeover"))
async def test_each_connection_is_told_everything(kube: Kubernetes, certs: Path, how: str) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud:
        async with cloud.edge(ask=False) as edge:
            await until_sent(edge, S, 1)
            if how == "takeover":
                async with cloud.edge(ask=False) as newer:
                    for resource in (P, CM, S, N):
                        await until_sent(newer, resource, 1)
        if how == "reconnect":
            async with cloud.edge(ask=False) as again:
                for resource in (P, CM, S, N):
                    await until_sent(again, resource, 1)
