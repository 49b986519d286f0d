"""Each rule of what a node may do, by itself: what is allowed, and then the same with one thing changed."""

from typing import Any

import pytest

from cloudcore.edgecontroller.authorization import (
    Refused,
    check_attachment,
    check_event,
    check_lease,
    check_mirror_pod,
    check_node_object,
    check_reference,
    check_token,
    check_volume,
    narrow_patch,
)
from cloudcore.edgecontroller.graph import MIRROR_ANNOTATION, Graph, read_pod
from cloudcore.edgecontroller.kinds import read_path
from cloudcore.kube import Key, Object
from tests.cloudcore.edge_world import pod

P1 = Key("default", "p1")


def graph_of(*pods: Object) -> Graph:
    graph = Graph()
    for one in pods:
        graph.add(read_pod(one))
    return graph


def stored(name: str = "p1", **spec: Any) -> Object:
    whole = pod(name, **spec)
    whole["metadata"]["uid"] = f"uid-{name}"
    return whole


def mirror(*, metadata: dict[str, Any] | None = None, **spec: Any) -> Object:
    about = {"annotations": {MIRROR_ANNOTATION: "h"}, **(metadata or {})}
    return {"metadata": about, "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "i"}], **spec}}


OWNER = {"kind": "Node", "name": "edge-1", "uid": "uid-1"}


@pytest.mark.parametrize("owners", (None, [], [OWNER], [{**OWNER, "blockOwnerDeletion": False}]))
def test_a_mirror_pod_that_is_the_nodes_own(owners: Any) -> None:
    check_mirror_pod("edge-1", P1, mirror(metadata={"ownerReferences": owners}), node_uid="uid-1")


@pytest.mark.parametrize(
    "made",
    (
        mirror(metadata={"annotations": {}}),
        mirror(metadata={"annotations": {MIRROR_ANNOTATION: ""}}),
        mirror(nodeName="edge-2"),
        mirror(serviceAccountName="admin"),
        mirror(serviceAccount="admin"),
        mirror(volumes=[{"name": "v", "secret": {"secretName": "s1"}}]),
        mirror(metadata={"finalizers": ["a/b"]}),
        mirror(metadata={"ownerReferences": [{**OWNER, "kind": "Pod"}]}),
        mirror(metadata={"ownerReferences": [{**OWNER, "name": "edge-2"}]}),
        mirror(metadata={"ownerReferences": [{**OWNER, "uid": "uid-2"}]}),
        mirror(metadata={"ownerReferences": [{**OWNER, "blockOwnerDeletion": True}]}),
        mirror(metadata={"ownerReferences": [OWNER, {"kind": "Pod", "name": "p", "uid": "u"}]}),
        mirror(metadata={"ownerReferences": {**OWNER, "name": "edge-2"}}),
        mirror(metadata={"ownerReferences": "x"}),
    ),
)
def test_mirror_pods_that_reach_further(made: Object) -> None:
    with pytest.raises(Refused) as refused:
        check_mirror_pod("edge-1", P1, made, node_uid="uid-1")
    assert refused.value.reason == "pod to create"


KNOWN_NODE: Object = {"metadata": {"name": "edge-1", "finalizers": ["a/b"], "labels": {"k8s.io/a": "b"}}}


def test_what_a_node_has_already_it_may_repeat() -> None:
    check_node_object("edge-1", KNOWN_NODE, KNOWN_NODE)
    check_node_object("edge-1", {"metadata": {"name": ""}}, None)


@pytest.mark.parametrize(
    ("made", "reason"),
    (
        ({"metadata": {"name": "edge-2"}}, "another node"),
        ({"metadata": {"finalizers": ["c/d"]}}, "node field"),
        ({"metadata": {"ownerReferences": [OWNER]}}, "node field"),
        ({"spec": {"configSource": {"configMap": {"name": "x"}}}}, "node field"),
        ({"metadata": {"labels": {"k8s.io/a": "c"}}}, "node label"),
        ({"metadata": {"labels": {"k8s.io/a": None}}}, "node label"),
    ),
)
def test_fields_of_a_node_that_are_not_its_own(made: Object, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        check_node_object("edge-1", made, KNOWN_NODE)
    assert refused.value.reason == reason


def test_a_patch_that_is_narrow_stays_as_it_is() -> None:
    patch = {"metadata": {"uid": "u", "labels": {"a": "b"}}, "status": {"$patch": "replace"}}
    assert narrow_patch("x", patch, metadata=frozenset({"uid", "labels"})) == patch
    assert narrow_patch("x", {"apiVersion": "v1", "kind": "Node"}, metadata=frozenset()) == {}
    assert narrow_patch("x", {"status": None}, metadata=frozenset()) == {"status": None}


@pytest.mark.parametrize(
    "patch",
    (
        {"spec": {}},
        {"metadata": {"finalizers": []}},
        {"metadata": {"labels": {"$patch": "replace"}}},
        {"metadata": {"labels": {"a": "b", "$retainKeys": []}}},
        {"metadata": {"labels": None}},
        {"metadata": {"labels": ["a"]}},
    ),
)
def test_patches_that_reach_further(patch: Object) -> None:
    with pytest.raises(Refused) as refused:
        narrow_patch("x", patch, metadata=frozenset({"labels"}))
    assert refused.value.reason == "patched field"


def bound_to(**about: Any) -> Object:
    return {"spec": {"boundObjectRef": {"kind": "Pod", "name": "p1", "uid": "uid-p1", **about}}}


@pytest.mark.parametrize(
    ("account", "request_", "held"),
    (
        ("robot", bound_to(kind="Secret"), {}),
        ("robot", bound_to(uid="uid-0"), {}),
        ("robot", bound_to(uid=None), {}),
        ("robot", bound_to(name="p2"), {}),
        ("robot", {"spec": {}}, {}),
        ("robot", bound_to(), {"on": "edge-2"}),
        ("admin", bound_to(), {}),
        ("default", bound_to(), {}),
    ),
)
def test_tokens_for_what_is_not_the_nodes(account: str, request_: Object, held: dict[str, Any]) -> None:
    own = {"serviceAccountName": "robot"}
    check_token("edge-1", Key("default", "robot"), bound_to(), graph_of(stored(**own)))
    with pytest.raises(Refused) as refused:
        check_token("edge-1", Key("default", account), request_, graph_of(stored(**own, **held)))
    assert refused.value.reason == "token"


def test_no_token_for_a_pod_that_the_node_made_itself() -> None:
    made = stored(serviceAccountName="robot")
    made["metadata"]["annotations"] = {MIRROR_ANNOTATION: "h"}
    with pytest.raises(Refused, match="own"):
        check_token("edge-1", Key("default", "robot"), bound_to(), graph_of(made))
    with pytest.raises(Refused, match="bound"):
        check_token("edge-1", Key("other", "robot"), bound_to(), graph_of(stored(serviceAccountName="robot")))


def event(kind: Any, name: Any, *, namespace: Any = "default", at: str = "default") -> Object:
    about = {"kind": kind, "name": name, "namespace": namespace}
    return {"metadata": {"name": "e", "namespace": at}, "involvedObject": about}


@pytest.mark.parametrize(
    "about",
    (event("Node", "edge-1"), event("Node", "edge-1", namespace=None), event("Pod", "p1"), event("Device", "d")),
)
def test_events_about_what_is_the_nodes_own(about: Object) -> None:
    check_event("edge-1", Key("default", "e"), about, graph_of(stored()), node_of_device="edge-1")


@pytest.mark.parametrize(
    ("about", "owner"),
    (
        (event("Node", "edge-2"), "edge-1"),
        (event("Pod", "edge-1"), "edge-1"),
        (event("Pod", "p2"), "edge-1"),
        (event("Pod", "p1", namespace="other"), "edge-1"),
        (event("Node", "edge-1", namespace="other"), "edge-1"),
        (event("Node", "edge-1", at="other"), "edge-1"),
        (event("Device", "d"), "edge-2"),
        (event("Device", "d"), ""),
        (event("Secret", "d"), "edge-1"),
        (event(None, "edge-1"), "edge-1"),
        ({"metadata": {"name": "e", "namespace": "default"}}, "edge-1"),
    ),
)
def test_events_about_what_is_others(about: Object, owner: str) -> None:
    with pytest.raises(Refused) as refused:
        check_event("edge-1", Key("default", "e"), about, graph_of(stored()), node_of_device=owner)
    assert refused.value.reason == "event"


def test_objects_by_reference_only() -> None:
    claimed = stored(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c1"}}])
    graph = graph_of(claimed)

    def volume(namespace: str, name: str) -> Object:
        return {"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": namespace, "name": name}}}

    check_reference("edge-1", read_path("default/configmap/cm1"), graph)
    check_volume("edge-1", volume("default", "c1"), graph)
    check_attachment("edge-1", {"metadata": {"name": "a"}, "spec": {"nodeName": "edge-1"}})
    check_lease("edge-1", Key("kube-node-lease", "edge-1"))
    for node, resource in (
        ("edge-2", "default/configmap/cm1"),
        ("edge-1", "other/configmap/cm1"),
        ("edge-1", "default/secret/cm1"),
        ("edge-1", "default/configmap/cm2"),
    ):
        with pytest.raises(Refused):
            check_reference(node, read_path(resource), graph)
    for node, found in (
        ("edge-2", volume("default", "c1")),
        ("edge-1", volume("other", "c1")),
        ("edge-1", volume("default", "c2")),
        ("edge-1", {"metadata": {"name": "pv"}, "spec": {}}),
    ):
        with pytest.raises(Refused):
            check_volume(node, found, graph)
    with pytest.raises(Refused):
        check_attachment("edge-1", {"metadata": {"name": "a"}, "spec": {"nodeName": "edge-2"}})
