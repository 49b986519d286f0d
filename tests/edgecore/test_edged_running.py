"""Edge core keeps its Node and Lease: against the real edge controller, and against a cloud that refuses."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from cloudcore.edgecontroller.kinds import LEASES, NODES
from cloudcore.kube import Key, KubeError, Object
from cloudedge import ConnectionLost, Message, new_message
from edgecore.bus import Bus, CloudConnected, CloudLost, Reply, Upstream
from edgecore.config import EdgeCoreConfig, EdgedConfig, KubeletConfig
from edgecore.configfile import load_config
from edgecore.edged import Edged
from edgecore.edged.edged import _pauses
from kubetwin.apiserver import ApiServer
from tests.cloudcore.edge_world import EdgeCloud, edge_cloud
from tests.cloudcore.support import Kubernetes, install_crds, open_client
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import NODE, Watched

QUICK = EdgedConfig(
    hostname_override=NODE,
    node_labels={"site": "north"},
    tailored_kubelet_config=KubeletConfig(node_status_update_frequency="100ms", node_lease_duration_seconds=4),
)


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with ApiServer(tmp_path / "api") as api, await open_client(api) as client:
        await install_crds(client)
        yield client


@pytest.fixture
async def real_cloud(kube: Kubernetes, certificates: Path) -> AsyncIterator[EdgeCloud]:
    async with edge_cloud(kube, certificates) as running:
        yield running


@pytest.fixture
async def edge_of(config: EdgeCoreConfig, real_cloud: EdgeCloud) -> AsyncIterator[Edge]:
    hub = config.modules.edge_hub
    socket = msgspec.structs.replace(hub.websocket, server=f"127.0.0.1:{real_cloud.hub.port}")
    modules = msgspec.structs.replace(
        config.modules, edged=QUICK, edge_hub=msgspec.structs.replace(hub, websocket=socket)
    )
    edge = Edge(msgspec.structs.replace(config, modules=modules))
    try:
        yield edge
    finally:
        await edge.stop()


async def until_node(kube: Kubernetes, condition: Any) -> Object:
    found: list[Object] = []

    async def look() -> bool:
        try:
            found[:] = [await kube.get(NODES, Key("", NODE))]
        except KubeError:
            return False
        return bool(condition(found[0]))

    async with asyncio.timeout(15):
        while True:
            if await look():
                return found[0]
            await asyncio.sleep(0.02)


def ready(node: Object) -> str:
    conditions = {c["type"]: c for c in (node.get("status") or {}).get("conditions", ())}
    return str(conditions.get("Ready", {}).get("status"))


async def test_the_node_and_its_lease_are_there(kube: Kubernetes, edge_of: Edge) -> None:
    await edge_of.start()
    node = await until_node(kube, lambda n: ready(n) == "True")
    labels = node["metadata"]["labels"]
    assert labels["node-role.kubernetes.io/edge"] == labels["node-role.kubernetes.io/agent"] == ""
    assert labels["site"] == "north"
    assert {"type": "InternalIP", "address": "127.0.0.1"} in node["status"]["addresses"]
    lease_key = Key("kube-node-lease", NODE)
    renewed: set[str] = set()

    async def look() -> bool:
        try:
            lease = await kube.get(LEASES, lease_key)
        except KubeError:
            return False
        assert lease["spec"]["holderIdentity"] == NODE
        renewed.add(lease["spec"]["renewTime"])
        return len(renewed) >= 2

    async with asyncio.timeout(15):
        while True:
            if await look():
                break
            await asyncio.sleep(0.05)
    # What somebody takes away comes back.
    await kube.delete(LEASES, lease_key)
    await kube.delete(NODES, Key("", NODE))
    again = await until_node(kube, lambda n: n["metadata"]["uid"] != node["metadata"]["uid"] and ready(n) == "True")
    assert again["metadata"]["labels"]["site"] == "north"


async def test_a_node_that_was_there_gets_its_labels_and_is_ready_again(kube: Kubernetes, edge_of: Edge) -> None:
    bare: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"mine": "yes"}}}
    gone = {"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    await kube.create(NODES, {**bare, "status": {"conditions": [gone]}})
    await edge_of.start()
    node = await until_node(
        kube, lambda n: ready(n) == "True" and "node-role.kubernetes.io/edge" in n["metadata"]["labels"]
    )
    assert node["metadata"]["labels"]["mine"] == "yes"
    moment = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")["lastTransitionTime"]
    assert moment > "2026-01-01T00:00:00Z"


class RefusingCloud(Watched):
    """Answers each request with what `answers` has for its resource type, and is silent where that is None."""

    def __init__(self, tmp_path: Path, answers: dict[str, Any], settings: EdgedConfig = QUICK) -> None:
        super().__init__()
        self.bus = Bus()
        self.bus.subscribe(Upstream, self._take)
        self.answers = answers
        self.asked: list[Message] = []
        self.edged = Edged(settings, node=NODE, bus=self.bus, data_directory=tmp_path, version="1.2.3")

    async def _take(self, event: Upstream) -> None:
        message = event.message
        self.asked.append(message)
        await self.notify()
        answer = self.answers[message.route.resource.split("/")[1]]
        if answer is None:
            return
        if isinstance(answer, ConnectionLost):
            raise answer
        operation = "error" if isinstance(answer, str) else "response"
        reply = new_message(
            source="edgecontroller", group="resource", operation=operation, resource=message.route.resource,
            content=answer, parent=message.id,
        )  # fmt: skip
        await self.bus.publish(Reply(reply))

    def count(self, what: str) -> int:
        return sum(m.route.resource.split("/")[1] == what for m in self.asked)

    async def __aenter__(self) -> "RefusingCloud":
        self._task = asyncio.create_task(self.edged.run())
        await self.bus.publish(CloudConnected("wss://127.0.0.1:10000"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_a_cloud_that_refuses_is_asked_again_and_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgecore.edged.edged.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("edgecore.edged.edged.MAX_PAUSE_S", 0.02)
    caplog.set_level(logging.WARNING)
    async with RefusingCloud(tmp_path, {"node": "nodes are not for you", "lease": None}) as cloud:
        await cloud.until(lambda: cloud.count("node") >= 3)
        assert [r.getMessage() for r in caplog.records] == [f"node of node {NODE}: nodes are not for you; trying again"]
        assert cloud.count("lease") == 1
        cloud.answers["node"] = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
        cloud.answers["nodepatch"] = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
        await cloud.until(lambda: cloud.count("nodepatch") >= 1)
        assert bytes(cloud.asked[-1].content).startswith(b'"{')  # a patch travels as text


@pytest.mark.parametrize("edged", ("registerNode: false", "tailoredKubeletConfig: {registerNode: false}"))
async def test_a_node_that_is_not_to_be_made_is_only_asked_for(tmp_path: Path, edged: str) -> None:
    (file := tmp_path / "edgecore.yaml").write_text(
        f"apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\nmodules: {{edged: {{{edged}}}}}\n"
    )
    answers = {"node": None, "lease": None, "nodepatch": "there is no such node"}
    async with RefusingCloud(tmp_path, answers, load_config(file).modules.edged) as cloud:
        await cloud.until(lambda: cloud.count("node") + cloud.count("nodepatch") >= 1)
        assert [m.route.operation for m in cloud.asked if "lease" not in m.route.resource] == ["patch"]


async def test_the_lease_that_is_there_is_renewed_and_not_made_anew(tmp_path: Path) -> None:
    kubelet = msgspec.structs.replace(QUICK.tailored_kubelet_config, node_lease_duration_seconds=1)
    settings = msgspec.structs.replace(QUICK, node_ip="192.0.2.77", tailored_kubelet_config=kubelet)
    node = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
    lease = {"Object": {"metadata": {"name": NODE, "resourceVersion": "7", "labels": {"a": "b"}}}, "Err": None}
    async with RefusingCloud(tmp_path, {"node": node, "nodepatch": node, "lease": lease}, settings) as cloud:
        await cloud.until(lambda: cloud.count("lease") >= 3 and cloud.count("node") >= 1)
        asked = [m for m in cloud.asked if "/lease/" in m.route.resource][:3]
        assert [m.route.operation for m in asked] == ["query", "update", "update"]
        for message in asked[1:]:
            metadata = message.data()["metadata"]
            assert (metadata["resourceVersion"], metadata["labels"]) == ("7", {"a": "b"}), "else others' are lost"
        registered = next(m for m in cloud.asked if m.route.resource == f"null/node/{NODE}").data()
        assert {"type": "InternalIP", "address": "192.0.2.77"} in registered["status"]["addresses"]


async def test_what_waits_for_an_answer_ends_with_the_channel_and_begins_again_with_it(tmp_path: Path) -> None:
    async with RefusingCloud(tmp_path, {"node": None, "lease": None}) as cloud:
        await cloud.until(lambda: cloud.count("node") == 1 and cloud.count("lease") == 1)
        await cloud.bus.publish(CloudLost())
        cloud.answers = dict.fromkeys(("node", "lease", "nodepatch"), ConnectionLost("away"))
        await cloud.bus.publish(CloudConnected("wss://127.0.0.1:10000"))
        await cloud.until(lambda: cloud.count("node") == 2 and cloud.count("lease") == 2)
        found = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
        cloud.answers = dict.fromkeys(("node", "lease", "nodepatch"), found)
        await cloud.bus.publish(CloudConnected("wss://127.0.0.1:10000"))
        await cloud.until(lambda: cloud.count("nodepatch") == 1 and cloud.count("lease") >= 4)
        patched = cloud.count("nodepatch")
        assert patched == 1  # the status is as it was: nothing to say


async def test_after_an_outage_the_lease_is_soon_renewed_and_the_node_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes marks a node as gone whose Lease is old, and leaves it so until there is a new status."""
    monkeypatch.setattr("edgecore.edged.edged.FIRST_PAUSE_S", 0.01)
    found = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
    looks_only = Raw(msgspec.json.encode("{}"))
    async with RefusingCloud(tmp_path, {"node": found, "nodepatch": found, "lease": "the API is away"}) as cloud:
        await cloud.until(lambda: cloud.count("nodepatch") == 1 and cloud.count("lease") >= 4)
        assert all(message.content != looks_only for message in cloud.asked)
        cloud.answers["lease"] = found
        await cloud.until(lambda: cloud.count("nodepatch") == 3)
        patches = [m for m in cloud.asked if m.route.resource == f"null/nodepatch/{NODE}"]
        assert patches[1].content == looks_only
        assert patches[2].data()["status"]["conditions"][-1]["status"] == "True"
    pauses = _pauses(10.0)
    monkeypatch.undo()
    assert max(next(pauses) for _ in range(20)) == 10.0


@pytest.mark.parametrize(
    "odd",
    (
        {"metadata": "x"},
        {"metadata": {"uid": "u", "labels": ["x"]}},
        {"metadata": {"uid": "u"}, "status": {"conditions": 5}},
        {"metadata": {"uid": "u"}, "status": {"conditions": [{"type": []}]}},
    ),
)
async def test_an_answer_of_another_form_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, odd: dict[str, Any]
) -> None:
    monkeypatch.setattr("edgecore.edged.edged.FIRST_PAUSE_S", 0.01)
    answer = {"Object": odd, "Err": None}
    async with RefusingCloud(tmp_path, dict.fromkeys(("node", "nodepatch", "lease"), answer)) as cloud:
        await cloud.until(lambda: cloud.count("lease") >= 2 and cloud.count("node") + cloud.count("nodepatch") >= 4)
        told = [r.getMessage() for r in caplog.records if f"node of node {NODE}" in r.getMessage()]
        assert len(told) == 1
        assert "the cloud's answer cannot be used" in told[0]
        good = {"Object": {"metadata": {"uid": "u"}}, "Err": None}
        cloud.answers = dict.fromkeys(cloud.answers, good)
        before = cloud.count("nodepatch")
        await cloud.until(
            lambda: cloud.count("nodepatch") > before and b"EdgeCoreReady" in bytes(cloud.asked[-1].content)
        )
