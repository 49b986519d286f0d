"""Several CloudCore processes behind one address: whichever dies, every node is served, and no value is lost."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cloudcore.kube import Key, KubeClient
from cloudcore.replicas.leases import LEADER, LEASES, holder_of, node_key
from tests.e2e.replica_nodes import Nodes, until
from tests.e2e.replicas import ReplicaSet, Watched, free_ports, replica_set, want

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = [f"edge-{n}" for n in range(6)]
DEVICES = 2
TAKEOVER_S = 15.0


class World:
    def __init__(self, replicas: ReplicaSet, client: KubeClient, nodes: Nodes, watched: Watched) -> None:
        self.replicas = replicas
        self.client = client
        self.nodes = nodes
        self.watched = watched

    async def holder(self, node: str) -> str:
        return holder_of(await self.client.get(LEASES, node_key(node)))

    async def leader(self) -> str:
        return holder_of(await self.client.get(LEASES, LEADER))

    async def led_by_another(self, before: str) -> None:
        end = time.monotonic() + 20
        while (leader := await self.leader()) == before or leader not in self.replicas.ports:
            assert time.monotonic() < end, leader
            await asyncio.sleep(0.1)

    async def at_rest(self) -> None:
        """Nodes say nothing new; all they said is at the API."""
        for node in self.nodes.all:
            node.reporting = False
        await until(lambda: all(n.settled() for n in self.nodes.all), within_s=20, what="all is confirmed")
        for node in self.nodes.all:
            for device in node.devices:

                def arrived(device: str = device, value: int = node.last[device]) -> bool:
                    return self.watched.values.get(device, [0])[-1] == value

                await until(arrived, within_s=10, what=f"the last value of {device}")
        for device, values in self.watched.values.items():
            assert values == sorted(values), f"{device}: an older value came back: {values}"
        for device, told in ((d, t) for n in self.nodes.all for d, t in n.desired.items()):
            versions = [version for version, _ in told]
            assert versions == sorted(versions), f"{device}: an older version was sent: {told}"

    def assert_steady(self, devices: Sequence[str] = ()) -> None:
        """None of the devices (all of them) was shown as anything but online since it was so first."""
        for device in devices or self.watched.states:
            states = self.watched.states[device]
            assert states[-1] == "online", (device, states)
            assert "unknown" not in states[states.index("online") :], (device, states)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        replica_set(tmp_path, free_ports(3), nodes=NODES, devices=DEVICES) as (replicas, client),
        replicas.nodes(NODES, DEVICES) as nodes,
    ):
        watched = Watched(client)
        watching = asyncio.create_task(watched.informer.run())
        try:
            await nodes.served_since(0.0, within_s=60)  # all replicas started at once on an empty cluster
            yield World(replicas, client, nodes, watched)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def test_replicas_are_killed_at_random(world: World) -> None:
    rng = random.Random(5)
    for round_ in range(4):
        victim = rng.choice(list(world.replicas.ports))
        for node in world.nodes.all:
            await want(world.client, node.devices[0], round_ + 1)
        killed_at = await world.replicas.kill(victim)
        took_s = await world.nodes.served_since(killed_at, within_s=TAKEOVER_S)
        assert took_s < TAKEOVER_S
        await asyncio.sleep(rng.uniform(0.0, 12.0))  # before and after the others know that it is dead
        await world.replicas.start(victim)
        await world.replicas.listens(victim)
    await world.at_rest()
    world.assert_steady()
    for node in world.nodes.all:
        assert node.desired[node.devices[0]][-1][1] == "4", "the desired value has reached its node"


async def test_the_leader_is_killed_and_a_node_does_not_come_back(world: World) -> None:
    leader = await world.leader()
    holders = [await world.holder(node.name) for node in world.nodes.all]
    away = world.nodes.all[holders.index(leader)] if leader in holders else world.nodes.all[0]
    others = [node for node in world.nodes.all if node is not away]
    away.present.clear()
    killed_at = await world.replicas.kill(holders[world.nodes.all.index(away)])
    await Nodes(others).served_since(killed_at, within_s=TAKEOVER_S)

    def states() -> set[str]:
        return {world.watched.states[device][-1] for device in away.devices}

    await until(lambda: states() == {"unknown"}, within_s=40, what="another replica says that nobody knows")
    assert time.monotonic() - killed_at > 15.0, "the dead replica's ten seconds, and the node's"
    await world.led_by_another("")
    away.present.set()
    await until(lambda: states() == {"online"}, within_s=TAKEOVER_S, what="the node is back")
    await world.at_rest()
    for device in away.devices:
        assert world.watched.states[device][-3:] == ["online", "unknown", "online"], "and it was told once"
    for node in others:
        world.assert_steady(node.devices)


async def test_a_replica_that_was_paused_writes_nothing_when_it_wakes(world: World) -> None:
    victim = await world.holder(NODES[0])
    world.replicas.pause(victim)
    paused_at = time.monotonic()
    world.replicas.balancer.drop(world.replicas.ports[victim])  # nodes go elsewhere; there they stay half-open
    await world.nodes.served_since(paused_at + 1.0, within_s=60)
    await asyncio.sleep(max(0.0, paused_at + 14.0 - time.monotonic()))  # longer than its Lease
    assert await world.holder(NODES[0]) != victim
    world.replicas.go_on(victim)
    await asyncio.sleep(12.0)  # long enough for it to take its old sessions for lost
    await world.at_rest()
    world.assert_steady()
    assert await world.holder(NODES[0]) != victim


async def test_the_api_restarts_in_the_middle(world: World) -> None:
    connects = [node.connects for node in world.nodes.all]
    await world.replicas.kill("apiserver")
    await asyncio.sleep(14.0)  # longer than any Lease
    await world.replicas.start_api()
    back_at = time.monotonic()
    await world.nodes.served_since(back_at, within_s=TAKEOVER_S)
    await world.at_rest()
    world.assert_steady()
    assert [node.connects for node in world.nodes.all] == connects, "no node was sent away"


async def test_replicas_are_restarted_one_by_one(world: World) -> None:
    for replica in world.replicas.ports:
        ended_at = time.monotonic()
        assert await world.replicas.end(replica) == 0
        await world.nodes.served_since(ended_at, within_s=TAKEOVER_S)
        await world.replicas.start(replica)
        await world.replicas.listens(replica)
    await world.at_rest()
    world.assert_steady()
    await world.led_by_another("")
    assert await world.client.get(LEASES, Key("kubeedge", "kubetwin-replica.replica-0"))
