"""What a pod refers to, and which nodes have to do with it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloudcore.edgecontroller.graph import Graph, Pod, Reference, read_pod, references
from tests.cloudcore.edge_world import pod
from tests.cloudcore.test_authorization import CONTENTS, NAMES


@given(CONTENTS, CONTENTS)
def test_any_pod_can_be_read(spec: Any, metadata: Any) -> None:
    whole = {"spec": spec, "metadata": metadata if isinstance(metadata, dict) else {}}
    assert list(references(whole)) == list(references(whole))
    read_pod(whole)


PODS_DRAWN = st.lists(
    st.tuples(NAMES, st.sampled_from(["edge-1", "edge-2"]), st.sets(st.sampled_from(["a", "b", "c"]))), max_size=30
)


@given(PODS_DRAWN)
def test_the_graph_is_that_of_the_pods_there_are(changes: list[tuple[str, str, set[str]]]) -> None:
    graph = Graph()
    there: dict[str, Pod] = {}
    for name, node, refs in changes:
        whole = pod(name, on=node, volumes=[{"name": r, "secret": {"secretName": r}} for r in sorted(refs)])
        whole["spec"]["containers"] = []
        if name in there:
            graph.remove(there.pop(name))
        if refs:
            there[name] = read_pod(whole)
            graph.add(there[name])
    for node in ("edge-1", "edge-2"):
        pods = [p for p in there.values() if p.node == node]
        assert {p.key.name for p in graph.pods(node)} == {p.key.name for p in pods}
        assert set(graph.references(node)) == {r for p in pods for r in p.references}
    for ref in "abc":
        reference = Reference("secret", "default", ref)
        assert graph.users(reference) == {p.node for p in there.values() if reference in p.references}


def test_all_that_a_pod_can_name() -> None:
    whole = pod(
        volumes=[
            {"name": "p", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "cm2"}}]}},
            {"name": "e", "ephemeral": {}},
            {"name": "c", "csi": {"nodePublishSecretRef": {"name": "s3"}}},
            {"name": "i", "iscsi": {"secretRef": {"name": "s4"}}},
            {"name": "v", "persistentVolumeClaim": {"claimName": "c1"}},
        ],
        imagePullSecrets=[{"name": "s5"}],
        initContainers=[{"envFrom": [{"secretRef": {"name": "s6"}}, {"configMapRef": {"name": "cm3"}}]}],
    )
    assert {(r.type, r.name) for r in references(whole)} == {
        *(("secret", f"s{n}") for n in (2, 3, 4, 5, 6)),
        *(("configmap", f"cm{n}") for n in (1, 2, 3)),
        ("persistentvolumeclaim", "c1"),
        ("persistentvolumeclaim", "p1-e"),
    }
    assert all(r.namespace == "default" for r in references(whole))
