"""Which replica of the cloud core owns which node, and which one leads.

A replica that a node is connected to owns it, and the newest connection wins. For a node without a live owner the
leader speaks. Both are Leases that are written only when they change hands (see `leases`): that a replica lives is said
once, in its own Lease (`own`), not once for each of its nodes. Clocks of replicas are never compared: a Lease is fresh
while its renewals are seen to come.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from cloudcore.kube import (
    AlreadyExists,
    Conflict,
    Informer,
    Key,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    identity,
    resource_version,
)
from cloudcore.replicas import leases
from cloudcore.replicas.gauges import show
from cloudcore.replicas.leases import LEADER, LEASES
from cloudcore.replicas.own import OwnLease, clock
from cloudcore.replicas.pace import Pace
from cloudcore.replicas.settings import ReplicaSettings, ReplicaStatus
from dmi import ConfigError
from dmi.metrics import Metrics

__all__ = ["Replicas"]

logger = logging.getLogger(__name__)

_RETRY_CAP_S: Final = 2.0


class Replicas:
    """`run` it in a task. The hub asks it for nodes; who writes to the API asks `writes_for` and `granted`."""

    def __init__(
        self,
        client: KubeClient,
        settings: ReplicaSettings,
        *,
        own_client: KubeClient | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`own_client`: for what says that this replica lives, so that it waits behind nothing else."""
        self.name = settings.name
        self._client = client
        self._settings = settings
        self._own = OwnLease(
            own_client or client,
            settings.name,
            renew_s=settings.renew_s,
            lease_s=settings.lease_s,
            regained=self._regained,
        )
        self._leases = Informer(
            client, LEASES, scope=leases.EVERY_LEASE, slim=leases.slim, read_timeout_s=settings.lease_s
        )
        self._leases.subscribe(self._lease_changed)
        self._holders: dict[str, str] = {}
        """By node: the replica that owns it."""
        self._leader = ""
        self._alive: set[str] = set()
        self._seen_at: dict[str, float] = {}
        """By replica: when its Lease was seen to change last."""
        self._served: set[str] = set()
        """Nodes that are connected here."""
        self._wanted: Counter[str] = Counter()
        """Nodes that have connected here, and that are not ours yet."""
        self._granted = asyncio.Event()
        self._pace = Pace(self._own.settled)
        self._lost: list[Callable[[str, str], None]] = []
        self._changed: list[Callable[[str | None], None]] = []
        self._silent = False
        self._trouble = ""
        metrics = metrics or Metrics()
        self._takeovers = metrics.counter(
            "kubetwin_cloudcore_node_takeovers_total", "Nodes taken over from another replica of the cloud core."
        )
        self._failures = metrics.counter(
            "kubetwin_cloudcore_lease_write_failures_total", "Writes of node and leader Leases that failed."
        )
        show(metrics, self.status)

    def subscribe(
        self, *, lost: Callable[[str, str], None] | None = None, changed: Callable[[str | None], None] | None = None
    ) -> None:
        """`lost(node, by)`: another replica has a newer connection of a node, or, if `by` is empty, nobody owns it any
        more. `changed(node)`: who writes for the node may be another now; None: for any node.
        """
        if lost is not None:
            self._lost.append(lost)
        if changed is not None:
            self._changed.append(changed)

    # Asked by those who write.

    def writes_for(self, node: str) -> bool:
        """Whether it is for this replica to write what is known of a node: it owns it, or leads and nobody does."""
        holder = self._holders.get(node, "")
        if holder == self.name:
            return True
        return holder not in self._alive and self._leader == self.name

    async def granted(self) -> None:
        """Returns when this replica may write: at once, or when its Lease is fresh again."""
        while not self._own.valid:
            self._granted.clear()
            await self._granted.wait()

    def is_leader(self) -> bool:
        """Whether this replica is to do what is to be done once in the cluster."""
        return self._leader == self.name and self._own.valid

    def status(self) -> ReplicaStatus:
        valid = self._own.valid
        return ReplicaStatus(
            name=self.name,
            valid=valid,
            leads=self.is_leader(),
            leader=self._leader if self._leader == self.name or self._leader in self._alive else "",
            owned=sum(holder == self.name for holder in self._holders.values()),
            replicas=tuple(sorted({*self._alive, *((self.name,) if valid else ())})),
        )

    # Asked by the hub.

    def acquire_now(self, node: str, /) -> bool:
        """Whether this replica owns the node already, as after a restart; then there is nothing to wait for."""
        if not self._own.valid or self._holders.get(node) != self.name or node in self._wanted:
            return False
        self._served.add(node)
        return True

    async def acquire(self, node: str, /) -> None:
        """Returns when this replica owns the node: at once, or when the API server answers again."""
        self._wanted[node] += 1
        try:
            await self._acquire(node)
            self._served.add(node)
        finally:
            self._wanted[node] -= 1
            if not self._wanted[node]:
                del self._wanted[node]

    async def _acquire(self, node: str) -> None:
        delay_s, known = 0.05, False
        while True:
            known = known or node in self._holders
            await self.granted()
            if self._holders.get(node) == self.name:
                return
            try:
                async with self._pace.turn():
                    if self._own.valid:  # it may have been a long wait
                        await self._take(node, known)
                self._quiet()
                continue
            except (Conflict, AlreadyExists):  # another replica wrote it at the same time, or before we knew
                known = True
            except KubeError as error:
                self._note(error)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            delay_s = min(_RETRY_CAP_S, 2 * delay_s)

    def released(self, node: str, /) -> None:
        """It stays ours, so that its coming back costs nothing, until another replica has it."""
        self._served.discard(node)

    # Asked by who cleans up.

    def absent_nodes(self) -> list[str]:
        """Nodes with a Lease that are not connected here, and that no other replica looks after."""
        here = self._served | self._wanted.keys()
        return [node for node in self._holders if node not in here and self.writes_for(node)]

    def is_elsewhere(self, node: str) -> bool:
        """Whether another replica looks after it."""
        holder = self._holders.get(node, "")
        return holder != self.name and holder in self._alive

    async def forget_node(self, node: str) -> None:
        """There is no such node any more, so there need be no Lease. Nothing is done where it has come back meanwhile.

        Raises:
            KubeError: The API does not take it now.
        """
        lease = self._leases.get(leases.node_key(node))
        if lease is None or node not in self.absent_nodes():
            return
        del self._holders[node]  # from now on a connection of it has to have the Lease written again
        try:
            await self._client.delete(
                LEASES, leases.node_key(node), uid=identity(lease), version=resource_version(lease)
            )
        except (NotFound, Conflict):  # what became of it, the watch says
            pass
        except KubeError:
            if (lease := self._leases.get(leases.node_key(node))) is not None:  # it may be gone, and the answer lost
                self._holders.setdefault(node, leases.holder_of(lease))
            raise

    async def run(self) -> None:
        """Until cancelled; then the Lease is given back.

        Raises:
            ConfigError: Another process has taken the name of this replica.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._leases.run(), name="watch leases")
                group.create_task(self._look(), name="look at replicas")
                group.create_task(self._own.run(), name="renew own lease")
        except ExceptionGroup as errors:
            raise next((e for e in errors.exceptions if isinstance(e, ConfigError)), errors) from None
        finally:
            await self._own.release()

    async def _take(self, node: str, known: bool) -> None:
        """`known`: there may be a Lease. Of a node that comes for the first time there is none to be read."""
        key = leases.node_key(node)
        before = await self._stored(key) if known else None
        if leases.holder_of(before) == self.name and self._holders.get(node) == self.name:
            return
        wanted = leases.node_lease(
            node, holder=self.name, now=leases.micro_time(), lease_s=self._settings.lease_s, before=before
        )
        await self._write(key, wanted, before)
        if leases.holder_of(before) not in ("", self.name):
            self._takeovers.add()
            logger.info("node %s taken over from replica %s", node, leases.holder_of(before) or "?")

    async def _stored(self, key: Key) -> Object | None:
        """The Lease as the API has it: a cache may be behind, or lack one whose labels somebody has removed."""
        try:
            stored = await self._client.get(LEASES, key)
        except NotFound:
            return None
        self._leases.observe(stored)
        return stored

    async def _write(self, key: Key, wanted: Object, before: Object | None) -> None:
        if before is None:
            self._leases.observe(await self._client.create(LEASES, wanted))
        else:
            self._leases.observe(await self._client.replace(LEASES, key, wanted))

    # What others do.

    def _lease_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        if key == LEADER:
            self._leader_is(leases.holder_of(new))
        elif replica := leases.replica_of(key):
            self._replica_changed(replica, new)
        elif node := leases.node_of(key, new or old or {}):
            self._node_changed(node, leases.holder_of(new))

    def _node_changed(self, node: str, holder: str) -> None:
        before = self._holders.get(node, "")
        if holder == before:
            return
        wrote = self.writes_for(node)
        if holder:
            self._holders[node] = holder
        else:
            self._holders.pop(node, None)
        if before == self.name and holder and node not in self._wanted:  # else the newest connection is ours
            self._tell_lost(node, holder)
        if holder or self.writes_for(node) != wrote:
            self._tell_changed(node)

    def _replica_changed(self, replica: str, lease: Object | None) -> None:
        if replica == self.name:
            if lease is not None:
                self._own.seen(lease)
            return
        if lease is None:
            self._seen_at.pop(replica, None)
            self._died(replica, "has left")
            return
        self._seen_at[replica] = clock()
        if replica not in self._alive:
            self._alive.add(replica)
            logger.info("replica %s lives", replica)
            self._tell_nodes_of(replica)

    def _leader_is(self, holder: str) -> None:
        before, self._leader = self._leader, holder
        if before != holder and self.name in (before, holder):
            logger.info("replica %s leads%s", holder or "nobody", "" if holder == self.name else " now, not this one")
            self._tell_changed(None)

    def _died(self, replica: str, how: str) -> None:
        if replica in self._alive:
            self._alive.discard(replica)
            logger.warning("replica %s %s", replica, how)
            self._tell_nodes_of(replica)

    def _tell_nodes_of(self, replica: str) -> None:
        for node in [node for node, holder in self._holders.items() if holder == replica]:
            self._tell_changed(node)

    def _tell_lost(self, node: str, by: str) -> None:
        for tell in self._lost:
            tell(node, by)

    def _tell_changed(self, node: str | None) -> None:
        for tell in self._changed:
            try:
                tell(node)
            except Exception:  # one odd object must not stop the replica
                logger.exception("node %s: a new writer could not be noted", node or "(any)")

    def _regained(self) -> None:
        """The watch has told of everything until our renewal, so also of those of the others."""
        if self._silent:
            logger.info("replica %s writes again", self.name)
        self._silent = False
        self._granted.set()

    async def _look(self) -> None:
        """Notice who has died, and lead where nobody does."""
        while True:
            await asyncio.sleep(self._settings.look_s)
            if not self._own.valid:
                if not self._silent and self._granted.is_set():
                    self._silent = True
                    logger.warning(
                        "replica %s: its Lease has run out; it writes nothing until it is renewed", self.name
                    )
                continue
            late = clock() - self._settings.lease_s
            for replica in [r for r in self._alive if self._seen_at.get(r, late) <= late]:
                self._died(replica, f"has not renewed its Lease for {self._settings.lease_s:g} s")
            # A connection may have come to be between two looks at who owns its node; a Lease may be deleted by hand.
            lost = [n for n in self._served if self._holders.get(n) != self.name and n not in self._wanted]
            for node in lost:
                self._tell_lost(node, self._holders.get(node, ""))
            if self._leader != self.name and self._leader not in self._alive:
                await self._lead()
            gone = clock() - self._settings.forget_s
            for replica in [r for r, at in self._seen_at.items() if at <= gone and self.is_leader()]:
                await self._bury(replica)

    async def _lead(self) -> None:
        try:
            async with asyncio.timeout(self._settings.renew_s):
                before = await self._stored(LEADER)
                holder = leases.holder_of(before)
                if holder in self._alive or (holder == self.name == self._leader):
                    return
                wanted = leases.leader_lease(
                    holder=self.name, now=leases.micro_time(), lease_s=self._settings.lease_s, before=before
                )
                await self._write(LEADER, wanted, before)
                self._quiet()
        except (Conflict, AlreadyExists):
            pass  # another one was faster
        except (KubeError, TimeoutError) as error:
            self._note(error)

    async def _bury(self, replica: str) -> None:
        """Remove the Lease of a replica that has died for good."""
        self._seen_at[replica] = clock()  # if it cannot be removed now, not every moment again
        lease = self._leases.get(key := leases.replica_key(replica))
        if lease is None:
            return
        try:
            async with asyncio.timeout(self._settings.renew_s):
                await self._client.delete(LEASES, key, uid=identity(lease), version=resource_version(lease))
            logger.info("the Lease of replica %s, which is gone, is removed", replica)
        except (NotFound, Conflict):  # what became of it, the watch says
            pass
        except (KubeError, TimeoutError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._failures.add()
        trouble = type(error).__name__
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("Leases cannot be written: %s; trying on", str(error) or trouble)

    def _quiet(self) -> None:
        self._trouble = ""
