"""Many requests, slow ones, and an API that is away: bounded, answered, and nobody else's business."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloudcore.edgecontroller import downstream
from cloudcore.edgecontroller.downstream import NoRecords
from cloudcore.edgecontroller.kinds import PODS, SECRETS
from cloudcore.edgecontroller.lanes import AT_ONCE, Lanes
from cloudcore.kube import Forbidden, Key, Kind, Object, Unavailable
from cloudedge import reply
from tests.cloudcore.edge_world import ask, edge_cloud, furnish, pod, said, text
from tests.cloudcore.support import Edge, Kubernetes, until


async def test_lanes_are_bounded_and_fair() -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    served: list[str] = []
    gate = asyncio.Event()

    async def serve(request: tuple[str, int]) -> None:
        node, _ = request
        running[node] += 1
        most[node] = max(most[node], running[node])
        if node == "slow":
            await gate.wait()
        else:
            await asyncio.sleep(0)
        running[node] -= 1
        served.append(node)

    lanes: Lanes[tuple[str, int]] = Lanes(serve, lane=20)
    workers = [asyncio.create_task(lanes.work()) for _ in range(AT_ONCE + 2)]
    try:
        taken = [lanes.add("slow", ("slow", n)) for n in range(50)]
        assert taken == [True] * 20 + [False] * 30
        assert all(lanes.add(f"n{n % 3}", (f"n{n % 3}", n)) for n in range(30))
        await until(lambda: len(served) == 30)  # beside four of the slow one's, which hold their workers
        assert set(served) == {"n0", "n1", "n2"}
        assert (len(lanes), lanes.running) == (20 - AT_ONCE, AT_ONCE)
        gate.set()
        await until(lambda: len(served) == 50)
        assert max(most.values()) <= AT_ONCE
        assert (len(lanes), lanes.running, lanes._waiting, +lanes._turns_of) == (0, 0, {}, Counter())
    finally:
        for worker in workers:
            worker.cancel()


class Slow(Kubernetes):
    """The real client; secrets take until the test lets them, and everything may be away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = asyncio.Event()
        self.away = False
        self.in_flight = 0

    async def _call(self, *args: Any, **kwargs: Any) -> Object:
        if self.away:
            raise Unavailable("the API server is away")
        return await super()._call(*args, **kwargs)

    async def get(self, kind: Kind, key: Key) -> Object:
        if kind is SECRETS:
            self.in_flight += 1
            try:
                await self.gate.wait()
            finally:
                self.in_flight -= 1
        return await super().get(kind, key)


@pytest.fixture
async def slow(kube: Kubernetes, api: Any) -> Any:
    async with await Slow.open(kubeconfig=str(api.kubeconfig)) as client:
        yield client


def has_more(edge: Edge, than: int) -> bool:
    return len(edge.received) > than


async def test_a_slow_call_delays_nobody_else(kube: Kubernetes, slow: Slow, certs: Path) -> None:
    await furnish(kube)
    async with (
        edge_cloud(slow, certs) as cloud,
        cloud.edge(ask=False) as edge,
        cloud.edge("edge-2", ask=False) as other,
    ):
        route = {"source": "edged", "group": "meta", "operation": "query"}
        asked = [await edge.send(resource="default/secret/s1", **route) for _ in range(400)]
        refused = await until(lambda: [a for r in asked for a in edge.answers(r)])
        assert said(refused[0]) == ("error", "too many requests of this node wait already")
        assert said(await ask(other, "query", "null/node/edge-2"))[0] == "response"
        assert slow.in_flight <= AT_ONCE + 2  # and the two nodes' own copies
        slow.gate.set()
        acknowledged = 0
        while sum(bool(edge.answers(request)) for request in asked) < len(asked):
            await until(partial(has_more, edge, acknowledged))
            for message in edge.received[acknowledged:]:
                acknowledged += 1
                if message.header.parent_msg_id:  # as edge cores do (channel contract 4.3)
                    await edge.connection.send(reply(message))
        outcomes = Counter(said(edge.answers(request)[0])[0] for request in asked)
        assert outcomes["response"] >= 256
        assert cloud.outcomes("secret") == {"served": outcomes["response"], "too many": outcomes["error"]}


async def test_an_api_that_is_away_is_an_answer(kube: Kubernetes, slow: Slow, certs: Path) -> None:
    await furnish(kube)
    slow.gate.set()
    async with edge_cloud(slow, certs) as cloud, cloud.edge(ask=False) as edge:
        await ask(edge, "query", "default/secret/s1")
        slow.away = True
        outcome, content = said(await ask(edge, "patch", "null/nodepatch/edge-1", text({"status": {}})))
        assert (outcome, content["Object"]) == ("response", None)
        assert content["Err"]["ErrStatus"]["code"] == 503
        assert content["Err"]["ErrStatus"]["reason"]
        assert said(await ask(edge, "query", "default/secret/s1")) == ("error", "the API server is away")
        slow.away = False
        assert said(await ask(edge, "query", "default/secret/s1"))[0] == "response"


class StuckRecords(NoRecords):
    async def ensure(self, _node: str, _obj: Object, /) -> None:
        await asyncio.get_running_loop().create_future()


async def test_records_that_cannot_be_made_hold_nothing_up(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "RECORD_S", 0.1)
    await furnish(kube)
    async with edge_cloud(kube, certs, records=StuckRecords()) as cloud, cloud.edge(ask=False) as edge:
        await until(lambda: len({m.route.resource for m in edge.received if m.route.group == "resource"}) == 4)


async def test_one_object_that_cannot_be_read_does_not_stop_the_comparison(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await furnish(kube)
    asked = asyncio.Event()
    get = Kubernetes.get

    async def refused(client: Kubernetes, kind: Kind, key: Key) -> Object:
        if kind is SECRETS:
            asked.set()
            raise Forbidden("the role lacks a rule")
        return await get(client, kind, key)

    monkeypatch.setattr(Kubernetes, "get", refused)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False):
        controller = cloud.edge_controller.downstream
        await asked.wait()
        told = ("Pod", Key("default", "p1"))
        await until(lambda: told in controller._views["edge-1"].told)
        await until(lambda: list(controller.told_nodes) == ["edge-1"])
        controller._views["edge-1"].told.pop(told)
        assert controller.reconcile("edge-1") == (1, 0), "and what is tried again is not counted"
        await until(lambda: told in controller._views["edge-1"].told)


async def test_nothing_is_kept_of_pods_that_come_and_go(
    kube: Kubernetes, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "MAX_WITHDRAWN", 3)
    await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:

        def told(operation: str, name: str) -> bool:
            about = (operation, f"default/pod/{name}")
            return any((m.route.operation, m.route.resource) == about for m in edge.received)

        for name in [f"job-{number}" for number in range(8)]:
            await kube.create(PODS, pod(name))
            await until(partial(told, "insert", name))
            await kube.delete(PODS, Key("default", name))
            await until(partial(told, "delete", name))
        assert len(cloud.edge_controller.downstream._views["edge-1"].withdrawn) <= 3
