"""A replica's own Lease: renewed every few seconds, and good for as long as that is known to everybody.

A renewal counts from when it was *sent*, and only once the watch has shown it: the watch tells changes in order, so all
that others took over before the renewal has been told by then. A process that was stopped for a while, or cut off,
therefore wakes up without the right to write, and gets it back when it knows what has happened meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Final

from cloudcore.kube import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Kind,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    identity,
    resource_version,
)
from cloudcore.replicas.leases import (
    LEASES,
    NAMESPACE,
    incarnation_of,
    micro_time,
    namespace,
    renewal_of,
    replica_key,
    replica_lease,
)
from dmi import ConfigError

__all__ = ["OwnLease", "clock"]

logger = logging.getLogger(__name__)

VALID: Final = 0.8
"""How much of a Lease its holder counts on. The others wait for all of it, counted from when they saw it renewed."""
_RETRY_S: Final = 1.0
_RELEASE_S: Final = 2.0
_NAMESPACES: Final = Kind(group="", version="v1", plural="namespaces", kind="Namespace")


def clock() -> float:
    """Seconds that go on while the process, or the machine, is asleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class OwnLease:
    """`run` it in a task; tell it with `seen` what the watch shows."""

    def __init__(
        self, client: KubeClient, replica: str, *, renew_s: float, lease_s: float, regained: Callable[[], None]
    ) -> None:
        """`regained` is called whenever the Lease is good after it was not."""
        self.incarnation = uuid.uuid4().hex
        self.failures = 0
        self._client = client
        self._replica = replica
        self._key = replica_key(replica)
        self._renew_s = renew_s
        self._lease_s = lease_s
        self._regained = regained
        self._stored: Object | None = None
        """As the API answered last."""
        self._sent: dict[str, float] = {}
        """Renewals that the watch has not shown yet, and when they were sent."""
        self._fewer = asyncio.Event()
        """Set, and replaced, when some of these are on their way no more."""
        self._valid_until = float("-inf")
        self._shown = False
        self._replaced = asyncio.Event()
        self._trouble = ""

    @property
    def valid(self) -> bool:
        return clock() < self._valid_until

    async def settled(self) -> None:
        """Returns when no renewal that is now on its way, to the API server or back by the watch, is so any more. For
        later ones it does not wait: with a watch that lags by more than the time between two there would be no end.
        """
        asked_at = clock()
        while any(at <= asked_at for at in self._sent.values()):
            await self._fewer.wait()

    def seen(self, lease: Object) -> None:
        """The watch shows our Lease, with whatever incarnation."""
        if incarnation_of(lease) != self.incarnation:
            if self._shown:  # after ours, so this one is newer
                self._valid_until = float("-inf")
                self._replaced.set()
            return
        self._shown = True
        sent_at = self._sent.pop(renewal_of(lease), None)
        if sent_at is None:
            return
        self._forget(sent_at)
        was_valid = self.valid
        self._valid_until = max(self._valid_until, sent_at + VALID * self._lease_s)
        if self.valid and not was_valid:
            self._regained()

    async def run(self) -> None:
        """Renew until cancelled.

        Raises:
            ConfigError: Another process took our name.
        """
        while True:
            try:
                async with asyncio.timeout(self._renew_s):
                    await self._renew()
            except (KubeError, TimeoutError) as error:
                self._note(error)
                pause_s = min(_RETRY_S, self._renew_s)
            else:
                self._recovered()
                pause_s = self._renew_s
            try:
                async with asyncio.timeout(pause_s):
                    await self._replaced.wait()
            except TimeoutError:
                continue
            raise self._error()

    async def release(self) -> None:
        """Say that we are gone, so that nobody needs to wait. What cannot be said in time is found out anyway."""
        self._valid_until = float("-inf")
        if self._stored is None or self._replaced.is_set():
            return
        try:
            async with asyncio.timeout(_RELEASE_S):
                stored = await self._client.get(LEASES, self._key)
                if incarnation_of(stored) == self.incarnation:
                    await self._client.delete(LEASES, self._key, uid=identity(stored), version=resource_version(stored))
        except (KubeError, TimeoutError) as error:
            logger.info("the Lease of replica %s stays until it has run out: %s", self._replica, error)

    async def _renew(self) -> None:
        if self._stored is None:  # at first, and after it was deleted
            try:
                self._stored = await self._client.get(LEASES, self._key)
            except NotFound:
                self._stored = None
        renewal, now = micro_time(), clock()
        # Those that are older than the Lease make nothing good any more, and the API may be away for days.
        self._forget(now - self._lease_s)
        self._sent.setdefault(renewal, now)
        wanted = replica_lease(
            self._replica,
            incarnation=self.incarnation,
            renewal=renewal,
            lease_s=self._lease_s,
            before=self._stored,
        )
        try:
            if self._stored is None:
                self._stored = await self._client.create(LEASES, wanted)
            else:
                self._stored = await self._client.replace(LEASES, self._key, wanted)
        except NotFound:
            if self._stored is None:
                await self._make_namespace()
            self._stored = None
            raise
        except (Conflict, AlreadyExists):
            # An answer of ours that got lost, or another process of our name.
            self._stored = await self._client.get(LEASES, self._key)
            if self._shown and incarnation_of(self._stored) != self.incarnation:
                self._valid_until = float("-inf")
                self._replaced.set()
                return
            raise

    def _forget(self, sent_at: float) -> None:
        """What was sent until then is on its way no more."""
        self._sent = {renewal: at for renewal, at in self._sent.items() if at > sent_at}
        self._fewer.set()
        self._fewer = asyncio.Event()

    async def _make_namespace(self) -> None:
        with contextlib.suppress(AlreadyExists):
            await self._client.create(_NAMESPACES, namespace())
            logger.info("namespace %s made", NAMESPACE)

    def _error(self) -> ConfigError:
        return ConfigError(
            "modules.cloudHub.replica",
            f"another cloudcore runs as replica {self._replica!r} and has taken the place of this one: give each "
            "process a name of its own, or run only one on this host",
        )

    def _note(self, error: Exception) -> None:
        self.failures += 1
        trouble = type(error).__name__
        if trouble != self._trouble:
            self._trouble = trouble
            hint = (
                "; its role needs get, list, watch, create, update and delete of leases.coordination.k8s.io there"
                if isinstance(error, Forbidden)
                else ""
            )
            text = str(error) or f"no answer within {self._renew_s:g} s"
            logger.warning("replica %s: its Lease cannot be renewed: %s%s; trying on", self._replica, text, hint)

    def _recovered(self) -> None:
        if self._trouble:
            self._trouble = ""
            logger.info("replica %s: its Lease is renewed again", self._replica)
