"""kill -9 of one of three CloudCore replicas behind one address: how long until each of its nodes has a value at the
API again. Nodes are simulated over mutual TLS and report all the time, and dial again within a second.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

from benchmarks.figures import figure
from cloudcore.replicas.leases import LEASES, holder_of, node_key
from tests.e2e.replicas import free_ports, replica_set

__all__ = ["run"]

REPLICAS = 3
DEVICES = 2
KILLS = 3


def run(_seconds: float, nodes: int = 60) -> None:
    asyncio.run(_measure(nodes))


async def _measure(nodes: int) -> None:
    names = [f"edge-{number}" for number in range(nodes)]
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        async with (
            replica_set(Path(name), free_ports(REPLICAS), nodes=names, devices=DEVICES) as (replicas, client),
            replicas.nodes(names, DEVICES) as all_nodes,
        ):
            await all_nodes.served_since(0.0, within_s=120)
            slowest, owned = 0.0, 0
            for _ in range(KILLS):
                victim = rng.choice(list(replicas.ports))
                holders = [holder_of(await client.get(LEASES, node_key(node))) for node in names]
                owned += holders.count(victim)
                killed_at = await replicas.kill(victim)
                slowest = max(slowest, await all_nodes.served_since(killed_at, within_s=120))
                await replicas.start(victim)
                await replicas.listens(victim)
    figure("channel.takeover.served_again.max", slowest, "s")
    figure("channel.takeover.nodes", owned, f"of_{KILLS * nodes}")
