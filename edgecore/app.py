"""Builds edge core's modules, wires them over the bus, and runs them until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from pathlib import Path

from dmi import ConfigError, NodeName
from dmi.local import LocalDmi
from dmi.loop import run_to_end
from edgecore.bus import Bus
from edgecore.config import EdgeCoreConfig, socket_path
from edgecore.devicetwin import DeviceTwin
from edgecore.edgehub import EdgeHub
from edgecore.embedded import EmbeddedMappers, Prepared
from edgecore.metamanager import MetaManager
from edgecore.store import StoreError, open_database

__all__ = ["run", "serve"]

logger = logging.getLogger(__name__)


async def serve(config: EdgeCoreConfig, ready: asyncio.Event | None = None, mappers: Prepared | None = None) -> None:
    """Run everything until cancelled; `ready` is set once mappers can call. `mappers`: those that run inside.

    Raises:
        StoreError: The database cannot be opened.
        ConfigError: The DMI socket cannot be made.
    """
    ready = ready or asyncio.Event()
    node = NodeName(config.node)
    bus, local = Bus(), LocalDmi()
    async with open_database(Path(config.database.data_source)) as database:
        meta = MetaManager(database, bus)
        twin = DeviceTwin(database, bus, node=node, socket=socket_path(config.modules.device_twin), local=local)
        hub = EdgeHub(config.modules.edge_hub, node=node, bus=bus)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(twin.run(ready), name="devicetwin")
            tasks.create_task(meta.run(), name="metamanager")
            await ready.wait()
            gc.collect()
            gc.freeze()  # what is here now stays; no need to look at it again and again
            tasks.create_task(hub.run(), name="edgehub")
            if mappers is not None:
                # Not a task of the group: cancelled here, they end before what they report to does.
                await EmbeddedMappers(mappers, local).run()


def run(config: EdgeCoreConfig, mappers: Prepared | None = None) -> None:
    """Run edge core until SIGTERM or SIGINT. Exits with 1 when it cannot start or fails, and says why in the log."""
    try:
        run_to_end(_run(config, mappers))
    except Exception as error:
        for leaf in _leaves(error):
            expected = isinstance(leaf, StoreError | ConfigError | OSError)
            logger.critical("edgecore ends: %s", leaf, exc_info=None if expected else leaf)
        sys.exit(1)


async def _run(config: EdgeCoreConfig, mappers: Prepared | None) -> None:
    """`serve` until SIGTERM or SIGINT."""
    logger.info("edgecore of node %s starts", config.node)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(serve(config, mappers=mappers), name="edgecore")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    logger.info("edgecore stopped")


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group, however deep."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
