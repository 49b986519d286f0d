"""One property's twin as the mapper knows it: what was read with which quality, what is wanted, what is left to report.

Owned by one device runner; plain state without I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dmi.checks import check_desired
from dmi.errors import ConversionError
from dmi.twins import Desired, Quality, Reported, Twin, WriteState
from dmi.types import DeviceProperty, ModelProperty
from dmi.values import Value, format_value, parse_value
from mappers.sdk.driver import Property
from mappers.sdk.schedule import backoff, cycle_s

__all__ = ["Tracker", "broken_twin"]

BAD_AFTER: Final = 3
"""Missed cycles after which a value is no longer only stale."""
CONFIRM_MS: Final = 10_000
"""How often an unchanged value is reported again when the property has no `reportCycle`."""
WRITE_RETRY_S: Final = (1.0, 30.0)


class Tracker:
    """The state of one property."""

    def __init__(self, declared: DeviceProperty, property_: Property[Any]) -> None:
        self.declared = declared
        self.property = property_
        self.reported = Reported(type=property_.model.type.lower())
        self.desired = Desired(type=property_.model.type.lower())
        self.missed = 0
        self.rejected = False
        """Bad, and for a reason that lies in the declaration, the device or the value, not in the way there."""
        self.dirty = False
        self.sent_at = 0.0
        """Loop time of the last report."""
        self.updated_at = 0.0
        """Loop time at which the reported side was last known for sure; an older read does not overwrite it."""
        self.wanted: Value | None = None
        """The desired value to be written, converted; None: nothing to write."""
        self.write_due: float | None = None
        """Loop time of the next attempt to write; None: nothing to do."""
        self.compare_first = False
        """After a connect: do not write what the device has already."""
        self._delays: Iterator[float] = backoff(*WRITE_RETRY_S)

    @property
    def name(self) -> str:
        return self.declared.name

    @property
    def cycle_s(self) -> float:
        return cycle_s(self.declared.collect_cycle_ms)

    @property
    def has_report(self) -> bool:
        """Something worth telling is known. A property that was never read is told about once it counts as bad."""
        return bool(self.reported.collected_ms or self.desired.write) or self.reported.quality == "bad"

    def twin(self) -> Twin:
        """As it is reported; before the first read the reported side is empty, so that it says nothing at all."""
        known = self.reported.collected_ms or self.reported.quality == "bad"
        return Twin(self.name, self.reported if known else Reported(), self.desired)

    def confirm_due(self, now: float) -> bool:
        """Whether an unchanged value is to be confirmed in the cycle that ends now."""
        every_s = cycle_s(self.declared.report_cycle_ms, CONFIRM_MS)
        return now - self.sent_at >= every_s - self.cycle_s / 2

    # reported

    def seen(self, value: Value, now_ms: int, at: float) -> None:
        """The device has this value.

        Raises:
            ConversionError: It does not fit the declared type; the caller decides what that means.
        """
        text = format_value(value, self.property.model.type)
        self.missed = 0
        self.rejected = False
        self.updated_at = at
        changed = text != self.reported.value or self.reported.quality != "good" or not self.reported.collected_ms
        self.reported = msgspec.structs.replace(
            self.reported, value=text, collected_ms=now_ms, quality="good", reason=""
        )
        self.dirty |= changed

    def miss(self, reason: str, *, rejected: bool = False) -> None:
        """A cycle brought no value: stale, from the third in a row on bad. The last value stays."""
        self.missed += 1
        self.rejected = rejected
        self._degrade("bad" if self.missed >= BAD_AFTER else "stale", reason)

    def spoil(self, reason: str) -> None:
        """What the device answered cannot be a value of this property: bad at once."""
        self.missed = max(self.missed + 1, BAD_AFTER)
        self.rejected = True
        self._degrade("bad", reason)

    def _degrade(self, quality: Quality, reason: str) -> None:
        if (self.reported.quality, self.reported.reason) != (quality, reason):
            self.reported = msgspec.structs.replace(self.reported, quality=quality, reason=reason)
            self.dirty |= self.has_report

    # desired

    def want(self, now: float, now_ms: int) -> None:
        """Take over the declared desired value. The same one again changes nothing unless it is not applied yet."""
        text = self.declared.desired.value
        if text == self.desired.value and self.desired.write in ("applied", "pending"):
            return
        self._delays = backoff(*WRITE_RETRY_S)
        if text == "":
            self.wanted, self.write_due = None, None
            self._write_state("", "", "", now_ms)
            return
        model = self.property.model
        if problem := check_desired(text, model):
            self.refuse(problem.message, now_ms)
            return
        try:
            self.wanted = parse_value(text, model.type)
        except ConversionError as error:  # check_desired looks at the same, so this is belt and braces
            self.refuse(str(error), now_ms)
            return
        self.write_due = now
        self._write_state(text, "pending", "", now_ms)

    def recheck(self, now: float) -> None:
        """After a connect: see to it that the device has what is wanted."""
        if self.wanted is not None:
            self.write_due, self.compare_first = now, True

    def holds(self, value: Value) -> bool:
        """Whether the last read gave `value`, compared as it would be reported."""
        return self.reported.value == format_value(value, self.property.model.type)

    def applied(self, now_ms: int) -> None:
        self.write_due = None
        self.compare_first = False
        self._delays = backoff(*WRITE_RETRY_S)
        self._write_state(self.declared.desired.value, "applied", "", now_ms)

    def waits(self, reason: str, now_ms: int) -> None:
        """The device is away; the next connect sees to it."""
        self.write_due = None
        if self.desired.write != "failed":
            self._write_state(self.declared.desired.value, "pending", reason, now_ms)

    def failed(self, reason: str, now: float, now_ms: int, *, slow: bool = False) -> None:
        """The device did not take it; try again later, `slow` when that is hardly going to help."""
        self.write_due = now + (WRITE_RETRY_S[1] if slow else next(self._delays))
        self._write_state(self.declared.desired.value, "failed", reason, now_ms)

    def refuse(self, reason: str, now_ms: int) -> None:
        """It can never be written as it is: the device is not touched."""
        self.wanted, self.write_due = None, None
        self._write_state(self.declared.desired.value, "failed", reason, now_ms)

    def _write_state(self, value: str, write: WriteState, reason: str, now_ms: int) -> None:
        before = self.desired
        if (before.value, before.write, before.reason) != (value, write, reason):
            self.desired = Desired(value=value, type=before.type, updated_ms=now_ms, write=write, reason=reason)
            self.dirty = True


def broken_twin(
    declared: DeviceProperty, model: ModelProperty | None, reason: str, last: Reported, now_ms: int
) -> Twin:
    """The twin of a property that cannot run as it is declared. What was read last stays."""
    type_ = model.type.lower() if model else last.type
    wanted = declared.desired.value
    return Twin(
        declared.name,
        msgspec.structs.replace(last, type=type_, quality="bad", reason=reason),
        Desired(wanted, type_, now_ms, "failed", reason) if wanted else Desired(type=type_),
    )
