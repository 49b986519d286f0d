"""Runs the mappers of one process: logs, watchdog, HTTP API and data plane once, and a mapper for each driver.

`run_options` is a process of its own, until SIGTERM or SIGINT; `run_mappers` is that without the process, and what an
edge core runs inside itself. A mapper that fails is started over with back-off, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from msgspec.structs import replace

from dmi.errors import ConfigError
from dmi.loop import run_to_end
from dmi.ports import MapperInfo, MapperSide
from mappers.sdk.config import MapperConfig, data_folder
from mappers.sdk.driver import AnyDriver
from mappers.sdk.logs import set_up_logs
from mappers.sdk.mapper import Mapper, run_mapper
from mappers.sdk.options import DRIVERS, Options, find_driver, load_driver, read_options
from mappers.sdk.push import PushPlane
from mappers.sdk.schedule import backoff
from mappers.sdk.watchdog import watch_loop

__all__ = ["DRIVERS", "find_driver", "infos", "run", "run_mappers", "run_options"]

logger = logging.getLogger(__name__)

RESTART_S: Final = (1.0, 60.0)
HEALTHY_S: Final = 300.0
"""A mapper that ran for so long starts over with the shortest delay."""


def run(protocols: Sequence[str], config: Path) -> None:
    """Run a mapper for each protocol in this process until SIGTERM or SIGINT; then end within 3 s.

    Raises:
        ConfigError: The config file cannot be used, or no driver of that name is installed.
    """
    run_options(read_options(protocols, config))


def run_options(options: Options) -> None:
    """Run what the options say until SIGTERM or SIGINT; then end within 3 s.

    Raises:
        ConfigError: A driver cannot be loaded, or a setting cannot work.
    """
    config = options.config
    set_up_logs(config.log, [ref.protocol for ref in options.drivers])
    drivers = [load_driver(ref) for ref in options.drivers]
    try:
        run_to_end(_until_signalled(drivers, infos(drivers, config), config))
    except BaseExceptionGroup as group:
        wrong, other = group.split(ConfigError)
        if wrong is None or other is not None:
            raise
        raise _first(wrong) from group


def infos(drivers: Sequence[AnyDriver], config: MapperConfig) -> list[MapperInfo]:
    """How each mapper introduces itself. A single one takes name, protocol and socket as configured; several have
    sockets `<protocol>.sock` next to the configured one and names that end with their protocol."""
    common, socket = config.common, Path(config.grpc_server.socket_path).absolute()
    single = MapperInfo(
        name=common.name,
        protocol=common.protocol or drivers[0].protocol,
        address=str(socket),
        version=common.version,
        api_version=common.api_version,
    )
    if len(drivers) == 1:
        return [single]
    return [
        replace(
            single,
            name=f"{common.name}-{driver.protocol}",
            protocol=driver.protocol,
            address=str(socket.with_name(f"{quote(driver.protocol, safe='')}.sock")),
        )
        for driver in drivers
    ]


async def run_mappers(
    drivers: Sequence[AnyDriver],
    mappers: Sequence[MapperInfo],
    config: MapperConfig,
    side: MapperSide,
    stop: asyncio.Event,
    *,
    failures: int = 0,
) -> None:
    """Run one mapper for each driver, and what they share, until `stop` is set. `failures` of all of them together came
    before.

    Raises:
        ConfigError: A setting cannot work; also in an exception group.
    """
    running: list[Mapper] = []
    """One that failed stays, for the health check to see, until it is started over."""

    async def run_one(driver: AnyDriver, info: MapperInfo) -> None:
        failed_before = failures

        def started(mapper: Mapper) -> None:
            mapper.failures = failed_before
            running[:] = [*(m for m in running if m.name != mapper.name), mapper]

        def failed(error: BaseException) -> None:
            nonlocal failed_before
            failed_before += 1
            for mapper in running:
                if mapper.name == info.name:
                    mapper.failures = failed_before
                    mapper.registration.end(f"it failed and is started over: {error!r}")

        async def attempt() -> None:
            async with PushPlane(config.data, info.name, data_folder(config.data, info.name, info.address)) as samples:
                await run_mapper(driver, info, side, stop, samples=samples, started=started)

        await keep_running(attempt, info.name, stop, failed)

    async with contextlib.AsyncExitStack() as stack:
        watchdog = await stack.enter_async_context(watch_loop(drivers))
        if config.http.enabled:
            from mappers.sdk.web import serve_web  # not in memory where it is switched off

            await stack.enter_async_context(serve_web(config, running, watchdog=watchdog))
        async with asyncio.TaskGroup() as tasks:
            for driver, info in zip(drivers, mappers, strict=True):
                tasks.create_task(run_one(driver, info), name=f"mapper {info.name}")


async def keep_running(
    run: Callable[[], Awaitable[None]],
    name: str,
    stop: asyncio.Event,
    failed: Callable[[BaseException], None] = lambda _: None,
) -> None:
    """Run until `stop` is set; what fails is started over after 1 s to 60 s.

    Raises:
        ConfigError: From the first start, also in an exception group: what cannot work as configured stays so.
    """
    loop, delays, first = asyncio.get_running_loop(), backoff(*RESTART_S), True
    while not stop.is_set():
        began = loop.time()
        try:
            await run()
        except (Exception, SystemExit) as error:
            if first and _is_config_error(error):
                raise
            if loop.time() - began >= HEALTHY_S:
                delays = backoff(*RESTART_S)
            delay_s = next(delays)
            logger.exception("mapper %s failed; it is started over in %.1f s", name, delay_s)
            failed(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await stop.wait()
        first = False


async def _until_signalled(drivers: Sequence[AnyDriver], mappers: Sequence[MapperInfo], config: MapperConfig) -> None:
    from dmi.client import Sockets

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await run_mappers(drivers, mappers, config, Sockets(config.common.edgecore_sock), stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _is_config_error(error: BaseException) -> bool:
    return isinstance(error, ConfigError) or (isinstance(error, ExceptionGroup) and error.split(ConfigError)[1] is None)


def _first(error: BaseException) -> BaseException:
    """The first exception in a tree of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
