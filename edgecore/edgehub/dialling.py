"""Makes connections to CloudHub, and keeps what is wrong with each address, in words and once in the log."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cloudedge import ConnectionRefused
from cloudedge.connection import Connection
from cloudedge.dialling import connect
from cloudedge.tls import client_context
from dmi.metrics import Metrics
from edgecore.config import EdgeHubConfig

__all__ = ["Dialler", "retry_delays"]

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 5.0
NEXT_AFTER_S: Final = 3.0
"""So long an address has to answer before the next one is dialled beside it: a host that is gone does not say so."""
_NOT_OF_NOW: Final = ("certificate has expired", "certificate is not yet valid")
"""OpenSSL's words; the TLS of picows leaves their number out."""


class Dialler:
    def __init__(self, config: EdgeHubConfig, *, node: str, metrics: Metrics) -> None:
        self._config = config
        self._node = node
        self._problems: dict[str, str] = {}
        """By address, why there is no connection to it: it could not be made, or ended."""
        self._failures = metrics.counter(
            "kubetwin_edgecore_cloud_dial_failures_total", "Connections to the cloud that could not be made.", "reason"
        )

    @property
    def trouble(self) -> str:
        """Why there is no connection, for each address that was tried; empty: nothing is known against one."""
        return "; ".join(dict.fromkeys(self._problems.values()))

    async def dial(self, url: str) -> Connection | None:
        """A connection, or None, and the reason is noted."""
        config = self._config
        try:
            # Read anew each time: a renewed certificate is used from the next connection on.
            context = client_context(
                ca_file=Path(config.tls_ca_file),
                cert_file=Path(config.tls_cert_file),
                key_file=Path(config.tls_private_key_file),
            )
        except (OSError, ssl.SSLError) as error:
            files = f"{config.tls_ca_file}, {config.tls_cert_file}, {config.tls_private_key_file}"
            self._failures.add("certificates")
            self._note_problem(url, f"certificates cannot be used: {error}; check edgeHub's {files}")
            return None
        try:
            connection = await connect(
                url,
                node=self._node,
                ssl_context=context,
                project_id=config.project_id,
                timeout_s=config.websocket.handshake_timeout,
                pong_timeout_s=config.websocket.read_deadline,
            )
        except ConnectionRefused as error:
            reason, advice = _judge(error)
            self._failures.add(reason)
            self._note_problem(url, f"cannot connect: {error}{advice}; trying again until it works")
            return None
        except ValueError as error:  # a host that no name service would be asked for: UnicodeError is one of these
            self._failures.add("address")
            self._note_problem(url, f"cannot connect: {url} is no address ({error}); check websocket.server")
            return None
        self._problems.pop(url, None)
        return connection

    async def dial_first(self, urls: Sequence[str]) -> tuple[str, Connection | None]:
        """A connection to the one that is there first, in the order given; the last one and None when none is.

        The next one is dialled when the one before it has failed, or has not answered for `NEXT_AFTER_S`.
        """
        waiting = list(urls)
        dialled: dict[asyncio.Task[Connection | None], str] = {}
        pending: set[asyncio.Task[Connection | None]] = set()
        won: asyncio.Task[Connection | None] | None = None
        try:
            while won is None and (waiting or pending):
                if waiting:
                    url = waiting.pop(0)
                    task = asyncio.create_task(self.dial(url), name=f"dial {url}")
                    dialled[task] = url
                    pending.add(task)
                done, pending = await asyncio.wait(
                    pending, timeout=NEXT_AFTER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                won = next((task for task in dialled if task in done and task.result() is not None), None)
        finally:
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
            for task, url in dialled.items():
                if task is not won:
                    self._let_go(task, url, overtaken=won is not None)
        return (dialled[won], won.result()) if won is not None else (urls[-1], None)

    def _let_go(self, task: asyncio.Task[Connection | None], url: str, *, overtaken: bool) -> None:
        if task.cancelled():
            if overtaken:  # else this is the end
                self._failures.add("overtaken")
                self._note_problem(url, f"{url} does not answer; going on with the next address")
        elif (connection := task.result()) is not None:
            connection.abort()

    def note_lost(self, url: str, why: str) -> None:
        """A connection to it ended."""
        self._problems[url] = why

    def forget_others(self, url: str) -> None:
        """There was a connection that lasted, to this address: what was wrong with others is of long ago."""
        self._problems = {one: why for one, why in self._problems.items() if one == url}

    def _note_problem(self, url: str, problem: str) -> None:
        """Log on the change, not at every try, nor for each address what is wrong with all."""
        is_news = problem not in self._problems.values()
        self._problems[url] = problem
        if is_news:
            logger.warning("%s", problem)


def retry_delays() -> Iterator[float]:
    """Seconds to wait before each next try: the first within 1 s, doubling to 5 s, spread so that nodes do not come
    back all at once.
    """
    ceiling = FIRST_RETRY_S
    yield random.uniform(0.1, ceiling)  # noqa: S311 - no secret
    while True:
        ceiling = min(ceiling * 2, MAX_RETRY_S)
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret


def _judge(error: ConnectionRefused) -> tuple[str, str]:
    """In one word, for counting, and what to do."""
    cause = error.__cause__
    match cause:
        case ssl.SSLCertVerificationError() if any(said in str(cause) for said in _NOT_OF_NOW):
            return "certificate", " (the cloud's certificate is not of this time: is this machine's clock right?)"
        case ssl.SSLCertVerificationError():
            advice = " (the name in websocket.server must be in the cloud's certificate, and its CA in tlsCaFile)"
            return "certificate", advice
        case ssl.SSLError():
            return "tls", " (is tlsCertFile signed by the cloud's CA, and the clock right?)"
        case TimeoutError():
            return "timeout", ""
        case OSError():
            return "unreachable", " (is cloudcore running, and websocket.server right?)"
    return "refused", ""
