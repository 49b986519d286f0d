"""Builds edge core's modules, wires them over the bus, and runs them until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudedge.loop_errors import LoopErrors
from dmi import ConfigError, NodeName
from dmi.local import LocalDmi
from dmi.loop import run_to_end
from dmi.metrics import Metrics
from edgecore.bus import Bus
from edgecore.config import EdgeCoreConfig, api_socket_path, socket_path
from edgecore.devicetwin import DeviceTwin
from edgecore.edged import Edged
from edgecore.edgehub import EdgeHub
from edgecore.embedded import EmbeddedMappers, Prepared
from edgecore.joining import Identity, Joining
from edgecore.localapi import Answers, Sources, serve_api
from edgecore.metamanager import MetaManager
from edgecore.store import Database, StoreError, open_database

if TYPE_CHECKING:
    from edgecore.eventbus import EventBus
    from edgecore.history import History

__all__ = ["run", "serve"]

logger = logging.getLogger(__name__)


async def serve(
    config: EdgeCoreConfig,
    ready: asyncio.Event | None = None,
    mappers: Prepared | None = None,
    *,
    file: Path | None = None,
    version: str = "",
    identity: Identity | None = None,
) -> None:
    """Run everything until cancelled; `ready` is set once mappers can call. `mappers`: those that run inside. `file`:
    where the configuration was read from. `version`: of this program. `identity`: what the node's
    certificate says, where that is known.

    Raises:
        StoreError: The database cannot be opened.
        ConfigError: The DMI socket cannot be made.
    """
    ready = ready or asyncio.Event()
    node = NodeName(config.node)
    bus, local, metrics, modules = Bus(), LocalDmi(), Metrics(), config.modules
    async with contextlib.AsyncExitStack() as around:
        database = await around.enter_async_context(open_database(Path(config.database.data_source), metrics=metrics))
        meta = MetaManager(database, bus)  # before the twin: it hears of a connection first, and stores what waits
        twin = DeviceTwin(
            database,
            bus,
            node=node,
            socket=socket_path(modules.device_twin),
            local=local,
            config=modules.device_twin,
            metrics=metrics,
        )
        hub = EdgeHub(modules.edge_hub, node=node, bus=bus, database=database, metrics=metrics)
        joining = Joining(modules.edge_hub, node=node, bus=bus, config_file=file, identity=identity, metrics=metrics)
        edged = None
        if modules.edged.enable:
            directory = Path(config.database.data_source).parent
            edged = Edged(modules.edged, node=node, bus=bus, data_directory=directory, version=version, metrics=metrics)
        history = None
        if modules.device_twin.history.enable:
            history = await around.enter_async_context(_open_history(config, bus, database, metrics))
        events = _make_event_bus(config, bus, database, metrics) if modules.event_bus.enable else None
        metrics.gauge(
            "kubetwin_edgecore_cloud_connected",
            "1 while the channel to the cloud is up.",
            read=lambda: {(): float(hub.link.connected)},
        )
        sources = Sources(
            facts=twin.facts(
                cloud=lambda: joining.link(hub.link), mqtt_trouble=lambda: events.trouble if events else ""
            ),
            database=database,
            metrics=metrics,
            served=ready,
            history=history,
        )
        answers = Answers(sources, bus)
        if modules.local_api.enable:
            await around.enter_async_context(serve_api(sources, api_socket_path(modules)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(twin.run(ready), name="devicetwin")
            tasks.create_task(meta.run(), name="metamanager")
            tasks.create_task(answers.run(), name="answers to the cloud")
            if events is not None:
                tasks.create_task(events.run(), name="eventbus")
            await ready.wait()
            gc.collect()
            gc.freeze()  # what is here now stays; no need to look at it again and again
            gc.set_threshold(5_000)  # a report is a hundred objects and no cycle: 7 % less CPU than with 700
            tasks.create_task(joining.run(), name="joining")
            if edged is not None:
                tasks.create_task(edged.run(), name="edged")
            tasks.create_task(_connect(joining, hub), name="edgehub")
            if mappers is not None:
                # Not a task of the group: cancelled here, they end before what they report to does.
                await EmbeddedMappers(mappers, local).run()


async def _connect(joining: Joining, hub: EdgeHub) -> None:
    """Once there is a certificate to connect with."""
    await joining.usable.wait()
    await hub.run()


def _open_history(
    config: EdgeCoreConfig, bus: Bus, database: Database, metrics: Metrics
) -> AbstractAsyncContextManager[History]:
    from edgecore.history import open_history  # not in memory where it is off

    settings = config.modules.device_twin.history
    path = Path(settings.data_source or Path(config.database.data_source).with_name("history.db"))
    return open_history(settings, path, bus=bus, database=database, metrics=metrics)


def _make_event_bus(config: EdgeCoreConfig, bus: Bus, database: Database, metrics: Metrics) -> EventBus:
    from edgecore.eventbus import EventBus  # off by default, and an MQTT client is not small

    return EventBus(config.modules.event_bus, bus, node=config.node, database=database, metrics=metrics)


def run(
    config: EdgeCoreConfig,
    mappers: Prepared | None = None,
    *,
    file: Path | None = None,
    version: str = "",
    identity: Identity | None = None,
) -> None:
    """Run edge core until SIGTERM or SIGINT. Exits with 1 when it cannot start or fails, and says why in the log."""
    try:
        serving = serve(config, mappers=mappers, file=file, version=version, identity=identity)
        run_to_end(_run(config.node, serving))
    except Exception as error:
        for leaf in _leaves(error):
            expected = isinstance(leaf, StoreError | ConfigError | OSError)
            logger.critical("edgecore ends: %s", leaf, exc_info=None if expected else leaf)
        sys.exit(1)


async def _run(node: str, serving: Coroutine[Any, Any, None]) -> None:
    """Until SIGTERM or SIGINT."""
    logger.info("edgecore of node %s starts", node)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(LoopErrors())
    task = asyncio.create_task(serving, name="edgecore")
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
