"""One property's twin as the mapper knows it: what was read with which quality, what is wanted, what is left to report.

Owned by one device runner; plain state without I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dmi.errors import ConversionError
from dmi.twins import Desired, Quality, Reported, Twin, WriteState
from dmi.types import DeviceProperty, ModelProperty
from dmi.values import Value, check_range, format_value
from mappers.sdk.driver import Property
from mappers.sdk.errors import plain_reason
from mappers.sdk.keys import PLAIN_REPORTS, ReportKeys
from mappers.sdk.limits import parse_wanted, value_range
from mappers.sdk.schedule import backoff, cycle_s

__all__ = ["Tracker", "broken_twin"]

BAD_AFTER: Final = 3
"""Missed cycles after which a value is no longer only stale."""
CONFIRM_MS: Final = 10_000
"""How often an unchanged value is reported again when the property has no `reportCycle`."""
MAX_TEXT: Final = 64 * 1024
"""Characters of a value. One that is larger than a DMI message would keep its whole device from being reported."""
WRITE_RETRY_S: Final = (1.0, 30.0)


class Tracker:
    """The state of one property."""

    __slots__ = (
        "_delays",
        "_range",
        "_raw",
        "attempts",
        "collected_ms",
        "compare_first",
        "confirm_s",
        "confirming",
        "cycle_s",
        "declared",
        "desired",
        "dirty",
        "keys",
        "missed",
        "name",
        "property",
        "quality",
        "reason",
        "rejected",
        "sampled",
        "sent_at",
        "told",
        "updated_at",
        "value",
        "wanted",
        "write_due",
    )

    def __init__(self, declared: DeviceProperty, property_: Property[Any], keys: ReportKeys = PLAIN_REPORTS) -> None:
        self.property = property_
        self.redeclare(declared, keys)
        self.value = ""
        """As it is reported; the last good one."""
        self.collected_ms = 0
        self.quality: Quality = "good"
        self.reason = ""
        self.desired = Desired(type=property_.model.type.lower())
        self.missed = 0
        self.rejected = False
        """Bad, and for a reason that lies in the declaration, the device or the value, not in the way there."""
        self.dirty = False
        """Something changed that is to be reported at once."""
        self.confirming = False
        """It is time to report what there is, changed or not."""
        self.told: str | None = None
        """The value of the last report."""
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
        self.attempts = 0
        """Writes that failed since the desired value was declared."""
        self._raw: Value | None = None
        """The value behind `value`, so that the same one need not be formatted again."""
        try:
            self._range = value_range(property_.model)
        except ConversionError:  # `declare` warns about it
            self._range = None
        self._delays: Iterator[float] | None = None

    def redeclare(self, declared: DeviceProperty, keys: ReportKeys) -> None:
        """Other cycles, report keys, or desired value; the register is the same."""
        self.declared, self.keys = declared, keys
        self.name = declared.name
        self.cycle_s = cycle_s(declared.collect_cycle_ms)
        default_ms = CONFIRM_MS if keys.report_on_change else 1000
        heartbeat_ms = keys.heartbeat if keys.report_on_change else 0
        self.confirm_s = cycle_s(heartbeat_ms or declared.report_cycle_ms, default_ms)
        self.sampled = declared.push_method is not None

    @property
    def reported(self) -> Reported:
        return Reported(self.value, self.desired.type, self.collected_ms, self.quality, self.reason)

    @property
    def has_report(self) -> bool:
        """Something worth telling is known. A property that was never read is told about once it counts as bad."""
        return bool(self.collected_ms or self.desired.write) or self.quality == "bad"

    def inherit(self, last: Reported) -> None:
        """Go on from what another register gave; it stays until the new one is read."""
        self.value, self.collected_ms = last.value, last.collected_ms
        self.quality, self.reason = last.quality, last.reason

    def twin(self) -> Twin:
        """As it is reported; before the first read the reported side is empty, so that it says nothing at all."""
        known = self.collected_ms or self.quality == "bad"
        return Twin(self.name, self.reported if known else Reported(), self.desired)

    def tell(self, now: float) -> Twin:
        """The twin for a report that goes out now."""
        self.dirty = self.confirming = False
        self.sent_at, self.told = now, self.value
        return self.twin()

    def confirm_due(self, now: float) -> bool:
        """Whether an unchanged value is to be confirmed in the cycle that ends now."""
        return now - self.sent_at >= self.confirm_s - self.cycle_s / 2

    # reported

    def seen(self, value: Value, now_ms: int, at: float) -> None:
        """The device has this value.

        Raises:
            ConversionError: It does not fit the declared type or range; the caller decides what that means.
        """
        text = self.value if type(value) is type(self._raw) and value == self._raw else self._fit(value)
        if self.quality != "good" or not self.collected_ms or self._moved(text):
            self.dirty = True
            self.quality, self.reason = "good", ""
        self.missed = 0
        self.rejected = False
        self.updated_at = at
        self.value, self._raw, self.collected_ms = text, value, now_ms

    def _fit(self, value: Value) -> str:
        model = self.property.model
        if not isinstance(value, bool | int | float | str | bytes):
            raise ConversionError(f"{repr(value)[:64]} is not a value of type {model.type}")
        try:
            text = format_value(value, model.type)
        except ValueError:  # whole numbers of thousands of digits
            raise ConversionError(f"the number is too large for type {model.type}") from None
        if len(text) > MAX_TEXT:
            raise ConversionError(f"the value has {len(text)} characters; more than {MAX_TEXT} are not reported")
        if self._range is not None and not (
            isinstance(value, int | float) and self._range[0] <= value <= self._range[1]
        ):
            check_range(text, model)  # has the last word: 0.1 as a 32-bit number is a little more than 0.1
        return text

    def _moved(self, text: str) -> bool:
        """Whether the value is another than the one reported last, by as much as counts."""
        if text == self.told or not self.keys.report_on_change:
            return False
        if not self.keys.deadband or not self.told:
            return True
        return abs(float(text) - float(self.told)) > self.keys.deadband

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
        self._raw, reason = None, plain_reason(reason)
        if (self.quality, self.reason) != (quality, reason):
            self.quality, self.reason = quality, reason
            self.dirty |= self.has_report

    # desired

    def want(self, now: float, now_ms: int) -> None:
        """Take over the declared desired value. The same one again changes nothing: what failed has its next attempt
        in its own time, however often the declaration comes."""
        text = self.declared.desired.value
        if text == self.desired.value:
            return
        self._start_over()
        self.wanted, self.write_due = None, None
        if text == "":
            self._write_state("", "", "", now_ms)
            return
        try:
            self.wanted = parse_wanted(text, self.property.model)
        except ConversionError as error:
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
        return self.value == format_value(value, self.property.model.type)

    def applied(self, now_ms: int, reason: str = "") -> None:
        """The device has it; `reason` says so when that could not be verified."""
        self.write_due = None
        self.compare_first = False
        self._start_over()
        self._write_state(self.declared.desired.value, "applied", reason, now_ms)

    def waits(self, reason: str, now_ms: int) -> None:
        """The device is away; the next connect sees to it."""
        self.write_due = None
        if self.desired.write != "failed":
            self._write_state(self.declared.desired.value, "pending", reason, now_ms)

    def failed(self, reason: str, now: float, now_ms: int, *, slow: bool = False) -> None:
        """The device did not take it; try again later, `slow` when that is hardly going to help. From the second time
        on the reason starts with the number of the attempt."""
        self.attempts += 1
        if self._delays is None:
            self._delays = backoff(*WRITE_RETRY_S)
        self.write_due = now + (WRITE_RETRY_S[1] if slow else next(self._delays))
        told = reason if self.attempts == 1 else f"attempt {self.attempts}: {reason}"
        self._write_state(self.declared.desired.value, "failed", told, now_ms)

    def refuse(self, reason: str, now_ms: int) -> None:
        """It cannot be written as it is: the device is not touched, or not again before the next connect."""
        self.write_due = None
        self._write_state(self.declared.desired.value, "failed", reason, now_ms)

    def _start_over(self) -> None:
        self.attempts, self._delays = 0, None

    def _write_state(self, value: str, write: WriteState, reason: str, now_ms: int) -> None:
        before, reason = self.desired, plain_reason(reason)
        if (before.value, before.write, before.reason) != (value, write, reason):
            self.desired = Desired(value=value, type=before.type, updated_ms=now_ms, write=write, reason=reason)
            self.dirty = True


def broken_twin(
    declared: DeviceProperty, model: ModelProperty | None, reason: str, last: Reported, now_ms: int
) -> Twin:
    """The twin of a property that cannot run as it is declared. What was read last stays."""
    reason = plain_reason(reason)
    type_ = model.type.lower() if model else last.type
    wanted = declared.desired.value
    return Twin(
        declared.name,
        Reported(last.value, type_, last.collected_ms, "bad", reason),
        Desired(wanted, type_, now_ms, "failed", reason) if wanted else Desired(type=type_),
    )
