"""A day of coming and going, in minutes: RSS of one CloudCore at the end of each simulated hour.

60 nodes with 10 devices each, over mutual TLS; half of them say what they have when they connect, as our edge core
does, half do not, as upstream's. In an hour each node loses its connection once and says how it is once, each device
reports three values, 4 nodes leave for good and as many new ones come with devices of their own, 30 other devices are
deleted and made under new names, 60 get a new desired value, 6 move to another node. An hour ends when every value is
confirmed and every node has exactly its devices, so that each sample is of the same state.

The first 34 hours are warm-up, and left out: so long the heap still finds its extent, with a constant number of
objects in it. `slope` is MB (10^6 bytes) per simulated hour by linear regression over the day that follows, `noise`
twice its standard error. The short form is an hour of warm-up and four hours.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.channel.churn_node import ChurnNode
from benchmarks.figures import figure, rss_mib
from cloudcore.devicecontroller.kinds import DEVICES, STATUSES
from cloudcore.kube import Key, Kind, KubeClient, KubeError, Object
from cloudedge import certificates
from cloudedge.loop_errors import LoopErrors
from tests.e2e.replicas import ReplicaSet, device_object, free_ports, replica_set

__all__ = ["run"]

NODES: Final = 60
DEVICES_OF_NODE: Final = 10
VALUES: Final = 3
REPLACED_NODES: Final = 4
REPLACED_DEVICES: Final = 30
NEW_DESIRED: Final = 60
MOVED: Final = 6
DAY_H: Final = 24
WARM_UP_H: Final = 34
SHORT_H: Final = 4
SHORT_WARM_UP_H: Final = 1
FULL_DAY_FROM_S: Final = 60.0
"""`--seconds` of this and more run the whole day."""
REPLICA: Final = "replica-0"
API_CALLS: Final = 8
"""At a time."""
HOUR_WITHIN_S: Final = 240.0
ROUND_S: Final = 8.0
"""How long it takes to go through all nodes in an hour."""
SETTLE_S: Final = 2.0
MB_PER_MIB: Final = 1.048576
NODE_KIND: Final = Kind(group="", version="v1", plural="nodes", kind="Node")
LEASE_KIND: Final = Kind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")


def run(seconds: float, *, nodes: int = NODES) -> None:
    hours, warm_up = (DAY_H, WARM_UP_H) if seconds >= FULL_DAY_FROM_S else (SHORT_H, SHORT_WARM_UP_H)
    asyncio.run(_measure(hours, warm_up, max(nodes, REPLACED_NODES)))


async def _measure(hours: int, warm_up: int, nodes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        async with replica_set(Path(name), free_ports(1), nodes=[], devices=0) as (replicas, client):
            await replicas.listens(REPLICA)
            asyncio.get_running_loop().set_exception_handler(LoopErrors())
            async with asyncio.TaskGroup() as group:
                world = World(replicas, client, group, random.Random(1))
                await world.grow(nodes)
                pid, began = replicas.pid(REPLICA), time.monotonic()
                samples: list[float] = []
                for number in range(warm_up + hours):
                    await world.hour()
                    samples.append(rss_mib(pid) * MB_PER_MIB)
                    print(f"# hour {number + 1 - warm_up}: {samples[-1]:.2f} MB", flush=True)
                took_s = time.monotonic() - began
                wrong = await world.wrong_values()
                world.end()
    figure("channel.churn.hours", hours, "simulated")
    figure("channel.churn.warm_up", warm_up, "simulated_h_before")
    _show(samples[warm_up:], took_s, world, wrong)


def _show(samples: Sequence[float], took_s: float, world: World, wrong: int) -> None:
    figure("channel.churn.took", took_s, "s")
    for what, number in world.counts().items():
        figure(f"channel.churn.{what}", number, "")
    figure("channel.churn.wrong_last_values", wrong, f"of_{len(world.home)}")
    figure("channel.churn.rss.start", samples[0], "MB")
    figure("channel.churn.rss.end", samples[-1], "MB")
    slope, noise = trend(samples)
    figure("channel.churn.rss.slope", slope, "MB_per_simulated_hour")
    figure("channel.churn.rss.noise", noise, "MB_per_simulated_hour")


def trend(samples: Sequence[float]) -> tuple[float, float]:
    """Slope per sample, and twice its standard error."""
    hours = range(len(samples))
    slope, intercept = statistics.linear_regression(hours, samples)
    if len(samples) < 3:
        return slope, math.inf
    off = sum((mb - slope * hour - intercept) ** 2 for hour, mb in zip(hours, samples, strict=True))
    spread = sum((hour - statistics.mean(hours)) ** 2 for hour in hours)
    return slope, 2 * math.sqrt(off / (len(samples) - 2) / spread)


class World:
    """What is declared, and the nodes there are."""

    def __init__(self, replicas: ReplicaSet, client: KubeClient, group: asyncio.TaskGroup, rng: random.Random) -> None:
        self.home: dict[str, str] = {}
        """By device its node."""
        self.made = {"nodes": 0, "devices": 0, "values": 0, "connects": 0}
        self._nodes: dict[str, tuple[ChurnNode, asyncio.Task[None]]] = {}
        self._numbers = itertools.count()
        self._client = client
        self._replicas = replicas
        self._certs = replicas.directory / "certs"
        self._ca = certificates.load(self._certs, "ca")
        self._group = group
        self._rng = rng
        self._api = asyncio.Semaphore(API_CALLS)

    async def grow(self, nodes: int) -> None:
        """More nodes, with their devices."""
        await self._all(self._new_node() for _ in range(nodes))
        await self._settled()

    async def hour(self) -> None:
        leaving = self._rng.sample(sorted(self._nodes), REPLACED_NODES)
        await self._all([*(self._leave(node) for node in leaving), *(self._new_node() for _ in leaving)])
        devices = self._rng.sample(sorted(self.home), REPLACED_DEVICES + NEW_DESIRED + MOVED)
        gone, rest = devices[:REPLACED_DEVICES], devices[REPLACED_DEVICES:]
        homes = [self.home[device] for device in gone]
        await self._all([*(self._delete_device(d) for d in gone), *(self._new_device(node) for node in homes)])
        await self._all([*(self._want(d) for d in rest[:NEW_DESIRED]), *(self._move(d) for d in rest[NEW_DESIRED:])])
        await self._settled()  # else a value could be reported by a node that the device is just leaving
        for name in self._rng.sample(sorted(self._nodes), len(self._nodes)):
            node, _ = self._nodes[name]
            node.beat()
            node.report(node.devices, VALUES)
            await asyncio.sleep(ROUND_S / len(self._nodes))
            node.cut()  # with values on their way
        self.made["values"] += VALUES * len(self.home)
        await self._settled()

    def end(self) -> None:
        for node in list(self._nodes):
            self._stop(node)

    def counts(self) -> dict[str, int]:
        return self.made

    async def wrong_values(self) -> int:
        """Devices whose DeviceStatus does not show what was reported last."""
        wrong = 0
        for device, node in self.home.items():
            wanted = self._nodes[node][0].values.get(device)
            status = (await self._client.get(STATUSES, Key("default", device))).get("status") or {}
            shown = [twin["reported"]["value"] for twin in status.get("twins", ())]
            wrong += wanted is not None and shown != [str(wanted)]
        return wrong

    async def _settled(self) -> None:
        """Every node has its devices, and no value is on its way."""
        try:
            async with asyncio.timeout(HOUR_WITHIN_S):
                while self._unsettled():  # noqa: ASYNC110 - asked of many nodes
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise RuntimeError(f"not settled within {HOUR_WITHIN_S:g} s: {self._unsettled()}") from None
        await asyncio.sleep(SETTLE_S)

    def _unsettled(self) -> list[str]:
        wanted: dict[str, set[str]] = {name: set() for name in self._nodes}
        for device, name in self.home.items():
            wanted[name].add(device)
        return [name for name, (node, _) in self._nodes.items() if node.left or node.devices != wanted[name]]

    async def _new_node(self) -> None:
        name = f"edge-{next(self._numbers)}"
        self.made["nodes"] += 1
        await asyncio.to_thread(lambda: certificates.save(certificates.sign_node(self._ca, name), self._certs, name))
        url = f"wss://127.0.0.1:{self._replicas.ports[REPLICA]}"
        ours = self._rng.random() < 0.5
        node = ChurnNode(name, url, self._certs, self._rng, says_what_it_has=ours)
        self._nodes[name] = node, self._group.create_task(node.run(), name=name)
        for _ in range(DEVICES_OF_NODE):
            await self._new_device(name)

    async def _leave(self, name: str) -> None:
        """First the node goes, then what was declared for it."""
        self._stop(name)
        for device in [device for device, node in self.home.items() if node == name]:
            await self._delete_device(device)
        for kind, key in ((NODE_KIND, Key("", name)), (LEASE_KIND, Key("kube-node-lease", name))):
            await self._call(self._client.delete(kind, key))

    def _stop(self, name: str) -> None:
        node, task = self._nodes.pop(name)
        self.made["connects"] += node.connects
        task.cancel()

    async def _new_device(self, node: str) -> None:
        name = f"device-{next(self._numbers)}"
        self.made["devices"] += 1
        self.home[name] = node
        await self._call(self._client.create(DEVICES, device_object(node, name)))

    async def _delete_device(self, name: str) -> None:
        node = self._nodes.get(self.home.pop(name))
        if node is not None:
            node[0].forget(name)
        await self._call(self._client.delete(DEVICES, Key("default", name)))

    async def _want(self, device: str) -> None:
        value = str(self._rng.randrange(10**6))
        await self._patch(device, {"properties": [{"name": "level", "desired": {"value": value}}]})

    async def _move(self, device: str) -> None:
        self._nodes[self.home[device]][0].forget(device)
        self.home[device] = self._rng.choice(sorted(self._nodes))
        await self._patch(device, {"nodeName": self.home[device]})

    async def _patch(self, device: str, spec: Object) -> None:
        await self._call(self._client.patch(DEVICES, Key("default", device), {"spec": spec}))

    async def _call(self, call: Awaitable[object]) -> None:
        async with self._api:
            try:
                await call
            except KubeError as error:
                if error.status != 404:  # a node that left before it had registered
                    raise

    async def _all(self, work: Iterable[Awaitable[None]]) -> None:
        await asyncio.gather(*work)
