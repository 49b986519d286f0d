"""The loop that compares, every few seconds and for every node that is here, what it has with what the API says.

Changes are sent when they happen; this finds what went past that. What to send is known by who sends it, so each of
them compares, and sends on its own path, under its own source: upstream's loop sends everything as EdgeController's,
and devices that came so are stored at the edge and reach no mapper (channel contract 8.1 #8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from msgspec import Struct

from cloudcore.kube import Informer, Key, Kind, KubeClient, KubeError, Object, identity, key_of, resource_version
from cloudcore.synccontroller.records import Records
from dmi.metrics import Metrics

__all__ = ["Reconciled", "SyncController", "SyncSettings"]

logger = logging.getLogger(__name__)

NODES: Final = Kind(group="", version="v1", plural="nodes", kind="Node")
GC_ROUNDS: Final = 2
"""A node that does not exist is one that was not there so many times in a row."""


class Reconciled(Protocol):
    """Who sends objects to nodes."""

    @property
    def told_nodes(self) -> Collection[str]:
        """Connected here, and told of everything once."""

    def reconcile(self, node: str, /) -> tuple[int, int]:
        """Send what the node lacks. How many objects were sent, and how many of these are deletions."""


class Owners(Protocol):
    """Which replica has which node."""

    def absent_nodes(self) -> Collection[str]:
        """Nodes that are remembered, not connected, and this replica's to forget."""

    def is_elsewhere(self, node: str, /) -> bool:
        """Whether another replica looks after it, connected or not."""

    async def forget_node(self, node: str, /) -> None:
        """There is no such node any more.

        Raises:
            KubeError: Not forgotten yet.
        """


class SyncSettings(Struct, frozen=True):
    every_s: float = 5.0
    """As upstream's."""
    collect_every_s: float = 60.0
    """How often records of nodes that are no more are looked for."""


class SyncController:
    """`run` it in a task."""

    def __init__(
        self,
        client: KubeClient,
        records: Records,
        senders: Sequence[Reconciled],
        settings: SyncSettings | None = None,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        owners: Owners | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`is_leader`: whether this process collects records of nodes that are no more; one is enough. `owners` are
        told of these nodes too.
        """
        metrics = metrics or Metrics()
        self._resent = metrics.counter(
            "kubetwin_cloudcore_sync_resent_total", "Objects that a comparison found a node to lack.", "operation"
        )
        self._collected = metrics.counter(
            "kubetwin_cloudcore_sync_collected_total", "Records dropped because their node is no more."
        )
        self._settings = settings or SyncSettings()
        self._records = records
        self._senders = senders
        self._is_leader = is_leader
        self._owners = owners
        self._nodes = Informer(client, NODES, slim=_slim)
        self._absent: dict[str, int] = {}
        """By node without a Node object, in how many rounds."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._records.run(), name="records")
            group.create_task(self._nodes.run(), name="watch nodes")
            group.create_task(self._compare(), name="compare nodes")
            group.create_task(self._collect(), name="collect records")

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(self._settings.every_s)
            for sender in self._senders:
                for node in tuple(sender.told_nodes):
                    self._reconcile(sender, node)
                    await asyncio.sleep(0)

    def _reconcile(self, sender: Reconciled, node: str) -> None:
        try:
            sent, deleted = sender.reconcile(node)
        except Exception:  # one node must not stop all others
            logger.exception("node %s could not be compared with the API", node)
            return
        if sent:
            self._resent.add("put", amount=sent - deleted)
            self._resent.add("delete", amount=deleted)
            logger.info("node %s lacked %d changes, %d of them deletions: sent", node, sent, deleted)

    async def _collect(self) -> None:
        await self._nodes.synced.wait()
        while True:
            await asyncio.sleep(self._settings.collect_every_s)
            await self._collect_now()

    async def _collect_now(self) -> None:
        recorded = set(self._records.nodes()) if self._is_leader() and self._records.synced else set()
        owned: set[str] = set()
        if self._owners is not None:
            owned = set(self._owners.absent_nodes())
            # A node whose edge core does not register it has no Node object, and may be connected all the same.
            recorded = {node for node in recorded if not self._owners.is_elsewhere(node)}
        here = {node for sender in self._senders for node in sender.told_nodes}
        absent = {n for n in recorded | owned if n not in here and self._nodes.get(Key("", n)) is None}
        self._absent = {node: self._absent.get(node, 0) + 1 for node in absent}
        for node in [node for node, rounds in self._absent.items() if rounds >= GC_ROUNDS]:
            if node in recorded:
                count = self._records.forget_node(node)
                self._collected.add(amount=count)
                logger.info("there is no node %s: %d records dropped", node, count)
            if self._owners is not None and node in owned:
                try:
                    await self._owners.forget_node(node)
                except KubeError as error:
                    logger.debug("node %s, which is no more, is not forgotten yet: %s", node, error)


def _slim(node: Object) -> Object:
    key = key_of(node)
    return {"metadata": {"name": key.name, "uid": identity(node), "resourceVersion": resource_version(node)}}
