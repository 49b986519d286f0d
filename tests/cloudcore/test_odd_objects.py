"""Objects of the API that are large, odd, or another's: what becomes of those beside them, and of the process."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.devicecontroller.conditions import NodeView, appearance
from cloudcore.devicecontroller.declarations import examine
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.devicecontroller.known import Known
from cloudcore.devicecontroller.render import MAX_PROBLEMS, render
from cloudcore.devicecontroller.shown import Shown
from cloudcore.edgecontroller.kinds import NODES
from cloudcore.edgecontroller.node_requests import CLOUD_ANNOTATION
from cloudcore.kube import Key, Kind, Object, identity
from dmi.crd import API_VERSION
from kubetwin.apiserver import ApiServer
from tests.cloudcore.edge_world import edge_cloud, node
from tests.cloudcore.support import Kubernetes, device, install_crds, model, open_client, running_cloud, until

KEY = Key("default", "thermo-1")


def rendered(device_object: Object, model_object: Object) -> Object:
    declared = examine(KEY, device_object, lambda _: model_object)
    shown = appearance(Known(), declared, Shown(), node=NodeView(), now_ms=1)
    return render(Known(), declared, shown)


@pytest.mark.parametrize("field", ("protocol", "type", "accessMode"))
def test_what_is_wrong_is_quoted_in_short(field: str) -> None:
    """A model of a megabyte is in the problems of each of its thousands of devices."""
    odd = model()
    (odd["spec"] if field == "protocol" else odd["spec"]["properties"][0])[field] = "x" * 1_000_000
    declared = examine(KEY, device(), lambda _: odd)
    assert [len(problem.message) for problem in declared.problems] == [512]
    assert len(declared.blocked) in (0, 512)
    status = rendered(device(), odd)
    assert status["extensions"]["problems"][0]["message"].endswith("…")
    assert len(json.dumps(status)) < 8192


def test_of_thousands_of_problems_the_first_are_shown() -> None:
    names = ["p" * 1000, *(f"p{number}" for number in range(4999))]
    status = rendered(device(properties=[{"name": name} for name in names]), model())
    problems = status["extensions"]["problems"]
    assert len(problems) == MAX_PROBLEMS + 1
    assert [problem["property"] for problem in problems[:2]] == ["p" * 253, "p0"]
    assert problems[-1] == {"reason": "MoreProblems", "message": "4900 more, which are not shown"}
    assert len(json.dumps(status)) < 50_000


async def test_what_another_device_was_is_no_news_about_this_one(kube: Kubernetes, certs: Path) -> None:
    other = await kube.create(DEVICES, device("other"))  # of one that is gone it would be collected
    owner = {"apiVersion": API_VERSION, "kind": "Device", "name": "other", "uid": identity(other)}
    metadata: Object = {"name": "thermo-1", "namespace": "default", "ownerReferences": [owner]}
    shown = {"state": "online", "twins": [], "extensions": {"conditions": [condition("Declared"), condition("Online")]}}
    left = {"apiVersion": API_VERSION, "kind": "DeviceStatus", "metadata": metadata, "spec": {}, "status": shown}
    await kube.create(STATUSES, left)
    await kube.create(DEVICES, device())  # without its model
    kube.created.clear()
    async with running_cloud(kube, certs, controller=ControllerSettings(grace_s=0.0)) as cloud:
        status = await kube.until_status("thermo-1", lambda status: status["state"] == "unknown")
        assert status["extensions"]["conditions"][0]["reason"] == "MissingModel"
        assert KEY in kube.created, "it is made anew"
        await until(lambda: not len(cloud.controller.writer._queue), what="the writer is through with it")
        assert not cloud.controller.events._windows


def condition(type_: str) -> Object:
    return {"type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": ""}


async def test_questions_to_nodes_that_never_came_are_forgotten(kube: Kubernetes, certs: Path) -> None:
    async with running_cloud(kube, certs, controller=ControllerSettings(grace_s=60.0)) as cloud:
        queries = cloud.controller.queries
        await kube.create(MODELS, model())
        for number in range(3):
            await kube.create(DEVICES, device(f"d{number}", nodeName=f"gone-{number}"))
        await until(lambda: len(kube.created) == 3)
        for number in range(3):
            question = {"status": {"extensions": {"queries": {"abcdefgh": {"ask": "path", "asked_ms": 1}}}}}
            await kube.patch(STATUSES, Key("default", f"d{number}"), question)
        await until(lambda: len(queries._held) == 3, what="their nodes may come back at once")
        for number in range(3):
            await kube.delete(DEVICES, Key("default", f"d{number}"))
        await until(lambda: not queries._asked)
        assert queries._held == {}


class Faulty(Kubernetes):
    """As if the code that works on node edge-1 had a fault."""

    async def patch(self, kind: Kind, key: Key, patch: Object, **how: Any) -> Object:
        if kind is NODES and key.name == "edge-1":
            raise LookupError("a fault")
        return await super().patch(kind, key, patch, **how)


async def test_a_node_that_cannot_be_marked_is_in_nobodys_way(
    api: ApiServer, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Faulty.open(kubeconfig=str(api.kubeconfig)) as kube:
        await install_crds(kube)
        for name in ("edge-1", "edge-2"):
            await kube.create(NODES, node(name))

        async with edge_cloud(kube, certs) as cloud, cloud.edge("edge-1", ask=False):
            await until(lambda: "node edge-1 could not be marked with our address" in caplog.messages)
            async with cloud.edge("edge-2", ask=False):
                known = cloud.edge_controller.objects
                await until(lambda: CLOUD_ANNOTATION in annotations(known.edge_node("edge-2")))


def annotations(obj: Object | None) -> Object:
    found: Object = ((obj or {}).get("metadata") or {}).get("annotations") or {}
    return found


async def test_an_early_report_that_shows_a_fault_does_not_end_the_process(
    tmp_path: Path, certs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for the caches is looked at by the task that everything hangs on."""
    async with ApiServer(tmp_path / "api") as api, await open_client(api) as kube:
        await install_crds(kube)
        await kube.create(MODELS, model())
        for name in ("thermo-1", "thermo-2"):
            await kube.create(DEVICES, device(name))
    merge = DeviceController._merge

    def faulty(self: DeviceController, link: Any, message: Any, report: Any, key: Key, found: Object) -> None:
        if key == KEY:
            raise LookupError("a fault")
        merge(self, link, message, report, key, found)

    monkeypatch.setattr(DeviceController, "_merge", faulty)
    async with await open_client(api) as kube, running_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        early = [await edge.report(name, {"valve": 3}) for name in ("thermo-1", "thermo-2")]
        await until(lambda: cloud.controller._early_count == 2)
        async with ApiServer(tmp_path / "api"):
            await edge.answer(early[1])
            assert not edge.answers(early[0])
    assert [r.message.partition("'")[0] for r in caplog.records if r.exc_info] == ["node edge-1: "]
