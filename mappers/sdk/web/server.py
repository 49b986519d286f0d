"""The server: listens where the config says, for as long as it is open, and never takes the mapper down with it."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from dmi.web.http import HttpError, Limits, Request, Response
from dmi.web.routes import Route, find_route
from dmi.web.server import LIMITS, MAX_CONNECTIONS, HttpServer
from mappers.sdk.config import MapperConfig
from mappers.sdk.schedule import backoff
from mappers.sdk.watchdog import Watchdog
from mappers.sdk.web.access import Access, TlsFiles
from mappers.sdk.web.api import DeviceApi
from mappers.sdk.web.health import Health
from mappers.sdk.web.metrics import Metrics
from mappers.sdk.web.views import MapperView

__all__ = ["WebServer", "serve_web"]

logger = logging.getLogger(__name__)

RETRY_S: Final = (1.0, 30.0)
RESOLVE_S: Final = 2.0
_NO_SUCH_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class WebServer:
    """One listening address and its clients."""

    def __init__(
        self, config: MapperConfig, mappers: Sequence[MapperView], watchdog: Watchdog | None, limits: Limits
    ) -> None:
        """
        Raises:
            ConfigError: The address would be open to strangers, or a file of `http` cannot be used.
        """
        self._address = config.common.address
        self._configured_port = config.common.http_port
        self._access = Access(self._address, config.http)
        self._tls = TlsFiles(config.http)
        self._metrics = Metrics(mappers, self, watchdog)
        self._routes: tuple[Route, ...] = (
            *DeviceApi(mappers).routes(),
            *Health(mappers).routes(),
            Route("GET", "/metrics", self._metrics.endpoint),
        )
        self._http = HttpServer(self._answer, limits=limits, tls=self._tls.context)
        self.port = 0
        """Where it listens; 0: nowhere at the moment."""
        self.listen_failures = 0

    @property
    def responses(self) -> Mapping[int, int]:
        """Answers by status."""
        return self._http.responses

    @property
    def open_connections(self) -> int:
        return self._http.open_connections

    @property
    def tls_failures(self) -> int:
        return self._http.tls_failures

    # listening

    async def listen(self) -> list[socket.socket]:
        """Bind every address the name stands for and this machine has: `localhost` may have one of IPv6 without that.

        Raises:
            OSError: One of them cannot be had, or the machine has none.
        """
        found = await _resolve(self._address, self._configured_port)
        listeners: list[socket.socket] = []
        missing: OSError | None = None
        try:
            for family, where in found:
                port = listeners[0].getsockname()[1] if listeners else where[1]
                try:
                    listener = socket.create_server((where[0], port), family=family, backlog=MAX_CONNECTIONS)
                except OSError as error:
                    if error.errno not in _NO_SUCH_ADDRESS:
                        raise
                    missing = error
                else:
                    listener.setblocking(False)
                    listeners.append(listener)
        except BaseException:
            _close(listeners)
            raise
        if not listeners:
            raise missing or OSError(errno.EADDRNOTAVAIL, "the name stands for no address")
        self.port = listeners[0].getsockname()[1]
        return listeners

    async def run(self, listeners: list[socket.socket]) -> None:
        """Serve until cancelled. Without `listeners` it tries to get them first, for ever."""
        try:
            if not listeners:
                listeners = await self._listen_at_last()
            await self._http.run(listeners)
        finally:
            self.port = 0
            _close(listeners)

    async def _listen_at_last(self) -> list[socket.socket]:
        for delay_s in backoff(*RETRY_S):
            await asyncio.sleep(delay_s)
            try:
                listeners = await self.listen()
            except OSError:
                self.listen_failures += 1
            else:
                logger.info("HTTP API: now on %s:%d", self._address, self.port)
                return listeners
        raise AssertionError("the back-off ended")

    async def _answer(self, request: Request) -> Response:
        try:
            route, params = find_route(self._routes, request.method, request.path)
        except HttpError:
            self._access.check(request, writes=False, public=False)  # no path is told to strangers
            raise
        self._access.check(request, writes=route.writes, public=route.public)
        return await route.endpoint(msgspec.structs.replace(request, params=params))


async def _resolve(address: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Families and socket addresses. A numeric one costs no thread, a name two seconds at most."""
    wanted = functools.partial(socket.getaddrinfo, address or None, port, type=socket.SOCK_STREAM)
    try:
        found = wanted(flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST)
    except socket.gaierror:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.to_thread(wanted, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))


def _close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


@asynccontextmanager
async def serve_web(
    config: MapperConfig,
    mappers: Sequence[MapperView],
    *,
    watchdog: Watchdog | None = None,
    limits: Limits = LIMITS,
) -> AsyncIterator[WebServer | None]:
    """Serve `mappers` inside the block, if `http.enabled`.

    A port that cannot be had is logged as an error and tried again, every 30 s in the end; the block runs all the same.

    Raises:
        ConfigError: The API would be open to strangers, or a file of `http` cannot be used; `path` is the setting.
    """
    if not config.http.enabled:
        yield None
        return
    server = WebServer(config, mappers, watchdog, limits)
    listeners: list[socket.socket] = []
    try:
        listeners = await server.listen()
        logger.info("HTTP API: on %s:%d", config.common.address, server.port)
    except OSError as error:
        server.listen_failures += 1
        logger.error(
            "HTTP API: cannot listen on %s:%d (common.address, common.http_port), trying again; the mapper runs "
            "without it: %s",
            config.common.address,
            config.common.http_port,
            error,
        )
    task = asyncio.create_task(server.run(listeners), name="http server")
    task.add_done_callback(_log_failure)
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.wait([task])


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("HTTP API: the server failed; the mapper goes on without it", exc_info=error)
