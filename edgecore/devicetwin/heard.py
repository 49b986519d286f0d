"""When mappers last reported a device, and what of it was not taken: in memory only, bounded, no I/O and no clock."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cloudedge.facts import RefusedReport
from dmi import DeviceId

__all__ = ["HeardReports"]

MAX_DEVICES: Final = 1024
"""With something refused; those refused longest ago are forgotten first."""
MAX_OF_DEVICE: Final = 8
MAX_WORD_CHARS: Final = 64
MAX_REASON_CHARS: Final = 512


class _Times(Struct):
    report_ms: int = 0
    state_ms: int = 0


class HeardReports:
    """Times in epoch milliseconds of this machine's clock."""

    def __init__(self) -> None:
        self._times: dict[DeviceId, _Times] = {}
        self._refused: OrderedDict[DeviceId, OrderedDict[str, RefusedReport]] = OrderedDict()

    def note_report(self, device: DeviceId, at_ms: int) -> None:
        """Twins of a device of this node were reported, taken or not."""
        self._of(device).report_ms = at_ms

    def note_state(self, device: DeviceId, at_ms: int) -> None:
        self._of(device).state_ms = at_ms

    def note_refused(self, device: DeviceId, what: str, reason: str, at_ms: int) -> bool:
        """Note what was not taken; whether it is the first time. `device` may be one that is not here."""
        what, reason = what[:MAX_WORD_CHARS], reason[:MAX_REASON_CHARS]
        notes = self._refused.setdefault(device, OrderedDict())
        self._refused.move_to_end(device)
        before = notes.pop(what, None)
        notes[what] = (
            RefusedReport(what, reason, 1, at_ms)
            if before is None
            else replace(before, reason=reason, count=before.count + 1, at_ms=at_ms)
        )
        if len(notes) > MAX_OF_DEVICE:
            notes.popitem(last=False)
        if len(self._refused) > MAX_DEVICES:
            self._refused.popitem(last=False)
        return before is None

    def last_report_ms(self, device: DeviceId) -> int:
        """0: not since the start."""
        times = self._times.get(device)
        return times.report_ms if times else 0

    def last_state_ms(self, device: DeviceId) -> int:
        times = self._times.get(device)
        return times.state_ms if times else 0

    def refused(self, device: DeviceId) -> tuple[RefusedReport, ...]:
        """Newest first."""
        return tuple(reversed(self._refused.get(device, OrderedDict[str, RefusedReport]()).values()))

    def forget(self, device: DeviceId) -> None:
        """It is no longer on this node."""
        self._times.pop(device, None)
        self._refused.pop(device, None)

    def _of(self, device: DeviceId) -> _Times:
        times = self._times.get(device)
        if times is None:
            times = self._times[device] = _Times()
        return times
