"""A node with a good certificate and bad intentions, at the edge controller."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloudcore.edgecontroller import lanes, requests
from cloudcore.edgecontroller.graph import read_pod
from cloudcore.edgecontroller.kinds import NODES, PODS, SERVICE_ACCOUNTS, SIGNING_REQUESTS
from cloudcore.edgecontroller.lanes import Lanes
from cloudcore.kube import Invalid, Key, Object
from tests.cloudcore.edge_world import ask, edge_cloud, furnish, node, pod, said, text
from tests.cloudcore.support import Kubernetes

ELSEWHERE = "../../../apis/devices.kubeedge.io/v1beta1"
MIRROR = {"annotations": {"kubernetes.io/config.mirror": "h"}}


class Watched(Kubernetes):
    """The real client, which remembers what was asked for where."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.written: list[str] = []

    async def _request(self, method: str, path: str, **how: Any) -> Any:
        if method != "GET":
            self.written.append(path)
        return await super()._request(method, path, **how)


@pytest.mark.parametrize("name", ("a/b", "..", ".", "x/../../secrets"))
def test_no_name_leads_elsewhere_in_the_api(name: str) -> None:
    for namespace, of in ((name, "x"), ("default", name), (name, "")):
        with pytest.raises(Invalid):
            NODES.path(namespace, of)


async def test_the_namespace_of_a_cluster_scoped_object_is_nobodys_choice(
    kube: Kubernetes, api: Any, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudcore.edgecontroller.node_requests.check_signing_request", lambda *_: None)
    async with (
        await Watched.open(kubeconfig=str(api.kubeconfig)) as watched,
        edge_cloud(watched, certs) as cloud,
        cloud.edge(ask=False) as edge,
    ):
        for resource, made in (
            ("null/node/edge-1", node()),
            ("default/certificatesigningrequest/c", {"metadata": {}, "spec": {}}),
        ):
            made = {**made, "metadata": {**made["metadata"], "namespace": ELSEWHERE}}
            await ask(edge, "insert", resource, made)
        posted = [path for path in watched.written if path.endswith(("/nodes", SIGNING_REQUESTS.plural))]
        assert posted == [NODES.path(), SIGNING_REQUESTS.path()]


async def test_labels_cannot_be_wiped(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    labels = (await kube.get(NODES, Key("", "edge-1")))["metadata"]["labels"]
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        content: Any
        for member in ("labels", "annotations"):
            for content in (None, [], 0):
                patch = text({"metadata": {member: content}, "status": {}})
                assert said(await ask(edge, "patch", "null/nodepatch/edge-1", patch))[0] == "error"
        assert cloud.refused("patched field") == 6
    assert (await kube.get(NODES, Key("", "edge-1")))["metadata"]["labels"] == labels


async def test_a_mirror_pod_gives_no_service_account(kube: Kubernetes, certs: Path) -> None:
    content: Any
    await furnish(kube)
    account = {"metadata": {"name": "default", "namespace": "kube-system"}}
    await kube.create(SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", **account})
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        for field in ("serviceAccount", "serviceAccountName"):
            made = {**pod("m", volumes=[], containers=[]), "metadata": MIRROR}
            made["spec"][field] = "default"
            assert said(await ask(edge, "insert", "kube-system/pod/m", made))[0] == "error"
        made = {**pod("m", volumes=[], containers=[]), "metadata": MIRROR}
        answer, content = said(await ask(edge, "insert", "kube-system/pod/m", made))
        assert answer == "response"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": "m", "uid": content["Object"]["metadata"]["uid"]}
        wanted = {"spec": {"audiences": [], "boundObjectRef": bound}}
        answer, content = said(await ask(edge, "query", "kube-system/serviceaccounttoken/default", wanted))
        assert (answer, cloud.refused("token")) == ("error", 1)


ODD: list[tuple[str, str, Object]] = [
    ("update", "default/podstatus/p1", {"Status": {"conditions": 5}}),
    ("update", "default/podstatus/p1", {"Status": {"conditions": [{"type": ["x"]}]}}),
    ("update", "default/podstatus/p1", {"Status": {"phase": "Failed", "containerStatuses": 5}}),
    ("insert", "default/pod/m", {"metadata": {**MIRROR, "ownerReferences": 5}, "spec": {"nodeName": "edge-1"}}),
    ("insert", "default/certificatesigningrequest/c", {"spec": {"signerName": {"a": 1}}}),
    ("insert", "default/certificatesigningrequest/c", {"spec": {"signerName": ["a"], "request": [1]}}),
]


async def test_members_of_the_wrong_type_are_no_failures_of_ours(
    kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = (await furnish(kube))["pod/p1"]["metadata"]["uid"]
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        for operation, resource, content in ODD:
            await ask(edge, operation, resource, {"Name": "p1", "UID": uid, **content})
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_pod_that_has_the_name_by_now_is_another_nodes(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has not said yet that the node's own pod of that name is gone."""
    uid = (await furnish(kube))["pod/p2"]["metadata"]["uid"]
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        gone = read_pod({**pod("p2"), "metadata": {"name": "p2", "namespace": "default", "uid": "gone"}})
        monkeypatch.setattr(cloud.edge_controller.objects.graph, "pod", lambda *_: gone)
        patch = text({"metadata": {"uid": uid}, "status": {"phase": "Failed"}})
        assert said(await ask(edge, "patch", "default/podpatch/p2", patch))[0] == "error"
        assert cloud.refused("pod of another node") == 1
    assert (await kube.get(PODS, Key("default", "p2"))).get("status", {}).get("phase") != "Failed"


async def test_a_signing_request_is_short(kube: Kubernetes, certs: Path) -> None:
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        spec = {"signerName": "kubernetes.io/kubelet-serving", "request": "A" * 100_000}
        answer, content = said(await ask(edge, "insert", "default/certificatesigningrequest/c", {"spec": spec}))
        assert (answer, "longer than" in json.dumps(content)) == ("error", True)


def test_requests_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LANE_BYTES", 1000)
    monkeypatch.setattr(lanes, "WAITING_BYTES", 1500)

    async def serve(_: int) -> None: ...

    waiting: Lanes[int] = Lanes(serve, size_of=lambda size: size)
    assert [waiting.add("a", size) for size in (600, 600, 400)] == [True, False, True]
    assert [waiting.add("b", size) for size in (501, 500, 1)] == [False, True, False]


async def test_a_request_is_no_larger_than_an_object(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_BYTES", 1000)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        answer = said(await ask(edge, "insert", "null/node/edge-1", {"a": "x" * 1000}))
        assert answer == ("error", "the request has more than 1000 bytes")
