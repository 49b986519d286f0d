"""What the edge controller seldom meets: requests that are late or early, faults of ours, caches that are behind."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from cloudcore.audit import Audit
from cloudcore.edgecontroller import downstream, pod_requests, requests
from cloudcore.edgecontroller.desk import Desk, Request
from cloudcore.edgecontroller.downstream import NoRecords
from cloudcore.edgecontroller.graph import Graph, read_pod
from cloudcore.edgecontroller.kinds import EVENTS, NODES, PODS, read_path
from cloudcore.edgecontroller.requests import READY_S, STALE_S, Requests
from cloudcore.kube import Key, KubeClient, NotFound, Object
from cloudedge import Message, new_message
from dmi.metrics import Metrics
from tests.cloudcore.edge_world import ask, edge_cloud, furnish, pod, said, text
from tests.cloudcore.support import Kubernetes, until


class Link:
    """A node that notes what it is answered."""

    node = "edge-1"

    def __init__(self) -> None:
        self.posted: list[Message] = []

    def post(self, message: Message, /) -> None:
        self.posted.append(message)

    def put_object(self, message: Message, /) -> None:
        self.posted.append(message)


def nobody(_: str) -> Object | None:
    return None


class Served:
    """Requests that never come as far as the API."""

    def __init__(self, find_node: Callable[[str], Object | None] = nobody) -> None:
        metrics = Metrics()
        self.link, self.now, self.ready = Link(), 0.0, asyncio.Event()
        no_client = cast("KubeClient", None)
        desk = Desk(no_client, Audit(metrics), Graph(), find_node, lambda _: None, lambda _: "", "", True, False)
        self.requests = Requests(desk, metrics, ready=self.ready, link_of=lambda _: self.link, clock=lambda: self.now)
        self.counter = metrics.counter("kubetwin_cloudcore_edge_requests_total", "", "type", "outcome")

    def take(self, operation: str = "patch", resource: str = "null/nodepatch/edge-1") -> None:
        self.requests.take(
            self.link,
            new_message(source="edged", group="meta", operation=operation, resource=resource, content=text({})),
        )

    @contextlib.asynccontextmanager
    async def at_work(self) -> Any:
        working = asyncio.create_task(self.requests.run())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.wait([working])

    async def outcome(self, outcome: str, type_: str = "nodepatch") -> None:
        await until(lambda: self.counter.values[type_, outcome] == 1, what=outcome)


async def test_a_request_that_nobody_waits_for_any_more_is_dropped() -> None:
    served = Served()
    served.ready.set()
    served.take()
    served.now = STALE_S + 1
    async with served.at_work():
        await served.outcome("stale")
        assert not served.link.posted


async def test_before_the_pods_are_known_a_node_is_told_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert READY_S < STALE_S
    monkeypatch.setattr(requests, "READY_S", 0.05)
    served = Served()
    async with served.at_work():
        served.take("query", "default/secret/s1")
        await served.outcome("failed", "secret")
        (answer,) = served.link.posted
        assert said(answer) == ("error", "the Kubernetes API has not answered this cloud core yet")
        served.take("query", "default/secret/s1")
        served.ready.set()
        await served.outcome("refused", "secret")


async def test_a_fault_of_ours_is_an_answer_and_ends_nothing() -> None:
    def fail(_: str) -> Object | None:
        raise RuntimeError("a fault of ours")

    served = Served(fail)
    served.ready.set()
    async with served.at_work():
        served.take()
        await served.outcome("failed")
        served.take("query", "default/secret/s1")
        await served.outcome("refused", "secret")
    assert said(served.link.posted[0]) == ("error", "this cloud core failed: RuntimeError")
    assert len(served.link.posted) == 2


async def test_the_answer_for_a_node_that_has_gone_ends_nothing() -> None:
    served = Served()
    served.ready.set()
    served.requests._link_of = lambda _: None
    async with served.at_work():
        for name in ("s1", "s2"):
            served.take("query", f"default/secret/{name}")
        await until(lambda: served.counter.values["secret", "refused"] == 2)
        assert len(served.link.posted) == 2, "to the connection that asked"


async def test_the_address_of_the_cloud_is_not_the_nodes_to_say(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        annotations = {"cloudcore": "203.0.113.9", "a": "b"}
        patch = text({"metadata": {"annotations": annotations}})
        outcome, content = said(await ask(edge, "patch", "null/nodepatch/edge-1", patch))
        assert outcome == "response"
        assert content["Object"]["metadata"]["annotations"].get("cloudcore") != "203.0.113.9"
        update = {"metadata": {"annotations": {**annotations, "c": "d"}}}
        assert said(await ask(edge, "update", "null/node/edge-1", update))[0] == "response"
        async with asyncio.timeout(10):
            while True:
                found = (await kube.get(NODES, Key("", "edge-1")))["metadata"]["annotations"]
                if "cloudcore" in found:  # ours is written when the caches are read
                    break
                await asyncio.sleep(0.01)
        assert (found["cloudcore"], found["a"], found["c"]) == ("192.0.2.10", "b", "d")


async def test_requests_that_make_no_sense(kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await furnish(kube)
    about = {"kind": "Node", "name": "edge-1", "namespace": "default"}
    event = {"metadata": {"name": "e", "namespace": "default"}, "involvedObject": about, "reason": "r", "count": 1}
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        route = {"source": "edged", "group": "meta", "resource": "default/event/e"}
        await edge.send(operation="insert", content=event, **route)
        for bad in ("{", "[]", "7"):
            await edge.send(operation="patch", content={"event": event, "patchData": bad}, **route)
        await edge.send(operation="patch", content={"event": event}, **route)
        for bad in ('{"involvedObject": {"name": "edge-2"}}', '{"metadata": {"labels": {}}}', '{"$patch": "delete"}'):
            await edge.send(operation="patch", content={"event": event, "patchData": bad}, **route)
        await edge.send(operation="patch", content={"event": event, "patchData": '{"count": 2}'}, **route)
        await until(lambda: cloud.outcomes("event") == {"served": 2, "malformed": 4, "refused": 3})
        stored = await kube.get(EVENTS, Key("default", "e"))
        assert (stored["count"], stored["involvedObject"]["name"]) == (2, "edge-1")
        answer = await ask(edge, "query", "null/certificatesigningrequest", source="metamanager")
        assert "names no signing request" in said(answer)[1]
        answer = await ask(edge, "update", "null/node/edge-1", {"metadata": ["a"]})
        assert "is no object" in said(answer)[1]
        monkeypatch.setattr(kube, "ca_pem", lambda: b"")
        assert "no CA" in said(await ask(edge, "query", "k8s/ca.crt"))[1]


async def test_a_pod_that_has_ended_is_removed_only_once_nothing_of_it_runs(kube: Kubernetes, certs: Path) -> None:
    made = await furnish(kube)
    await kube.create(PODS, pod("kept"))
    await kube.patch(PODS, Key("default", "p1"), {"metadata": {"finalizers": ["a/b"]}})
    await kube.delete(PODS, Key("default", "p1"))
    deleted: list[int | None] = []
    delete = kube.delete

    async def note(kind: Any, key: Key, **how: Any) -> None:
        deleted.append(how.get("grace_s"))
        await delete(kind, key, **how)

    kube.delete = note  # type: ignore[method-assign]
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:

        async def report(name: str, phase: str, state: str) -> None:
            uid = (await kube.get(PODS, Key("default", name)))["metadata"]["uid"]
            status = {"phase": phase, "containerStatuses": [{"name": "c", "state": {state: {"a": 1}}}]}
            content = [{"Name": name, "UID": uid, "Status": status}]
            assert said(await ask(edge, "update", "default/podstatus", content)) == ("response", "OK")

        gone = [{"Name": "kept", "UID": "uid-before", "Status": {"phase": "Failed"}}]
        assert said(await ask(edge, "update", "default/podstatus", gone)) == ("response", "OK")
        await until(
            lambda: [m for m in edge.received if b"uid-before" in bytes(m.content)], what="it is told to forget"
        )
        assert (await kube.get(PODS, Key("default", "kept")))["status"].get("phase") != "Failed", "its successor lives"
        wrong_ones: list[Any] = [{"Name": "kept"}, {"Name": "kept", "UID": "u", "Status": []}, {"Name": 1}, []]
        for wrong in wrong_ones:
            assert said(await ask(edge, "update", "default/podstatus", [wrong]))[0] == "error"
        await report("kept", "Succeeded", "terminated")  # nobody has deleted it
        await report("p1", "Running", "terminated")
        await report("p1", "Failed", "running")
        assert not deleted
        await report("p1", "Failed", "terminated")
        assert deleted == [0]
        await kube.patch(PODS, Key("default", "p1"), {"metadata": {"finalizers": None}})
        with pytest.raises(NotFound):
            await kube.get(PODS, Key("default", "p1"))
        assert made["pod/p1"]["metadata"]["uid"]


@pytest.mark.parametrize(
    ("content", "meant"),
    (
        (None, ("", None)),
        ("the-uid", ("the-uid", 0)),
        ("x" * 300, ("x" * 128, 0)),
        ({"gracePeriodSeconds": 30, "preconditions": {"uid": "u"}}, ("u", 30)),
        (text({"gracePeriodSeconds": 0}), ("", 0)),
        ({"gracePeriodSeconds": -1}, ("", None)),
        ({"gracePeriodSeconds": 2**31}, ("", None)),
        ({"gracePeriodSeconds": True, "preconditions": {"uid": 7}}, ("", None)),
        ({"gracePeriodSeconds": "1", "preconditions": "u"}, ("", None)),
    ),
)
def test_how_a_pod_is_deleted(content: Any, meant: tuple[str, int | None]) -> None:
    message = new_message(source="edged", group="meta", operation="delete", resource="default/pod/p", content=content)
    request = Request(Link(), message, read_path("default/pod/p"), Key("default", "p"), 0.0)
    assert pod_requests._deletion(request) == meant


def test_times_that_a_pod_keeps() -> None:
    def conditions(*of_what: tuple[str, str], at: str) -> Object:
        return {"conditions": [{"type": t, "status": s, "lastTransitionTime": at} for t, s in of_what]}

    before = conditions(("Ready", "True"), ("Initialized", "False"), ("Other", "True"), at="then")
    status = conditions(("Ready", "True"), ("Initialized", "True"), ("Other", "True"), ("New", "True"), at="now")
    kept = pod_requests._with_kept_times({**status, "startTime": "now"}, {**before, "startTime": "then"})
    assert [c["lastTransitionTime"] for c in kept["conditions"]] == ["then", "now", "now", "now"]
    assert kept["startTime"] == "then"
    assert pod_requests._with_kept_times({"startTime": "now"}, {})["startTime"] == "now"
    assert "startTime" not in pod_requests._with_kept_times({}, {})


class Noting(NoRecords):
    def __init__(self) -> None:
        self.ensured: list[str] = []
        self.forgotten: list[tuple[str, str]] = []
        self.stuck = False

    async def ensure(self, _node: str, obj: Object, /) -> None:
        self.ensured.append(obj["metadata"]["name"])
        if self.stuck:
            await asyncio.get_running_loop().create_future()

    def forget(self, node: str, uid: str, /) -> None:
        self.forgotten.append((node, uid))


async def test_what_the_caches_do_not_know_yet(kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's name that is another node's pod by now; a pod in another's place; records that are not to be had."""
    monkeypatch.setattr(downstream, "RECORD_S", 0.05)
    made, records = await furnish(kube), Noting()
    at, key = ("Pod", Key("default", "p1")), Key("default", "p1")
    async with edge_cloud(kube, certs, records=records) as cloud, cloud.edge(ask=False) as edge:
        controller = cloud.edge_controller.downstream
        await until(lambda: list(controller.told_nodes) == ["edge-1"] and "edge-1" in controller._views)
        view = controller._views["edge-1"]
        await until(lambda: len(view.told) == 4 and not len(controller))
        cloud.edge_controller.objects.graph.add(read_pod({**pod("p2"), "metadata": made["pod/p2"]["metadata"]}))
        controller.note("edge-1", PODS, Key("default", "p2"))
        view.told[at] = downstream._State("uid-before", b"")
        controller.note("edge-1", PODS, key)
        await until(lambda: records.forgotten == [("edge-1", "uid-before")], what="the record of the one before goes")
        await until(lambda: not len(controller))
        assert ("Pod", Key("default", "p2")) not in view.told
        assert not any("p2" in message.route.resource for message in edge.received)
        before = [message.route.operation for message in edge.received if message.route.resource == "default/pod/p1"]
        assert before == ["insert", "update"]
        ahead = pod("ahead")  # of the watch: a node may send an event about a pod as soon as it has made it
        ahead["metadata"] |= {"uid": "uid-ahead", "resourceVersion": "999999"}
        cloud.edge_controller.objects.take_pod(ahead)
        assert cloud.edge_controller.objects.graph.pod("edge-1", Key("default", "ahead")) == read_pod(ahead)
        records.stuck = True
        for count in (1, 2):
            view.told[at] = downstream._State(f"uid-{count}", b"")
            records.ensured.clear()
            controller.note("edge-1", PODS, key)
            await until(lambda: not len(controller) and view.told[at].uid == made["pod/p1"]["metadata"]["uid"])
            assert len(records.ensured) == 2 - count, "after one that did not come, none is waited for"
