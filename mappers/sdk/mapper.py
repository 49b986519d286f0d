"""One mapper: one driver, its devices, its socket, and its registration with an edge core."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from dmi.client import EdgeCoreClient, MapperInfo
from dmi.server import serve_mapper
from mappers.sdk.driver import AnyDriver
from mappers.sdk.fleet import Fleet
from mappers.sdk.session import keep_registered
from mappers.sdk.uplink import Uplink

__all__ = ["run_mapper"]

logger = logging.getLogger(__name__)

DRAIN_DEADLINE_S: Final = 0.8


async def run_mapper(driver: AnyDriver, info: MapperInfo, edgecore_socket: str | Path, stop: asyncio.Event) -> None:
    """Serve `info.address`, register, and run the devices until `stop` is set.

    Ends in order: no more calls from the edge core, devices stopped, last reports sent (up to a second), all closed.

    Raises:
        ConfigError: The socket cannot be made.
    """
    async with EdgeCoreClient(edgecore_socket) as client, asyncio.TaskGroup() as tasks:
        uplink = Uplink(client)
        sending = tasks.create_task(uplink.run(), name="uplink")
        async with Fleet(driver, uplink) as fleet, serve_mapper(fleet, info.address) as socket:
            logger.info("mapper %s (%s) serves %s", info.name, info.protocol, socket)
            session = tasks.create_task(keep_registered(client, info, fleet, uplink), name="session")
            await stop.wait()
            # The registration outlives the intake: reports go out only while it stands.
        try:
            async with asyncio.timeout(DRAIN_DEADLINE_S):
                await uplink.drained()
        except TimeoutError:
            logger.warning("stopping with reports the edge core did not take in time")
        session.cancel()
        sending.cancel()
