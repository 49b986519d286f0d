"""HTTP on a unix socket: bound under a temporary name, its mode set, then renamed into place, so that a client never
sees one that does not answer, and what a killed process left is replaced.

What speaks HTTP is loaded when the first client comes: half a megabyte that most gateways never need.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgecore.localapi.sources import Sources

if TYPE_CHECKING:
    from dmi.web.http import Request, Response
    from dmi.web.server import HttpServer

__all__ = ["serve_api"]

logger = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o660
MAX_WAITING: Final = 32
_MAX_PATH_BYTES: Final = 107


@contextlib.asynccontextmanager
async def serve_api(sources: Sources, path: Path) -> AsyncIterator[None]:
    """Serve while the block runs. A socket that cannot be had is an error in the log: values do not need it."""
    path = path.absolute()
    try:
        listener, inode = _listen(path)
    except OSError as error:
        logger.error("the local API cannot be served on %s (modules.localApi.socket): %s", path, error)
        yield
        return
    logger.info("the local API is on %s", path)
    task = asyncio.create_task(_serve(sources, listener), name="local API")
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:  # not that of a successor that is serving already
                path.unlink()


async def _serve(sources: Sources, listener: socket.socket) -> None:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    with listener:
        loop.add_reader(listener, called.set)
        try:
            await called.wait()
        finally:
            loop.remove_reader(listener)
        await _make_server(sources).run([listener])


def _make_server(sources: Sources) -> HttpServer:
    from dmi.web.http import as_json
    from dmi.web.routes import find_route
    from dmi.web.server import HttpServer
    from edgecore.localapi.api import LocalApi

    api = LocalApi(sources)
    routes = api.routes()

    async def answer(request: Request) -> Response:
        route, params = find_route(routes, request.method, request.path)
        return await route.endpoint(msgspec.structs.replace(request, params=params))

    server = HttpServer(answer, refuse=as_json)
    api.responses = server.responses
    return server


def _listen(path: Path) -> tuple[socket.socket, int]:
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(hidden)) > _MAX_PATH_BYTES:
        raise OSError("the path is too long for a unix socket (about 100 bytes): choose a shorter directory")
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        hidden.unlink(missing_ok=True)
        listener.bind(os.fspath(hidden))
        hidden.chmod(SOCKET_MODE)  # before anybody can connect
        listener.listen(MAX_WAITING)
        listener.setblocking(False)
        hidden.replace(path)
        return listener, path.stat().st_ino
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("the local API failed; edge core goes on without it", exc_info=error)
