"""Several replicas of the cloud core at one API: who owns a node, who leads, who may write."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloudcore.kube import Key, Kind, Object, Scope, Unavailable, key_of
from cloudcore.replicas import Replicas, ReplicaSettings, leases, own, replica_name
from cloudcore.replicas.leases import LEADER, LEASES, NAMESPACE, holder_of, node_key, node_lease, node_of, replica_key
from dmi import ConfigError
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Kubernetes, until

LEASE_S = 2.0
NAMESPACES = Kind(group="", version="v1", plural="namespaces", kind="Namespace")


class Client(Kubernetes):
    """Counts what is written of Leases, and can lose the API."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.written: list[str] = []

    async def _call(self, method: str, path: str, **how: Any) -> Object:
        if self.cut:
            raise Unavailable("cut off by the test")
        if method in ("POST", "PUT"):
            self.written.append(how["body"]["metadata"]["name"])
        return await super()._call(method, path, **how)

    def written_of(self, node: str) -> int:
        return self.written.count(node_key(node).name)


class Running:
    def __init__(self, name: str, client: Client, forget_s: float) -> None:
        self.client = client
        settings = ReplicaSettings(name=name, renew_s=LEASE_S / 6, lease_s=LEASE_S, look_s=0.05, forget_s=forget_s)
        self.replicas = Replicas(client, settings)
        self.lost: list[tuple[str, str]] = []
        self.changed: list[str | None] = []
        self.replicas.subscribe(lost=lambda node, by: self.lost.append((node, by)), changed=self.changed.append)
        self.task = asyncio.create_task(self.replicas.run())

    async def kill(self) -> None:
        """Gone without a word, as far as anybody else can see."""
        self.client.cut = True
        await self.stop()

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConfigError):
            await self.task


class Cluster:
    def __init__(self, api: ApiServer, stack: contextlib.AsyncExitStack) -> None:
        self._api = api
        self._stack = stack

    async def start(self, name: str, *, forget_s: float = 3600.0) -> Running:
        client = await self._stack.enter_async_context(await Client.open(kubeconfig=str(self._api.kubeconfig)))
        running = Running(name, client, forget_s)
        self._stack.push_async_callback(running.stop)
        async with asyncio.timeout(10):
            await running.replicas.granted()
        return running


@pytest.fixture
async def cluster(api: ApiServer) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        yield Cluster(api, stack)


async def leading(one: Running) -> None:
    await until(one.replicas.is_leader, what=f"{one.replicas.name} leads")


async def test_the_newest_connection_of_a_node_owns_it(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.replicas.acquire("edge-1")
    assert a.replicas.writes_for("edge-1")
    await until(lambda: "edge-1" in b.changed)
    assert not b.replicas.writes_for("edge-1")
    await b.replicas.acquire("edge-1")
    assert b.replicas.writes_for("edge-1")
    await until(lambda: a.lost[:1] == [("edge-1", "b")], what="a hears of it")
    assert not a.replicas.writes_for("edge-1")
    lease = await a.client.get(LEASES, node_key("edge-1"))
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)
    assert lease["spec"]["leaseDurationSeconds"] == LEASE_S


async def test_one_leads_and_speaks_for_nodes_that_nobody_has(cluster: Cluster) -> None:
    a = await cluster.start("a")
    await leading(a)
    b = await cluster.start("b")
    await until(lambda: b.replicas.status().leader == "a")
    assert a.replicas.writes_for("never-seen")
    assert a.replicas.writes_for("")
    assert not b.replicas.writes_for("never-seen")
    assert not b.replicas.is_leader()
    assert b.replicas.status().replicas == ("a", "b")


async def test_a_node_that_comes_back_costs_no_write_also_after_a_restart(cluster: Cluster) -> None:
    a = await cluster.start("a")
    await leading(a)
    await a.replicas.acquire("edge-1")
    a.replicas.released("edge-1")
    await a.replicas.acquire("edge-1")
    assert a.client.written_of("edge-1") == 1
    await a.kill()
    again = await cluster.start("a")
    assert again.replicas.writes_for("edge-1"), "what it had is its own until somebody else has it"
    await again.replicas.acquire("edge-1")
    assert again.client.written_of("edge-1") == 0
    await leading(again)
    assert LEADER.name not in again.client.written


async def test_the_leader_speaks_for_the_nodes_of_a_replica_that_died(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await leading(a)
    await a.replicas.acquire("edge-1")
    await until(lambda: "edge-1" in b.changed)
    await a.kill()
    assert not b.replicas.writes_for("edge-1"), "it may be alive"
    await leading(b)
    await until(lambda: b.replicas.writes_for("edge-1"))
    assert b.changed.count("edge-1") >= 2, "and whoever writes is told"
    await b.replicas.acquire("edge-1")  # and its node is served at once
    assert holder_of(await b.client.get(LEASES, node_key("edge-1"))) == "b"


async def test_one_that_stops_makes_nobody_wait(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await leading(a)
    await until(lambda: b.replicas.status().replicas == ("a", "b"))
    began = own.clock()
    await a.stop()
    await leading(b)
    assert own.clock() - began < LEASE_S * 0.8, "the Lease was given back, not run out"


async def test_clocks_that_differ_by_an_hour_do_not_matter(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real, names = leases.micro_time, ["2020-01-01T00:00:00.000000Z", "2040-01-01T00:00:00.000000Z"]
    shift = {"a": names[0][:10], "b": names[1][:10]}
    a = await cluster.start("a")
    monkeypatch.setattr(own, "micro_time", lambda: shift["a"] + real()[10:])
    await leading(a)
    b = await cluster.start("b")
    await asyncio.sleep(LEASE_S * 1.5)  # long enough for a wrong judgement
    assert a.replicas.is_leader()
    assert b.replicas.status().replicas == ("a", "b")
    assert not b.replicas.is_leader()


async def test_who_was_away_writes_nothing_before_it_knows_what_happened(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.replicas.acquire("edge-1")
    await a.replicas.acquire("edge-2")
    a.client.cut = True  # its renewals do not arrive; its watch may be as late as it likes
    await until(lambda: not a.replicas.status().valid, what="its Lease runs out for itself first")
    assert b.replicas.status().replicas == ("a", "b"), "and for the others later"
    granted = asyncio.create_task(a.replicas.granted())
    await asyncio.sleep(0)
    assert not granted.done()
    assert not a.replicas.is_leader()
    await b.replicas.acquire("edge-1")
    a.client.cut = False
    await granted
    assert not a.replicas.writes_for("edge-1")
    assert a.replicas.writes_for("edge-2"), "nobody took it, so it is still ours"


async def test_a_renewal_counts_only_once_the_watch_has_shown_it(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.replicas.acquire("edge-1")
    watch = a.replicas._leases
    take, held = watch._take, []

    def hold(obj: Object, *, listed: bool = False) -> None:
        held.append(obj)

    watch._take = hold  # type: ignore[method-assign]  # a watch that has got stuck; writes get through
    await b.replicas.acquire("edge-1")
    await until(lambda: not a.replicas.status().valid, what="a stops to write although it can renew")
    watch._take = take  # type: ignore[method-assign]
    for obj in held:
        watch._take(obj)
        if not a.replicas.writes_for("edge-1"):
            break
    else:
        raise AssertionError("never told")


async def test_a_renewal_is_good_from_when_it_was_sent(
    api: ApiServer, kube: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(own, "clock", lambda: now)
    lease = own.OwnLease(kube, "a", renew_s=3.0, lease_s=10.0, regained=lambda: None)
    running = asyncio.create_task(lease.run())
    try:
        found: list[Object] = []
        for _ in range(1000):
            if found := (await kube.list_page(LEASES, scope=leases.EVERY_LEASE)).items:
                break
        good: list[bool] = [lease.valid]  # nobody has shown it yet
        now = 1007.0
        lease.seen(found[0])
        good.append(lease.valid)
        now = 1009.0  # others count ten seconds from when they saw it, which was later than it was sent
        good.append(lease.valid)
        lease.seen(found[0])  # it was shown before
        good.append(lease.valid)
        assert good == [False, True, False, False]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_another_process_of_the_same_name_ends_the_older(cluster: Cluster) -> None:
    first = await cluster.start("twin")
    second = await cluster.start("twin")
    with pytest.raises(ConfigError, match=r"cloudHub.replica.*another cloudcore runs as replica 'twin'"):
        async with asyncio.timeout(10):
            await first.task
    assert not first.replicas.status().valid
    await asyncio.sleep(LEASE_S / 2)
    assert second.replicas.status().valid, "the one that stopped has not taken the other's Lease away"


async def test_a_node_that_is_no_more_leaves_no_lease_behind(cluster: Cluster, kube: Kubernetes) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await leading(a)
    for node in ("gone", "here", "back"):
        await a.replicas.acquire(node)
    await b.replicas.acquire("elsewhere")
    await until(lambda: "elsewhere" in a.changed)
    a.replicas.released("gone")
    a.replicas.released("back")
    assert set(a.replicas.absent_nodes()) == {"gone", "back"}, "nor those of another replica that lives"
    a.client.cut = True
    with pytest.raises(Unavailable):
        await a.replicas.forget_node("gone")
    assert "gone" in a.replicas.absent_nodes(), "it is tried again"
    a.client.cut = False
    await a.replicas.acquire("back")
    for node in ("gone", "here", "back", "elsewhere", "never-seen"):
        await a.replicas.forget_node(node)
    assert {key.name for key in await lease_keys(kube)} >= {node_key(n).name for n in ("here", "back", "elsewhere")}
    assert node_key("gone") not in await lease_keys(kube)
    assert a.replicas.absent_nodes() == []
    await a.replicas.acquire("gone")  # it comes back after all
    assert node_key("gone") in await lease_keys(kube)
    assert a.replicas.writes_for("gone")


async def lease_keys(kube: Kubernetes) -> set[Key]:
    return {key_of(lease) for lease in (await kube.list_page(LEASES, scope=Scope(namespace=NAMESPACE))).items}


async def test_a_node_waits_while_the_api_is_away(cluster: Cluster) -> None:
    a = await cluster.start("a")
    a.client.cut = True
    waiting = asyncio.create_task(a.replicas.acquire("edge-1"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    a.client.cut = False
    async with asyncio.timeout(10):
        await waiting
    assert a.replicas.writes_for("edge-1")


async def test_the_namespace_is_made(cluster: Cluster, kube: Kubernetes) -> None:
    await kube.delete(NAMESPACES, Key("", NAMESPACE))
    a = await cluster.start("a")
    assert (await kube.get(NAMESPACES, Key("", NAMESPACE)))["kind"] == "Namespace"
    await a.replicas.acquire("edge-1")


async def test_replicas_agree_on_one_owner_whatever_nodes_do(cluster: Cluster) -> None:
    rng = random.Random(7)
    running = [await cluster.start(name) for name in ("a", "b", "c")]
    nodes = [f"edge-{n}" for n in range(4)]

    async def wander(node: str) -> None:
        for _ in range(8):
            dialled = rng.sample(running, rng.choice((1, 1, 2)))  # two: a connection that the node has given up
            await asyncio.gather(*(one.replicas.acquire(node) for one in dialled))
            await asyncio.sleep(rng.random() * 0.02)

    await asyncio.gather(*(wander(node) for node in nodes))
    for node in nodes:
        holder = holder_of(await running[0].client.get(LEASES, node_key(node)))

        def agreed(node: str = node, holder: str = holder) -> bool:
            return all(one.replicas.writes_for(node) == (one.replicas.name == holder) for one in running)

        await until(agreed, what=f"all agree on {node}")


async def test_leases_have_labels_to_find_them_by(cluster: Cluster) -> None:
    a = await cluster.start("a")
    await a.replicas.acquire("edge-1")
    await leading(a)
    found = await a.client.list_page(LEASES, scope=Scope(NAMESPACE, "kubetwin.devices.kubeedge.io/lease in (node)"))
    assert [item["metadata"]["name"] for item in found.items] == ["kubetwin-node.edge-1"]


async def test_a_lease_whose_labels_were_removed_is_taken_all_the_same(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.replicas.acquire("edge-1")
    bare = await a.client.get(LEASES, node_key("edge-1"))
    bare["metadata"]["labels"] = {}
    await a.client.replace(LEASES, node_key("edge-1"), bare)
    await until(lambda: not a.replicas.writes_for("edge-1") or a.replicas.is_leader())
    for one in (a, b, a):
        async with asyncio.timeout(10):
            await one.replicas.acquire("edge-1")
        assert one.replicas.writes_for("edge-1")


def test_long_node_names_have_a_lease_too() -> None:
    for node in ("edge-1", "n" * 253, "n" * 252 + "m"):
        key = node_key(node)
        assert len(key.name) <= 253
        lease = node_lease(node, holder="a", now="t", lease_s=10, before=None)
        assert lease["metadata"]["name"] == key.name
        assert node_of(key, leases.slim(lease)) == node
        assert node_of(replica_key("a"), lease) == ""
    assert node_key("n" * 253) != node_key("n" * 252 + "m")


def test_names_of_replicas() -> None:
    assert replica_name("cloud-1.example") == "cloud-1.example"
    assert replica_name("")
    for wrong in ("Cloud", "-a", "a/b", "a..b", "a" * 201):
        with pytest.raises(ConfigError, match=r"cloudHub\.replica"):
            replica_name(wrong)


def test_a_lease_that_somebody_spoilt_is_read_as_nobodys() -> None:
    specs: list[Object] = [{}, {"spec": None}, {"spec": []}, {"spec": {"holderIdentity": 3, "leaseTransitions": "x"}}]
    for spoilt in [*specs, {"metadata": {"annotations": []}}]:
        assert holder_of(spoilt) == ""
        assert leases.incarnation_of(spoilt) == ""
        wanted = node_lease("n", holder="a", now="t", lease_s=10, before={"metadata": {}, **spoilt})
        assert wanted["spec"]["leaseTransitions"] == 1
