"""Whether a mapper is alive: it is as long as it is connected and was heard within a few seconds.

A killed mapper is noticed by its connection. One that hangs keeps it, so a mapper that was not heard for a while is
asked, by a call that DMI does not have and every gRPC server answers, at least with "unimplemented": it concerns no
device, model or lock of the mapper, so that a slow device is not taken for a dead mapper. Stock Go mappers report each
second and are hardly ever asked.

A mapper that reports but cannot be called (its socket was removed, or lies where edge core does not see it) is alive:
it runs its devices, and nobody else may.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from dmi import PeerTimeout, PeerUnavailable
from dmi.ports import LOCAL, MapperInfo, MapperPort

__all__ = ["LEASE_S", "PING_TIMEOUT_S", "QUIET_S", "Lease"]

logger = logging.getLogger(__name__)

LEASE_S: Final = 8.0
"""So long after the last sign of life a mapper's devices are shown as unknown, unless others run them by then."""
QUIET_S: Final = 2.5
"""A mapper that neither called nor answered for so long is asked. Ours confirm values every 10 s by default."""
PING_TIMEOUT_S: Final = 5.0
"""With `QUIET_S` below `LEASE_S`, and time enough for a process that is swapped in again."""
_AFTERGLOW_S: Final = 1.0
"""A report may still be in our hands when its sender is dead and known to be."""


class Lease:
    """Of one mapper. `changed` is called when it begins or ceases to answer, or what is wrong with it is another."""

    def __init__(self, mapper: MapperInfo, port: MapperPort, changed: Callable[[], None]) -> None:
        self._mapper = mapper
        self._port = port
        self._changed = changed
        self.reachable = asyncio.Event()
        """There is a connection."""
        self.heard_at: float | None = None
        """Loop time when it called or answered last; None: never, since this lease began."""
        self.trouble = f"mapper {mapper.name} is about to be registered"
        """Why it cannot be called, and what to do."""
        self._loop = asyncio.get_running_loop()
        self._sign_at = self._loop.time()
        self._asking = asyncio.Lock()
        self._stalled_at: float | None = None
        self._was_reached = False
        self._away_since: float | None = None
        self._lapse: asyncio.TimerHandle | None = None
        """While it reports and cannot be called: when that counts no more."""

    @property
    def answering(self) -> bool:
        return self.reachable.is_set() and self._stalled_at is None

    @property
    def only_reports(self) -> bool:
        return self._lapse is not None

    @property
    def is_beginning(self) -> bool:
        """It was not reached since this lease began, as it did with its registration. That alone does not mean that it
        is away.
        """
        return not self._was_reached

    @property
    def away_since(self) -> float | None:
        """Loop time of its last sign of life; None while there are some, and before the lease began."""
        return None if self.only_reports else self._away_since

    def away_s(self, now: float) -> float:
        return 0.0 if self.away_since is None else now - self.away_since

    def heard(self) -> None:
        """The mapper called us, or answered."""
        now = self._sign_at = self.heard_at = self._loop.time()
        if self._stalled_at is not None:
            self._stalled_at = None
            self._note()
        elif self._away_since is not None and not self.reachable.is_set() and now - self._away_since > _AFTERGLOW_S:
            self._hear_only(now)

    def look(self) -> None:
        """See again what is wrong with it."""
        address = self._mapper.address
        where = f"mapper {self._mapper.name}"
        if self.answering:
            self.trouble = ""
        elif address.startswith(LOCAL):
            self.trouble = f"{where} inside edgecore has ended: see edgecore's log"
        elif self.reachable.is_set():
            self.trouble = f"{where} hangs: it is connected at {address} and does not answer; restart it"
        elif self.only_reports:
            self.trouble = (
                f"{where} reports and cannot be called at {address}, so that nothing reaches it: restart it, and see "
                "to it that this path is the same socket for it and for edgecore"
            )
        elif os.path.exists(address):  # noqa: PTH110 - a socket that may be anybody's
            self.trouble = f"{where} is gone: nobody answers at {address}, which it left behind; start it again"
        else:
            self.trouble = f"{where} is gone: {address} does not exist; start it again"

    async def keep(self) -> None:
        """Watch the mapper until cancelled. It does not count as away before its grace is over."""
        self._begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(), name=f"mapper {self._mapper.name} connection")
                tasks.create_task(self._probe(), name=f"mapper {self._mapper.name} probe")
        finally:
            if self._lapse is not None:
                self._lapse.cancel()
                self._lapse = None
            self.reachable.clear()
            if self._away_since is None:
                self._away_since = self._loop.time()

    async def is_alive(self, since: float) -> bool:
        """Whether it gave a sign of life after `since`, or gives one when asked."""
        async with self._asking:  # several may want to know: one asks
            if self._sign_at > since:
                return self.answering
            if self._stalled_at is not None and self._stalled_at > since:
                return False
            try:
                await self._port.ping(PING_TIMEOUT_S)
            except PeerUnavailable as error:
                if isinstance(error, PeerTimeout) and self.reachable.is_set():
                    self._stall(str(error))
                return False
            self.heard()
            return True

    def _begin(self) -> None:
        self._away_since = self._sign_at = self._loop.time()
        self.look()

    async def _watch(self) -> None:
        while True:
            await self._port.wait_ready()
            self._stalled_at, self._sign_at = None, self._loop.time()
            if self._lapse is not None:
                self._lapse.cancel()
                self._lapse = None
            self._was_reached = True
            self.reachable.set()
            self._note()
            await self._port.wait_lost()
            self.reachable.clear()
            logger.warning("mapper %s is gone from %s", self._mapper.name, self._mapper.address)
            self._note()

    async def _probe(self) -> None:
        while True:
            await self.reachable.wait()
            now = self._loop.time()
            if (wait_s := self._sign_at + QUIET_S - now) > 0:
                await asyncio.sleep(wait_s)
            elif not await self.is_alive(now):
                await asyncio.sleep(0.2)  # where it fails at once

    def _stall(self, why: str) -> None:
        if self._stalled_at is None:
            logger.warning("mapper %s does not answer: %s", self._mapper.name, why)
        self._stalled_at = self._loop.time()
        self._note()

    def _hear_only(self, now: float) -> None:
        before, self._lapse = self._lapse, self._loop.call_at(now + LEASE_S, self._end_of_hearing)
        if before is not None:
            before.cancel()
            return
        self._note()

    def _end_of_hearing(self) -> None:
        self._lapse, self._away_since = None, self._sign_at
        self._note()

    def _note(self) -> None:
        answering = self.answering
        if answering:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = self._loop.time() if self._stalled_at is None else self._sign_at
        self.look()
        self._changed()
