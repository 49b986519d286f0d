"""Visitor keys that the runtime reads itself, beside the driver's own; the same for every protocol."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

__all__ = ["PLAIN_REPORTS", "ReportKeys"]


class ReportKeys(Struct, frozen=True):
    """When a property is reported: flat keys of `visitors.configData`.

    A change of quality, of the desired value or of what became of it is always reported at once. The data plane gets
    every value that was read, whatever these say.
    """

    deadband: Annotated[float, Meta(ge=0)] = 0.0
    """In the property's unit: a number that moved no further than this from the one reported last is not reported as a
    change. 0: every change is. For INT, FLOAT and DOUBLE only."""
    heartbeat: Annotated[int, Meta(ge=0)] = 0
    """Milliseconds after which an unchanged value is confirmed; 0: the property's `reportCycle`, or else 10 s."""
    report_on_change: bool = msgspec.field(default=True, name="reportOnChange")
    """False: the newest value is reported once per `reportCycle` (0: 1 s), changed or not, and never in between."""


PLAIN_REPORTS: Final = ReportKeys()
"""Of all properties that say nothing about it."""
