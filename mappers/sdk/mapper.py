"""One mapper: one driver, its devices, the address it serves, and its registration with an edge core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dmi.ports import EdgeCorePort, MapperInfo, MapperSide
from mappers.sdk.driver import AnyDriver
from mappers.sdk.fleet import Fleet
from mappers.sdk.samples import NoSamples, Samples
from mappers.sdk.session import Session
from mappers.sdk.uplink import Uplink

__all__ = ["Mapper", "run_mapper"]

logger = logging.getLogger(__name__)

DRAIN_DEADLINE_S: Final = 0.8


class Mapper:
    """A mapper that runs, or ran, and what there is to see of it."""

    def __init__(self, driver: AnyDriver, info: MapperInfo, edgecore: EdgeCorePort, samples: Samples) -> None:
        self.name = info.name
        self.protocol = info.protocol
        self.info = info
        self.samples = samples
        self.failures = 0
        """Times one of this name failed before, or this one did."""
        self.uplink = Uplink(edgecore)
        self.fleet = Fleet(driver, self.uplink, samples)
        self.registration = Session(info)
        self._edgecore = edgecore

    async def run(self, side: MapperSide, stop: asyncio.Event) -> None:
        """Serve, register, and run the devices until `stop` is set.

        Ends in order: no more calls from the edge core, devices stopped, last reports sent (up to a second).

        Raises:
            ConfigError: The address cannot be served.
        """
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self.uplink.run(), name="uplink")
            async with self.fleet, side.serve_mapper(self.fleet, self.info.address):
                logger.info("mapper %s (%s) serves %s", self.name, self.protocol, self.info.address)
                session = tasks.create_task(
                    self.registration.run(self._edgecore, self.fleet, self.uplink), name="session"
                )
                await stop.wait()
                # The registration outlives the intake: reports go out only while it stands.
            try:
                async with asyncio.timeout(DRAIN_DEADLINE_S):
                    await self.uplink.drained()
            except TimeoutError:
                logger.warning("mapper %s stops with reports the edge core did not take in time", self.name)
            session.cancel()
            sending.cancel()


async def run_mapper(
    driver: AnyDriver,
    info: MapperInfo,
    edgecore: str | Path | MapperSide,
    stop: asyncio.Event,
    *,
    samples: Samples | None = None,
    started: Callable[[Mapper], None] = lambda _: None,
) -> None:
    """Run one mapper until `stop` is set.

    Args:
        edgecore: The socket of the edge core, or how to reach one without.
        samples: Where values of properties with a push method go.
        started: Gets the mapper before it serves.

    Raises:
        ConfigError: `info.address` cannot be served.
    """
    if isinstance(edgecore, str | Path):
        from dmi.client import Sockets  # gRPC, which a mapper inside an edge core need not have

        edgecore = Sockets(edgecore)
    async with edgecore.edgecore() as port:
        mapper = Mapper(driver, info, port, samples or NoSamples())
        started(mapper)
        await mapper.run(edgecore, stop)
