"""A device's state as it is reported: at once on a change, and on its own cycle when the device asks for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from dmi.types import DeviceId, DeviceState
from mappers.sdk.errors import plain_reason

__all__ = ["StateReporter"]

logger = logging.getLogger(__name__)

MAX_REASON: Final = 4096
"""Characters: a device with many properties may have something wrong with each."""


class StateReporter:
    """Holds the state of one device. `put` hands it on; nothing is reported before the state is known."""

    def __init__(self, device_id: DeviceId, put: Callable[[DeviceState, str], None]) -> None:
        self._device_id = device_id
        self._put = put
        self._every_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.state: DeviceState = "unknown"
        self.reason = ""

    def set(self, state: DeviceState, reason: str = "") -> None:
        reason = plain_reason(reason, MAX_REASON)
        if (state, reason) == (self.state, self.reason):
            return
        level = logging.INFO if state == "online" else logging.WARNING
        logger.log(level, "device %s is %s%s", self._device_id, state, f": {reason}" if reason else "")
        self.state, self.reason = state, reason
        self.report()

    def report(self) -> None:
        if self.state != "unknown":
            self._put(self.state, self.reason)

    def repeat_every(self, every_s: float | None) -> None:
        """Report the state every so many seconds; None: on a change only."""
        if every_s == self._every_s:
            return
        self.close()
        self._every_s = every_s
        if every_s is not None:
            self._timer = asyncio.get_running_loop().call_later(every_s, self._repeat, every_s)

    def close(self) -> None:
        self._every_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _repeat(self, every_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(every_s, self._repeat, every_s)
        self.report()
