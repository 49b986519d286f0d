"""Devices of a shared line that do not answer: since when, and when to try again. Pure; times are the loop's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from mappers.sdk.schedule import backoff, epoch_ms

__all__ = ["Silence", "Silences"]

RETRY_S: Final = (1.0, 30.0)
MIN_GRACE_S: Final = 0.02
MAX_GRACE_S: Final = 0.25
"""What a probe may cost those who wait, unless the device was known to take longer while it answered."""
PATIENT_EVERY: Final = 16
"""Of the probes of a device that never answered, every so many gets all the time it wants: it may just be slow. With
the longest back-off that is once in about 8 minutes."""
_SLOWEST: Final = 4
"""A reply may take so many times the slowest lately."""
_FADES: Final = 0.98
"""Per reply: the slowest of some hundred replies ago says nothing about the next."""


class Silence:
    """One device that does not answer."""

    def __init__(self) -> None:
        since = datetime.fromtimestamp(epoch_ms() / 1000, UTC)
        self.reason = f"no reply since {since:%Y-%m-%dT%H:%M:%SZ}"
        """The same at each attempt, so that it is reported once."""
        self.until = 0.0
        """Loop time of the next attempt."""
        self.misses = 0
        """Turns in a row without a reply."""
        self.given_up = 0
        """Probes in a row that were given up for others."""
        self._delays: Iterator[float] = backoff(*RETRY_S)

    def again(self, now: float, *, given_up: bool) -> None:
        self.misses += 1
        self.given_up = self.given_up + 1 if given_up else 0
        self.until = now + next(self._delays)


class Silences:
    """The silent devices of one line, and how fast the others answer."""

    def __init__(self) -> None:
        self._silent: dict[str, Silence] = {}
        self._slowest_s = 0.0
        self._slowest_of: dict[str, float] = {}

    def of(self, device_id: str) -> Silence | None:
        return self._silent.get(device_id)

    def missed(self, device_id: str, now: float, *, given_up: bool = False) -> Silence:
        silence = self._silent.setdefault(device_id, Silence())
        silence.again(now, given_up=given_up)
        return silence

    def answered(self, device_id: str, after_s: float) -> Silence | None:
        """Note a reply; the silence it ended, if there was one."""
        self._slowest_s = max(after_s, self._slowest_s * _FADES)
        self._slowest_of[device_id] = max(after_s, self._slowest_of.get(device_id, 0.0) * _FADES)
        return self._silent.pop(device_id, None)

    def forget(self, device_id: str) -> None:
        """What is known of the device is of no use any more."""
        self._silent.pop(device_id, None)
        self._slowest_of.pop(device_id, None)

    def grace_s(self, device_id: str) -> float | None:
        """How long a probe may still take once another device wants the line: what should be enough for a reply. None:
        as long as it wants.

        It doubles with each probe given up, for a device that answers, but slower than all others.
        """
        silence = self._silent.get(device_id)
        if silence is not None and silence.misses % PATIENT_EVERY == 0 and device_id not in self._slowest_of:
            return None
        grace_s = min(max(_SLOWEST * self._slowest_s, MIN_GRACE_S), MAX_GRACE_S)
        if silence is not None:
            grace_s = min(grace_s * 2.0 ** min(silence.given_up, 10), MAX_GRACE_S)
        return max(grace_s, 1.5 * self._slowest_of.get(device_id, 0.0))
