"""Registration with the edge core, kept up: whenever the edge core went away, register again and reconcile."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from dmi.client import EdgeCoreClient, MapperInfo
from dmi.errors import PeerRefused, PeerUnavailable
from mappers.sdk.fleet import Fleet
from mappers.sdk.schedule import backoff
from mappers.sdk.uplink import Uplink

__all__ = ["keep_registered"]

logger = logging.getLogger(__name__)

RETRY_S: Final = (0.1, 1.0)
REFUSED_S: Final = (1.0, 10.0)


async def keep_registered(client: EdgeCoreClient, info: MapperInfo, fleet: Fleet, uplink: Uplink) -> None:
    """Stay registered until cancelled. The mapper's own socket is served already: the edge core calls back at once.

    Reports are held back while there is no registration; right after one, everything current is reported.
    """
    while True:
        await _register(client, info, fleet)
        fleet.report_all()
        uplink.open()
        try:
            await _lost(client, uplink)
        finally:
            uplink.pause()
        logger.warning("edge core lost; registering again")


async def _register(client: EdgeCoreClient, info: MapperInfo, fleet: Fleet) -> None:
    away, refused = backoff(*RETRY_S), backoff(*REFUSED_S)
    complaint = ""
    while True:
        fleet.begin_registration()
        try:
            registration = await client.register(info)
        except (PeerUnavailable, PeerRefused) as error:
            if (new := f"{type(error).__name__}: {error}") != complaint:
                complaint = new
                logger.warning("not registered, trying again: %s", error)
            await asyncio.sleep(next(refused if isinstance(error, PeerRefused) else away))
            continue
        for entry in registration.refused:
            logger.warning("from the edge core, and left out: %s", entry)
        await fleet.reconcile(registration.devices, registration.models)
        logger.info("registered %s for protocol %s: %d devices", info.name, info.protocol, len(registration.devices))
        return


async def _lost(client: EdgeCoreClient, uplink: Uplink) -> None:
    """Return when the connection broke, or a report found no one."""
    watch = asyncio.create_task(client.wait_lost(), name="watch edge core")
    watch.add_done_callback(lambda _: uplink.lost.set())
    try:
        await uplink.lost.wait()
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    if not watch.cancelled() and (error := watch.exception()):
        raise error
