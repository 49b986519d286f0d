"""`/metrics`, `/healthz` and `/readyz` on a local port, in plain HTTP, for who watches the process (contract 7).

Nothing here changes anything, and nothing names a device or a value; the default address is loopback all the same.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Final

from dmi import ConfigError
from dmi.metrics import Metrics
from dmi.web.exposition import CONTENT_TYPE
from dmi.web.http import HttpError, Request, Response
from dmi.web.metrics_text import exposition
from dmi.web.routes import Route, find_route
from dmi.web.server import HttpServer

__all__ = ["Check", "Monitor", "show_counts"]

logger = logging.getLogger(__name__)

_TEXT: Final = "text/plain; charset=utf-8"

Check = Callable[[], str]
"""What is not as it should be, in words; empty: nothing."""


class Monitor:
    """`run` it in a task."""

    def __init__(self, address: str, metrics: Metrics, *, ready: Mapping[str, Check]) -> None:
        """`address`: `host:port`; port 0 is any free one, see `port`.

        Raises:
            ConfigError: It is no address.
        """
        host, separator, port = address.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigError("commonConfig.monitorServer.bindAddress", f"{address!r} is not host:port")
        self.port = int(port)
        self._host = host.strip("[]")
        self._address = address
        self._metrics = metrics
        self._ready = ready
        self._routes = [
            Route("GET", "/metrics", self._get_metrics),
            Route("GET", "/healthz", self._get_health),
            Route("GET", "/livez", self._get_health),
            Route("GET", "/readyz", self._get_ready),
        ]
        self._server = HttpServer(self._answer)

    def listen(self) -> socket.socket | None:
        """None: the address is taken, or not this machine's. The channel goes on without: two cloud cores on one
        machine share this default, and nodes must not be away because nobody can look.
        """
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            listener = socket.create_server((self._host, self.port), family=family)
        except OSError as error:
            logger.warning(
                "no metrics and no /readyz: commonConfig.monitorServer.bindAddress %s cannot be listened on: %s",
                self._address,
                error,
            )
            return None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    async def run(self) -> None:
        """Serve until cancelled; returns at once where the address cannot be listened on."""
        if (listener := self.listen()) is not None:
            logger.info("metrics and health at http://%s:%d", self._host, self.port)
            await self._server.run([listener])

    async def _answer(self, request: Request) -> Response:
        route, _ = find_route(self._routes, request.method, request.path)
        return await route.endpoint(request)

    async def _get_metrics(self, _: Request) -> Response:
        text = exposition(self._metrics, self._server.responses, api="kubetwin_cloudcore_monitor")
        return Response(200, text.encode(), CONTENT_TYPE)

    async def _get_health(self, _: Request) -> Response:
        """The event loop turns, or nobody would answer."""
        return Response(200, b"ok\n", _TEXT)

    async def _get_ready(self, _: Request) -> Response:
        lines, ready = [], True
        for name, check in self._ready.items():
            complaint = check()
            ready = ready and not complaint
            lines.append(f"[-] {name}: {complaint}" if complaint else f"[+] {name}")
        text = "\n".join([*lines, "ready" if ready else "not ready", ""])
        if not ready:
            raise HttpError(503, text.rstrip())
        return Response(200, text.encode(), _TEXT)


def show_counts(metrics: Metrics, name: str, help_: str, counts: Callable[[], Mapping[str, int]]) -> None:
    """Counts that a module keeps by words of its own, of which there are few."""
    metrics.counted(name, help_, "what", read=lambda: {(what,): float(count) for what, count in counts().items()})
