"""A node reads and writes what is its own, and nothing else, whatever it sends."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.edgecontroller import EdgeSettings
from cloudcore.edgecontroller.authorization import Refused, check_labels, narrow_patch
from cloudcore.edgecontroller.kinds import CONFIG_MAPS, EVENTS, LEASES, NODES, PODS, SECRETS, key_at, read_path
from cloudcore.kube import Key, Kind, KubeClient, Object
from cloudedge import MalformedMessage, Message, new_message
from tests.cloudcore.edge_world import EdgeCloud, ask, edge_cloud, furnish, pod, said, text
from tests.cloudcore.support import Kubernetes, device, model, until

STATUS = text({"status": {"phase": "x"}})
LABELS = {"labels": {"node-role.kubernetes.io/edge": ""}}


def lease(holder: str) -> Object:
    return {"spec": {"holderIdentity": holder, "leaseDurationSeconds": 40}}


def event(kind: str, name: str, namespace: str = "default") -> Object:
    about = {"kind": kind, "name": name, "namespace": namespace}
    return {"metadata": {"name": "e9", "namespace": namespace}, "involvedObject": about, "reason": "r"}


REFUSALS: list[tuple[str, str, str, Any]] = [
    ("another node", "insert", "null/node/edge-2", {"metadata": {"name": "edge-2"}}),
    ("another node", "insert", "null/node/edge-1", {"metadata": {"name": "edge-2"}}),
    ("another node", "update", "null/node/edge-2", {"metadata": {"labels": {"a": "b"}}}),
    ("another node", "query", "null/node/edge-2", None),
    ("another node", "patch", "null/nodepatch/edge-2", STATUS),
    ("node label", "update", "null/node/edge-1", {"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}}),
    (
        "node label",
        "update",
        "null/node/edge-1",
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
    ),
    ("node label", "patch", "null/nodepatch/edge-1", text({"metadata": {"labels": {"node-role.kubernetes.io/w": ""}}})),
    ("node label", "patch", "null/nodepatch/edge-1", text({"metadata": {"labels": {"$patch": "replace"}}})),
    (
        "node field",
        "update",
        "null/node/edge-1",
        {"metadata": {"ownerReferences": [{"kind": "Node", "name": "edge-2"}]}},
    ),
    ("patched field", "patch", "null/nodepatch/edge-1", text({"metadata": {"ownerReferences": []}})),
    ("patched field", "patch", "null/nodepatch/edge-1", text({"spec": {"taints": []}})),
    ("patched field", "patch", "null/nodepatch/edge-1", text({"$patch": "delete"})),
    ("another lease", "insert", "kube-node-lease/lease/edge-2", lease("edge-1")),
    ("another lease", "update", "kube-node-lease/lease/edge-2", lease("edge-1")),
    ("another lease", "query", "kube-node-lease/lease/edge-2", None),
    ("another lease", "insert", "kubeedge/lease/edge-1", lease("edge-1")),
    ("pod of another node", "patch", "default/podpatch/p2", STATUS),
    ("patched field", "patch", "default/podpatch/p1", text({"metadata": {"labels": {"a": "b"}}})),
    ("patched field", "patch", "default/podpatch/p1", text({"spec": {"nodeName": "edge-2"}})),
    ("pod of another node", "delete", "default/pod/p2", {}),
    ("pod to create", "insert", "default/pod/new", pod("new")),
    (
        "pod to create",
        "insert",
        "default/pod/new",
        {**pod("new", on="edge-2"), "metadata": {"annotations": {"kubernetes.io/config.mirror": "h"}}},
    ),
    (
        "pod to create",
        "insert",
        "default/pod/new",
        {**pod("new"), "metadata": {"annotations": {"kubernetes.io/config.mirror": "h"}}},
    ),
    ("unreferenced object", "query", "default/configmap/cm-other", None),
    ("unreferenced object", "query", "default/secret/s-other", None),
    ("unreferenced object", "query", "kubeedge/secret/casecret", None),
    ("unreferenced object", "query", "default/persistentvolumeclaim/x", None),
    ("token", "query", "default/serviceaccounttoken/default", {"spec": {"audiences": []}}),
    ("certificate", "insert", "default/certificatesigningrequest/c", {"spec": {}}),
    ("event", "insert", "default/event/e9", event("Pod", "p2")),
    ("event", "insert", "default/event/e9", event("Node", "edge-2")),
    ("event", "insert", "default/event/e9", event("Device", "d-9")),
    ("event", "insert", "kube-system/event/e9", event("Pod", "p1", "kube-system")),
    ("unknown request", "delete", "null/node/edge-1", None),
    ("unknown request", "query", "default/pod/p1", None),
    ("unknown request", "insert", "default/secret/s9", {}),
    ("unknown request", "query", "default/deployment/d", None),
]


async def snapshot(kube: KubeClient) -> dict[tuple[str, Key], str]:
    """Which version of everything there is."""
    found = {}
    for kind in (NODES, PODS, LEASES, SECRETS, CONFIG_MAPS, EVENTS):
        for item in (await kube.list_page(kind)).items:
            metadata = item["metadata"]
            found[kind.kind, Key(metadata.get("namespace", ""), metadata["name"])] = metadata["resourceVersion"]
    return found


async def settled(cloud: EdgeCloud, kube: KubeClient, *nodes: str) -> dict[tuple[str, Key], str]:
    """Once the nodes carry the replica's address."""
    objects = cloud.edge_controller.objects

    def marked(node: str) -> bool:
        known = objects.edge_node(node)
        return known is not None and "cloudcore" in (known["metadata"].get("annotations") or {})

    await until(lambda: all(marked(node) for node in nodes))
    return await snapshot(kube)


def is_refused_again(cloud: EdgeCloud, reason: str, count: int) -> bool:
    return cloud.refused(reason) > count


async def test_every_refusal(kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        before = await settled(cloud, kube, "edge-1")
        for reason, operation, resource, content in REFUSALS:
            count = cloud.refused(reason)
            request = await edge.send(
                operation=operation, resource=resource, content=content, source="edged", group="meta"
            )
            if "/event/" in resource:
                await until(partial(is_refused_again, cloud, reason, count), what=resource)
                continue
            answer = await edge.answer(request)
            outcome, words = said(answer)
            assert (outcome, type(words)) == ("error", str), (operation, resource, words)
            assert cloud.refused(reason) == count + 1, (operation, resource, words)
            assert (answer.route.source, answer.route.group) == ("edgecontroller", "resource")
        assert await snapshot(kube) == before
    audited = [json.loads(record.message) for record in caplog.records if record.name == "cloudcore.audit"]
    assert {line["refused"] for line in audited} == {reason for reason, *_ in REFUSALS}
    assert {line["node"] for line in audited} == {"edge-1"}


@pytest.mark.parametrize(("enforce", "audit_only"), ((True, True), (False, False)))
async def test_rules_that_only_watch_or_are_off(kube: Kubernetes, certs: Path, enforce: bool, audit_only: bool) -> None:
    await furnish(kube)
    rules = EdgeSettings(authorize=enforce, audit_only=audit_only)
    async with edge_cloud(kube, certs, settings=rules) as cloud, cloud.edge(ask=False) as edge:
        assert said(await ask(edge, "query", "default/secret/s-other"))[0] == "response"
        assert said(await ask(edge, "patch", "null/nodepatch/edge-2", STATUS))[1]["Err"] is None
        assert cloud.refused("unreferenced object (let pass)") == int(audit_only)


async def test_a_report_about_the_device_of_another_node(kube: Kubernetes, certs: Path) -> None:
    await kube.apply(MODELS, model())
    await kube.apply(DEVICES, device())
    async with edge_cloud(kube, certs) as cloud, cloud.edge() as edge, cloud.edge("edge-2") as other:
        forged = await other.report("thermo-1", {"temperature": "666"})
        assert said(await other.answer(forged)) == ("response", "OK")  # or it would be sent again for ever
        forged_state = await other.report_state("thermo-1", "offline")
        await other.answer(forged_state)
        await edge.answer(await edge.report("thermo-1", {"temperature": "20"}))
        status = await kube.until_status("thermo-1", lambda status: "20" in json.dumps(status))
        assert "666" not in json.dumps([patch for _, _, patch in kube.patched])
        assert "666" not in json.dumps(status)
        assert status.get("state") != "offline"
        assert cloud.refused("device of another node") == 2


async def test_a_node_may_keep_labels_it_was_given(kube: Kubernetes, certs: Path) -> None:
    given = {"node-role.kubernetes.io/worker": "", "node-restriction.kubernetes.io/hall": "3"}
    await furnish(kube)
    await kube.patch(NODES, Key("", "edge-1"), {"metadata": {"labels": given}})
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        body = {"metadata": {"name": "edge-1", "labels": {**given, "own": "1"}}}
        assert said(await ask(edge, "update", "null/node/edge-1", body)) == ("response", "OK")
        assert (await kube.get(NODES, Key("", "edge-1")))["metadata"]["labels"]["own"] == "1"
        removal = text({"metadata": {"labels": {"node-restriction.kubernetes.io/hall": None}}})
        assert said(await ask(edge, "patch", "null/nodepatch/edge-1", removal))[0] == "error"
        assert cloud.refused("node label") == 1


def test_labels_of_a_node() -> None:
    for name in (
        "hall",
        "plant.example/hall",
        "kubernetes.io/hostname",
        "node.kubernetes.io/instance-type",
        "kubelet.kubernetes.io/x",
    ):
        check_labels("n", {name: "v"}, {})
    for name in (
        "kubernetes.io/other",
        "a.k8s.io/b",
        "node-restriction.kubernetes.io/a",
        "x.node-restriction.kubernetes.io/a",
        "$retainKeys",
    ):
        with pytest.raises(Refused):
            check_labels("n", {name: "v"}, {})


class Recorder:
    """A node's link that keeps what is posted."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.posted: list[Message] = []

    def post(self, message: Message, /) -> None:
        self.posted.append(message)

    def put_object(self, message: Message, /) -> None:
        self.posted.append(message)


MALFORMED = [
    "default/configmap",
    "configmap",
    "",
    "//",
    "default/configmap/",
    "../configmap/cm1",
    "default/secret/../../nodes",
    "default/secret/..",
    "default/secret/a..b",
    "default/secret/a%2f..%2fb",
    "default/secret/s1?x",
    "default/secret/S1",
    "node/edge-2/default/secret/s1",
    "kube-node-lease/lease/",
    "null/lease/edge-1",
    "default/secret/" + "a" * 300,
    "default/secret/s\r\nX: y",
]


async def test_paths_and_contents_that_cannot_be_read(
    kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await furnish(kube)
    deep = "[" * 100_000 + "]" * 100_000
    contents: list[Any] = [None, 1, "", "no JSON", [], [1], {"metadata": 1}, {"metadata": {"labels": []}}, deep]
    async with (
        edge_cloud(kube, certs) as cloud,
        cloud.edge(ask=False) as edge,
        cloud.edge("edge-2", ask=False) as other,
    ):
        before = await settled(cloud, kube, "edge-1", "edge-2")
        for resource in MALFORMED:
            link = Recorder("edge-1")
            request = new_message(source="edged", group="meta", operation="query", resource=resource)
            cloud.edge_controller.take(link, request)  # the hub lets few of them through
            assert [(m.route.operation, m.header.parent_msg_id) for m in link.posted] == [("error", request.id)]
        for operation, resource in (
            ("insert", "null/node/edge-1"),
            ("patch", "null/nodepatch/edge-1"),
            ("update", "kube-node-lease/lease/edge-1"),
            ("patch", "default/podpatch/p1"),
            ("update", "default/podstatus/p1"),
            ("update", "default/podstatus"),
            ("insert", "default/pod/p9"),
        ):
            for content in contents:
                outcome, _ = said(await ask(edge, operation, resource, content))
                assert outcome in ("error", "response"), (resource, content)
        assert said(await ask(other, "query", "default/secret/s-other"))[0] == "response"
        after = await snapshot(kube)
        mine = ("Node", Key("", "edge-1"))
        assert {at: v for at, v in after.items() if at != mine} == {at: v for at, v in before.items() if at != mine}
    assert not [record for record in caplog.records if record.exc_info]


NAMES = st.sampled_from(["edge-1", "edge-2", "p1", "p2", "s1", "s-other", "cm-other", "..", "", "x", "null"])
TYPES = st.sampled_from(
    (
        *("node", "nodepatch", "lease", "pod", "podpatch", "podstatus", "configmap", "secret", "event", "membership"),
        *("serviceaccounttoken", "persistentvolume", "persistentvolumeclaim", "volumeattachment"),
        "certificatesigningrequest",
    )
)
NAMESPACES = st.sampled_from(["default", "null", "kube-node-lease", "kubeedge", "..", "node"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | NAMES
MEMBERS = st.sampled_from(
    (
        *("metadata", "name", "namespace", "uid", "labels", "spec", "status", "nodeName", "involvedObject", "kind"),
        *("Name", "UID", "Status", "preconditions", "event", "patchData", "boundObjectRef", "ownerReferences"),
        *("annotations", "taints", "$patch", "conditions", "containerStatuses"),
    )
)
CONTENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4), max_leaves=12
)
REQUESTS = st.tuples(
    st.sampled_from(["insert", "update", "patch", "delete", "query", "x"]),
    st.builds(lambda *parts: "/".join(parts), NAMESPACES, TYPES, NAMES) | st.text(max_size=30),
    CONTENTS | CONTENTS.map(json.dumps),
)


async def fuzz(kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture, batches: list[list[Any]]) -> None:
    """Nothing of another node's or of no node's changes, and the nodes are served as before."""
    await furnish(kube)
    async with (
        edge_cloud(kube, certs) as cloud,
        cloud.edge(ask=False) as edge,
        cloud.edge("edge-2", ask=False) as other,
    ):
        before = await settled(cloud, kube, "edge-1", "edge-2")
        for batch in batches:
            for operation, resource, content in batch:
                await edge.send(operation=operation, resource=resource, content=content, source="edged", group="meta")
            last = await ask(edge, "query", "null/node/edge-1")  # all before it have been started
            assert last.route.operation == "response"
            await until(lambda: not cloud.waiting())
        after = await snapshot(kube)
        own = {("Node", Key("", "edge-1")), ("Pod", Key("default", "p1")), ("Lease", Key("kube-node-lease", "edge-1"))}
        changed = {at for at in before.keys() | after.keys() if before.get(at) != after.get(at)}
        assert {at for at in changed - own if at[0] != "Event"} == set()
        for kind, key in changed - own:
            about = (await kube.get(EVENTS, key))["involvedObject"]
            assert (kind, about["name"]) in (("Event", "edge-1"), ("Event", "p1"))
        assert said(await ask(other, "query", "default/secret/s-other"))[0] == "response"
    assert not [record for record in caplog.records if record.exc_info]


def examples(count: int) -> list[Any]:
    drawn: list[Any] = []

    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(REQUESTS)
    def draw(request: Any) -> None:
        drawn.append(request)

    draw()
    return drawn


async def test_whatever_a_node_asks(kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn = examples(150)
    await fuzz(kube, certs, caplog, [drawn[at : at + 50] for at in range(0, len(drawn), 50)])


@pytest.mark.slow
async def test_whatever_a_node_asks_at_length(kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn = examples(3000)
    await fuzz(kube, certs, caplog, [drawn[at : at + 50] for at in range(0, len(drawn), 50)])


@given(st.text(max_size=60) | st.builds(lambda *p: "/".join(p), NAMESPACES, TYPES, NAMES))
def test_a_path_that_is_read_names_one_place_in_the_api(resource: str) -> None:
    try:
        path = read_path(resource)
    except MalformedMessage:
        return
    key = key_at(path)
    url = Kind("", "v1", "things", "Thing").path(key.namespace, key.name)
    assert ".." not in url
    assert url.count("/") <= 6
    assert url.isascii()


@given(CONTENTS)
def test_a_narrowed_patch_reaches_status_alone(patch: Any) -> None:
    try:
        narrow = narrow_patch("it", patch, metadata=frozenset({"uid"}))
    except Refused:
        return
    assert set(narrow) <= {"metadata", "status"}
    assert set(narrow.get("metadata", {})) <= {"uid"}
