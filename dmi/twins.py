"""Twins: per property the reported and the desired side, with time, quality and write state.

Upstream's `TwinProperty` is a value and a string map. kubetwin's additions ride in that map under keys of their own,
which DMI, the cloud channel and `DeviceStatus` all carry and upstream ignores:

| key | side | meaning |
|---|---|---|
| `timestamp` | both | epoch milliseconds, decimal: when it was collected, or its write state changed |
| `type` | both | the property's type, lower case, as upstream: `int`, `float`, `double`, `boolean`, `string`, `bytes` |
| `quality` | reported | `good`, `stale` (one cycle or more missed), `bad` (cannot be read); absent means good |
| `write` | desired | `pending`, `applied`, `failed`; absent: unknown, as from a Go mapper |
| `reason` | both | why the quality is not good, or the write failed |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from msgspec import Struct

__all__ = ["Desired", "Quality", "Reported", "Twin", "WriteState", "supersedes"]

Quality = Literal["good", "stale", "bad"]
WriteState = Literal["", "pending", "applied", "failed"]

_QUALITIES: Final[tuple[Quality, ...]] = get_args(Quality)
_WRITE_STATES: Final[tuple[WriteState, ...]] = get_args(WriteState)

MAX_REASON_CHARS: Final = 512
"""Of a reason, or a type, that a peer sends; the rest is left out."""
LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, beyond which there are no dates: a time after it counts as absent."""
CLOCK_TOLERANCE_MS: Final = 5_000
"""How far ahead of our own clock a stored time may lie before it counts as wrong, not newer."""


class Reported(Struct, frozen=True, gc=False):
    """What the device has."""

    value: str = ""
    """The last value read; stays while the quality is `stale` or `bad`."""
    type: str = ""
    collected_ms: int = 0
    """Epoch milliseconds of the read; 0: the mapper did not say, as Go mappers do not."""
    quality: Quality = "good"
    reason: str = ""

    def metadata(self) -> dict[str, str]:
        return _metadata(self.type, self.collected_ms, {"quality": self.quality, "reason": self.reason})

    @classmethod
    def from_metadata(cls, value: str, metadata: Mapping[str, Any]) -> Reported:
        """Read leniently what a peer sent: a missing or odd key counts as absent."""
        get = metadata.get
        quality = _text(get("quality"))
        return cls(
            value,
            _text(get("type")),
            _millis(get("timestamp")),
            quality if quality in _QUALITIES else "good",
            _text(get("reason")),
        )


class Desired(Struct, frozen=True, gc=False):
    """What the cloud wants, as far as the mapper has seen it, and what became of it."""

    value: str = ""
    type: str = ""
    updated_ms: int = 0
    """Epoch milliseconds of the last change of `write`; 0: unknown."""
    write: WriteState = ""
    reason: str = ""

    def metadata(self) -> dict[str, str]:
        return _metadata(self.type, self.updated_ms, {"write": self.write, "reason": self.reason})

    @classmethod
    def from_metadata(cls, value: str, metadata: Mapping[str, Any]) -> Desired:
        """Read leniently what a peer sent: a missing or odd key counts as absent."""
        get = metadata.get
        write = _text(get("write"))
        return cls(
            value,
            _text(get("type")),
            _millis(get("timestamp")),
            write if write in _WRITE_STATES else "",
            _text(get("reason")),
        )


class Twin(Struct, frozen=True, gc=False):
    """One property of a device: its desired and reported pair. There are tens of thousands, and no cycle can go
    through them, so the garbage collector is not to look at them.
    """

    property_name: str
    reported: Reported = Reported()
    desired: Desired = Desired()
    only: Literal["", "reported", "desired"] = ""
    """The one side that a report is about; nothing is known of the other then, which is not the same as empty."""


def supersedes(new_ms: int, old_ms: int, *, now_ms: int) -> bool:
    """Whether a side of a twin stamped `new_ms` replaces one stamped `old_ms`: newer wins, and an equal time is a newer
    word on the same reading (it went stale). All three in epoch milliseconds.

    A stored time ahead of `now_ms` means that the clock was set back since; then what arrives is the newer one,
    otherwise the twin would stand still until the clock had caught up. A missing time (0) is as new as its arrival.
    """
    return new_ms == 0 or new_ms >= old_ms or old_ms > now_ms + CLOCK_TOLERANCE_MS


def _metadata(type_: str, time_ms: int, extra: Mapping[str, str]) -> dict[str, str]:
    metadata = {"type": type_, "timestamp": str(time_ms) if time_ms else ""}
    metadata.update((key, value) for key, value in extra.items() if value)
    return metadata


def _text(value: object) -> str:
    return value[:MAX_REASON_CHARS] if isinstance(value, str) else ""


def _millis(value: object) -> int:
    """A time as peers write it: decimal text in DMI and `DeviceStatus`, a number in the channel's messages."""
    if isinstance(value, str):
        time_ms = int(value) if value.isascii() and value.isdigit() and len(value) <= 18 else 0
    else:
        time_ms = value if isinstance(value, int) and not isinstance(value, bool) else 0
    return time_ms if 0 <= time_ms <= LAST_MS else 0
