"""What seldom happens to Leases of replicas: deleted by hand, answers that get lost, an API that is away for days."""

import asyncio
import contextlib
from typing import Any

import pytest

from cloudcore.kube import Conflict, Key, Kind, NotFound, Object, Unavailable
from cloudcore.replicas import own
from cloudcore.replicas.leases import LEASES, holder_of, node_key, replica_key
from tests.cloudcore.support import Kubernetes, until
from tests.cloudcore.test_replicas import Client, Cluster, cluster, leading

__all__ = ["cluster"]


async def test_a_node_whose_lease_is_deleted_by_hand_comes_again(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    await leading(a)
    await b.replicas.acquire("edge-1")
    await a.client.delete(LEASES, node_key("edge-1"))
    # Else nobody would write what it reports: the leader does not hear it, and who hears it does not own it.
    await until(lambda: b.lost, what="its connection is ended")
    assert b.lost[0] == ("edge-1", "")
    async with asyncio.timeout(10):
        await b.replicas.acquire("edge-1")
    assert holder_of(await a.client.get(LEASES, node_key("edge-1"))) == "b"
    assert b.replicas.writes_for("edge-1")


async def test_a_node_is_not_absent_for_a_second_connection_that_gave_up(cluster: Cluster) -> None:
    a = await cluster.start("a")
    await leading(a)
    await a.replicas.acquire("edge-1")
    a.replicas._own._valid_until = float("-inf")  # until the next renewal
    assert not a.replicas.acquire_now("edge-1")
    second = asyncio.create_task(a.replicas.acquire("edge-1"))
    await asyncio.sleep(0)
    second.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await second
    await a.replicas.granted()
    assert a.replicas.absent_nodes() == [], "the first is there still"
    assert not a.lost


async def test_a_lease_that_is_gone_is_nobodys_although_the_answer_got_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await cluster.start("a")
    await leading(a)
    await a.replicas.acquire("gone")
    a.replicas.released("gone")
    delete = Client.delete

    async def lose(client: Client, kind: Kind, key: Key, **how: Any) -> None:
        await delete(client, kind, key, **how)
        await until(lambda: a.replicas._leases.get(key) is None, what="the watch tells first")
        raise Unavailable("the answer got lost")

    monkeypatch.setattr(Client, "delete", lose)
    with pytest.raises(Unavailable):
        await a.replicas.forget_node("gone")
    assert not a.replicas.acquire_now("gone"), "without a Lease nobody else would know"


async def test_leases_of_replicas_that_are_gone_do_not_pile_up(cluster: Cluster) -> None:
    """Pods get new names with every roll-out."""
    first = await cluster.start("pod-1")
    await first.kill()
    a = await cluster.start("pod-2", forget_s=3.0)
    await leading(a)
    b = await cluster.start("pod-3")
    await until(lambda: b.replicas._leases.get(replica_key("pod-1")) is None, what="its Lease is gone")
    assert all(b.replicas._leases.get(replica_key(name)) for name in ("pod-2", "pod-3"))
    assert a.replicas.is_leader()
    assert b.replicas.status().replicas == ("pod-2", "pod-3")


async def test_renewals_that_nobody_answers_are_not_kept(kube: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(own, "clock", lambda: now)

    async def away(*_: Any, **__: Any) -> Object:
        raise Unavailable("cut off by the test")

    lease = own.OwnLease(kube, "a", renew_s=3.0, lease_s=10.0, regained=lambda: None)
    monkeypatch.setattr(kube, "create", away)
    for _ in range(100):
        with pytest.raises(Unavailable):
            await lease._renew()
        now += 1.0
    assert len(lease._sent) <= 10
    monkeypatch.undo()
    monkeypatch.setattr(own, "clock", lambda: now)
    with contextlib.suppress(Unavailable):
        await lease._make_namespace()
    await lease._renew()
    lease.seen(await kube.get(LEASES, replica_key("a")))
    assert lease.valid
    await lease.settled()


async def test_a_lease_that_is_deleted_by_hand_is_made_again(kube: Kubernetes) -> None:
    lease = own.OwnLease(kube, "a", renew_s=3.0, lease_s=10.0, regained=lambda: None)
    await lease._make_namespace()
    await lease._renew()
    await kube.delete(LEASES, replica_key("a"))
    with pytest.raises(NotFound):
        await lease._renew()
    await lease._renew()
    assert holder_of(await kube.get(LEASES, replica_key("a"))) == "a"


async def test_whose_lease_another_process_took_stops_writing_at_once(
    kube: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (own.OwnLease(kube, "a", renew_s=3.0, lease_s=10.0, regained=lambda: None) for _ in range(2))
    await first._make_namespace()
    await first._renew()
    first.seen(await kube.get(LEASES, replica_key("a")))
    replace = kube.replace

    async def lose(*of_what: Any) -> Object:
        await replace(*of_what)
        raise Unavailable("the answer got lost")

    monkeypatch.setattr(kube, "replace", lose)
    with pytest.raises(Unavailable):
        await first._renew()
    monkeypatch.undo()
    with pytest.raises(Conflict):  # with a write of its own
        await first._renew()
    await first._renew()
    assert (first.valid, first._replaced.is_set()) == (True, False)
    await second._renew()
    await first._renew()  # before the watch has shown it
    assert (first.valid, first._replaced.is_set()) == (False, True)
    await first.release()
    assert holder_of(await kube.get(LEASES, replica_key("a"))) == "a", "it is the other's"
