"""What nodes were refused: one line each for who watches the log, counted for who watches the metrics.

The logger `cloudcore.audit` can be sent to a file of its own. A node that insists gets a line a minute for each reason,
with the number of refusals since the last. Whoever uses ever new names gets no more than `MAX_LINES` a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from dmi.metrics import Metrics

__all__ = ["Audit"]

logger = logging.getLogger("cloudcore.audit")

REPEAT_S: Final = 60.0
MAX_KNOWN: Final = 4096
MAX_LINES: Final = 1000
"""In `REPEAT_S`, of all nodes together."""


class Audit:
    def __init__(self, metrics: Metrics | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = (metrics or Metrics()).counter(
            "kubetwin_cloudcore_refused_total", "Requests and messages of nodes that were refused.", "reason"
        )
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        """By node and reason: when it was said last, and how many have come since."""
        self._lines_since = float("-inf")
        self._lines = self._unsaid = 0

    def refused(self, reason: str, *, node: str, resource: str = "", operation: str = "", detail: str = "") -> None:
        """`reason` is one of a fixed set; everything else is the node's own words, and cut."""
        self._count.add(reason)
        key = (node[:253], reason)
        now = self._clock()
        said_at, since = self._said.get(key, (0.0, 0))
        if key in self._said and now - said_at < REPEAT_S:
            self._said[key] = (said_at, since + 1)
            return
        if not self._has_room(now):
            return
        if len(self._said) >= MAX_KNOWN:
            self._said.clear()
        self._said[key] = (now, 0)
        line = {"refused": reason, "node": key[0], "resource": resource[:512], "operation": operation[:64]}
        line |= {"detail": detail[:512]} if detail else {}
        logger.warning("%s", msgspec.json.encode({**line, "more_since_last": since} if since else line).decode())

    def _has_room(self, now: float) -> bool:
        """For one more line. The first of the next minute says how many were left out."""
        if now - self._lines_since >= REPEAT_S:
            unsaid, self._lines_since, self._lines, self._unsaid = self._unsaid, now, 0, 0
            if unsaid:
                logger.warning("%s", msgspec.json.encode({"refused": "more than is said", "lines": unsaid}).decode())
        if self._lines >= MAX_LINES:
            self._unsaid += 1
            return False
        self._lines += 1
        return True
