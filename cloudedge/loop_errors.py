"""The event loop's handler of errors that nobody else takes, for processes that hold channel connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from cloudedge.lean import postponed_imports

with postponed_imports():
    from picows import WSError

__all__ = ["LoopErrors"]

logger = logging.getLogger(__name__)

MAX_NAMED: Final = 1024
_TLS_BEGINS: Final = "SSL handshake failed"
"""Told to who dialled or listened, too."""


class LoopErrors:
    """A peer that breaks off TLS (a port scan, a node with another CA, a corrupted byte) is a line, once for a host.

    picows' transport hands over the exception's class there, which asyncio's own handler cannot print: it logs
    a traceback about its logging instead.
    """

    def __init__(self) -> None:
        self._hosts: set[str] = set()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, type):
            self._name(context, error.__name__)
        elif isinstance(error, OSError) and "transport" in context:
            self._name(context, str(error))
        elif isinstance(error, WSError):  # of a future of picows' that nobody has to ask: the connection says it, too
            logger.debug("%s: %s", context["message"], error)
        else:
            loop.default_exception_handler(context)

    def _name(self, context: dict[str, Any], error: str) -> None:
        if context["message"] == _TLS_BEGINS:
            logger.debug("%s: %s", context["message"], error)
            return
        transport = context.get("transport")
        peer = transport.get_extra_info("peername") if transport is not None else None
        host = str(peer[0]) if peer else "?"
        if host not in self._hosts and len(self._hosts) < MAX_NAMED:
            self._hosts.add(host)
            logger.warning("a connection with %s broke: %s: %s", host, context["message"], error)
