"""Takes clients from listening sockets and answers them, a bounded number at a time, until cancelled."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from dmi.web.http import Answer, HttpConnection, HttpError, Limits, Response, as_text

__all__ = ["LIMITS", "MAX_CONNECTIONS", "HttpServer"]

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 32
"""Further clients wait in the listen queue until one of these is done, or was too slow."""
END_S: Final = 0.5
"""For answers under way at the end."""
TLS_END_S: Final = 2.0
ACCEPT_PAUSE_S: Final = 1.0
SLOW_S: Final = 2.0
"""A connection of this age gives way to the next where there is no other place: who has a request takes less."""
LIMITS: Final = Limits()


class HttpServer:
    """`answer` makes the answer to a request, or raises the `HttpError` that `refuse` writes out. `tls` is asked with
    every connection; None: plain HTTP. `per_address`: of `connections` one address gets so many; where all are taken,
    an address that has fewer gets one of who has most.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        limits: Limits = LIMITS,
        refuse: Callable[[HttpError], Response] = as_text,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        connections: int = MAX_CONNECTIONS,
        per_address: int | None = None,
    ) -> None:
        self._answer = answer
        self._limits = limits
        self._refuse = refuse
        self._tls = tls
        self._connections: dict[asyncio.Task[None], HttpConnection | None] = {}
        self._limit = connections
        self._free = asyncio.Semaphore(connections + (per_address is not None))  # one for who may get another's place
        self._per_address = per_address or connections
        self._addresses: dict[str, dict[asyncio.Task[None], float]] = {}
        """Their connections, oldest first, and since when in the loop's time. Those that have to go are not here."""
        self.responses: Counter[int] = Counter()
        """Answers by status."""
        self.tls_failures = 0
        self.turned_away = 0
        """Connections of addresses that had their share, or more than others."""

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def run(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until cancelled. The listeners, which do not block, are closed at the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for listener in listeners:
                    tasks.create_task(self._accept(listener), name=f"http {listener.getsockname()[:2]}")
        finally:
            for listener in listeners:
                listener.close()
            await self._end_connections()

    async def _accept(self, listener: socket.socket) -> None:
        loop, complaint = asyncio.get_running_loop(), ""
        while True:
            await self._free.acquire()
            try:
                client, source = await loop.sock_accept(listener)
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
            address = str(source[0]) if isinstance(source, tuple) else ""  # a unix socket has none
            if not self._has_room(address):
                self.turned_away += 1
                client.close()
                self._free.release()
                await asyncio.sleep(0)  # the next may be there already, and nobody else would have a turn
                continue
            task = asyncio.create_task(self._serve(client), name="http client")
            self._connections[task] = None
            self._addresses.setdefault(address, {})[task] = loop.time()
            task.add_done_callback(partial(self._ended, client, address))

    def _has_room(self, address: str) -> bool:
        """For one more of the address, perhaps in the place of another: few addresses must not keep out all others,
        nor slow clients those that come through the same balancer.
        """
        own, all_ = self._addresses.get(address, {}), self._addresses
        if len(own) >= self._per_address:
            all_ = {address: own}
        elif len(self._connections) < self._limit or not all_:
            return True
        else:
            most = max(all_, key=lambda one: len(all_[one]))
            if len(all_[most]) > len(own) + 1:
                self._end_oldest(most)
                return True
        oldest = min(all_, key=lambda one: next(iter(all_[one].values())))
        if asyncio.get_running_loop().time() - next(iter(all_[oldest].values())) < SLOW_S:
            return False
        self._end_oldest(oldest)
        return True

    def _end_oldest(self, address: str) -> None:
        task = next(iter(self._addresses[address]))
        self._forget(address, task)
        task.cancel()
        self.turned_away += 1

    def _forget(self, address: str, task: asyncio.Task[None]) -> None:
        own = self._addresses.get(address, {})
        own.pop(task, None)
        if not own:
            self._addresses.pop(address, None)

    def _ended(self, client: socket.socket, address: str, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        self._forget(address, task)
        self._free.release()
        if task.cancelled():  # perhaps before its first step
            client.close()
        elif error := task.exception():
            logger.error("HTTP API: a connection failed", exc_info=error)

    async def _serve(self, client: socket.socket) -> None:
        """One connection, from its TLS handshake on."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=16 * 1024)
        protocol = asyncio.StreamReaderProtocol(reader)
        tls = self._tls()
        timeouts = {"ssl_handshake_timeout": self._limits.read_s, "ssl_shutdown_timeout": TLS_END_S} if tls else {}
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=tls, **timeouts)
        except (OSError, ssl.SSLError) as error:
            self.tls_failures += 1
            logger.debug("HTTP API: no TLS with a client: %s", error)
            # Its frames refer to it and to asyncio's TLS buffers, 300 KB, until there is a full garbage collection.
            error.__traceback__ = error.__context__ = None
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = HttpConnection(reader, writer, self._answer, self._limits, self._count, self._refuse)
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
