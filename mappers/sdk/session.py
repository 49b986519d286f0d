"""Registration with the edge core, kept up: whenever the edge core went away, register again and reconcile."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from dmi.errors import PeerRefused, PeerUnavailable
from dmi.ports import EdgeCorePort, MapperInfo, Registration
from mappers.sdk.fleet import Fleet
from mappers.sdk.schedule import backoff
from mappers.sdk.uplink import Uplink

__all__ = ["Session"]

logger = logging.getLogger(__name__)

RETRY_S: Final = (0.1, 1.0)
REFUSED_S: Final = (1.0, 10.0)


class Session:
    """How it stands between one mapper and its edge core."""

    def __init__(self, info: MapperInfo) -> None:
        self._info = info
        self.registered = False
        self.since = time.time()
        """Epoch seconds of the last change of `registered`; of the mapper's start before the first."""
        self.problem = "it has not registered yet"
        """Why it is not registered; empty while it is."""

    async def run(self, edgecore: EdgeCorePort, fleet: Fleet, uplink: Uplink) -> None:
        """Stay registered until cancelled. The mapper itself is served already: the edge core calls back at once.

        Reports are held back while there is no registration; right after one, everything current is reported.
        """
        while True:
            registration = await self._register(edgecore, fleet)
            fleet.report_all()
            uplink.open(stock=registration.stock)
            try:
                await _lost(edgecore, uplink)
            finally:
                uplink.pause()
                self.end("the edge core went away")
            logger.warning("edge core lost; registering again")

    def end(self, problem: str) -> None:
        """It is not registered, or not any more."""
        if self.registered:
            self.registered, self.since = False, time.time()
        self.problem = problem

    async def _register(self, edgecore: EdgeCorePort, fleet: Fleet) -> Registration:
        away, refused = backoff(*RETRY_S), backoff(*REFUSED_S)
        complaint = ""
        while True:
            fleet.begin_registration()
            try:
                registration = await edgecore.register(self._info)
            except (PeerUnavailable, PeerRefused) as error:
                if (new := f"{type(error).__name__}: {error}") != complaint:
                    complaint = new
                    logger.warning("mapper %s is not registered, trying again: %s", self._info.name, error)
                self.problem = str(error)
                await asyncio.sleep(next(refused if isinstance(error, PeerRefused) else away))
                continue
            for entry in registration.refused:
                logger.warning("from the edge core, and left out: %s", entry)
            await fleet.reconcile(registration.devices, registration.models, partial=registration.partial)
            self.registered, self.since, self.problem = True, time.time(), ""
            logger.info(
                "registered %s for protocol %s: %d devices%s",
                self._info.name,
                self._info.protocol,
                len(registration.devices),
                "; a stock edge core: calls are paced" if registration.stock else "",
            )
            return registration


async def _lost(edgecore: EdgeCorePort, uplink: Uplink) -> None:
    """Return when the connection broke, or a report found no one."""
    watch = asyncio.create_task(edgecore.wait_lost(), name="watch edge core")
    watch.add_done_callback(lambda _: uplink.lost.set())
    try:
        await uplink.lost.wait()
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    if not watch.cancelled() and (error := watch.exception()):
        raise error
