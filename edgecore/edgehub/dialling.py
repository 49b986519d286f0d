"""Makes connections to CloudHub, and keeps what is wrong with each address, in words and once in the log."""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloudedge import ConnectionRefused
from cloudedge.connection import Connection, connect
from cloudedge.tls import client_context
from dmi.metrics import Metrics
from edgecore.config import EdgeHubConfig

__all__ = ["Dialler", "retry_delays"]

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 5.0


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
        self._problems.pop(url, None)
        return connection

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
