"""The server: listens where the config says, for as long as it is open, and never takes the mapper down with it."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from mappers.sdk.config import MapperConfig
from mappers.sdk.schedule import backoff
from mappers.sdk.watchdog import Watchdog
from mappers.sdk.web.access import Access, TlsFiles
from mappers.sdk.web.api import DeviceApi
from mappers.sdk.web.health import Health
from mappers.sdk.web.http import HttpConnection, HttpError, Limits, Request, Response
from mappers.sdk.web.metrics import Metrics
from mappers.sdk.web.routes import Route, find_route
from mappers.sdk.web.views import MapperView

__all__ = ["WebServer", "serve_web"]

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 32
"""Further clients wait in the listen queue until one of these is done, or was too slow."""
RETRY_S: Final = (1.0, 30.0)
RESOLVE_S: Final = 2.0
END_S: Final = 0.5
"""For answers under way when the mapper ends."""
TLS_END_S: Final = 2.0
ACCEPT_PAUSE_S: Final = 1.0
_NO_SUCH_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
LIMITS: Final = Limits()


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
        self._limits = limits
        self._metrics = Metrics(mappers, self, watchdog)
        self._routes: tuple[Route, ...] = (
            *DeviceApi(mappers).routes(),
            *Health(mappers).routes(),
            Route("GET", "/metrics", self._metrics.endpoint),
        )
        self._connections: dict[asyncio.Task[None], HttpConnection | None] = {}
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self.port = 0
        """Where it listens; 0: nowhere at the moment."""
        self.responses: Counter[int] = Counter()
        """Answers by status."""
        self.tls_failures = 0
        self.listen_failures = 0

    @property
    def open_connections(self) -> int:
        return len(self._connections)

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
            async with asyncio.TaskGroup() as tasks:
                for listener in listeners:
                    tasks.create_task(self._accept(listener), name=f"http {listener.getsockname()[:2]}")
        finally:
            self.port = 0
            _close(listeners)
            await self._end_connections()

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

    async def _accept(self, listener: socket.socket) -> None:
        loop, complaint = asyncio.get_running_loop(), ""
        while True:
            await self._free.acquire()
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files, or a client that left while it waited
                self._free.release()
                if str(error) != complaint:
                    complaint = str(error)
                    logger.warning("HTTP API: a client could not be taken, trying again: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            except BaseException:
                self._free.release()
                raise
            task = asyncio.create_task(self._serve(client), name="http client")
            self._connections[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        self._free.release()
        if not task.cancelled() and (error := task.exception()):
            logger.error("HTTP API: a connection failed", exc_info=error)

    async def _serve(self, client: socket.socket) -> None:
        """One connection, from its TLS handshake on."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=16 * 1024)
        protocol = asyncio.StreamReaderProtocol(reader)
        tls = self._tls.context()
        timeouts = {"ssl_handshake_timeout": self._limits.read_s, "ssl_shutdown_timeout": TLS_END_S} if tls else {}
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=tls, **timeouts)
        except (OSError, ssl.SSLError) as error:
            self.tls_failures += 1
            logger.debug("HTTP API: no TLS with a client: %s", error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = HttpConnection(reader, writer, self._answer, self._limits, self._count)
        task = asyncio.current_task()
        if task in self._connections:
            self._connections[task] = connection
        try:
            await connection.run()
            writer.close()
            async with asyncio.timeout(self._limits.write_s):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # gone, or it does not take the rest
        finally:
            transport.abort()

    def _count(self, status: int) -> None:
        self.responses[status] += 1

    async def _answer(self, request: Request) -> Response:
        try:
            route, params = find_route(self._routes, request.method, request.path)
        except HttpError:
            self._access.check(request, writes=False, public=False)  # no path is told to strangers
            raise
        self._access.check(request, writes=route.writes, public=route.public)
        return await route.endpoint(msgspec.structs.replace(request, params=params))

    async def _end_connections(self) -> None:
        """Let what is being answered come to its end, for a moment."""
        for task, connection in self._connections.items():
            if connection is None or not connection.busy:
                task.cancel()
            else:
                connection.last = True
        if self._connections:
            await asyncio.wait(self._connections, timeout=END_S)
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_S)


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
