"""Pods that were made anew on another node before the watch has said so: a name is not the pod it was."""

import json
from pathlib import Path

import pytest

from cloudcore.edgecontroller.kinds import PODS
from cloudcore.kube import Key, Object, identity
from tests.cloudcore.edge_world import EdgeCloud, ask, edge_cloud, furnish, pod, text
from tests.cloudcore.support import Kubernetes, until
from tests.cloudcore.test_edgecontroller_downstream import P, sent, until_sent

P1 = Key("default", "p1")


def hold_watch(cloud: EdgeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pods there are is not told any more."""
    watch = cloud.edge_controller.objects._pods
    monkeypatch.setattr(watch, "_take", lambda *_, **__: None)
    monkeypatch.setattr(watch, "_drop", lambda *_, **__: None)


async def move(kube: Kubernetes) -> Object:
    """As a StatefulSet does whose node was drained: the same name on another one."""
    await kube.delete(PODS, P1)
    return await kube.create(PODS, pod("p1", on="edge-2"))


async def test_a_node_is_not_sent_the_pod_of_another(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await furnish(kube))["pod/p1"]
    async with edge_cloud(kube, certs) as cloud:
        async with cloud.edge(ask=False) as edge:
            await until_sent(edge, P, 1)
            hold_watch(cloud, monkeypatch)
            moved = await move(kube)
            downstream = cloud.edge_controller.downstream
            downstream._views["edge-1"].told.pop(("Pod", P1))  # it is looked at again, for whatever reason
            downstream.note("edge-1", PODS, P1)
            await until(lambda: not len(downstream))
        async with cloud.edge(ask=False) as again:
            await until_sent(again, "default/secret/s1", 1)
            await until(lambda: not len(downstream))
            uids = {content["metadata"]["uid"] for one in (edge, again) for _, content in sent(one, P)}
            assert uids == {identity(made)} != {identity(moved)}


@pytest.mark.parametrize("options", ({}, {"preconditions": {}}))
async def test_a_node_ends_and_reports_its_own_pod_alone(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch, options: Object
) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await until_sent(edge, P, 1)
        hold_watch(cloud, monkeypatch)
        moved = await move(kube)
        status = text({"status": {"phase": "Failed"}})
        answer = await ask(edge, "patch", "default/podpatch/p1", status)
        assert json.loads(bytes(answer.content))["Err"]["ErrStatus"]["code"] == 409
        answer = await ask(edge, "delete", P, {"gracePeriodSeconds": 0, **options})
        assert answer.route.operation == "error"
        named = {"gracePeriodSeconds": 0, "preconditions": {"uid": identity(moved)}}
        answer = await ask(edge, "delete", P, named)
        assert (answer.route.operation, cloud.refused("pod of another node")) == ("error", 1)
        found = await kube.get(PODS, P1)
        assert (identity(found), (found.get("status") or {}).get("phase")) == (identity(moved), "Pending")
