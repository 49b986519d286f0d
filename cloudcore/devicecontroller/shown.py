"""What a DeviceStatus says of the state of a device: read back after a restart, so that times survive. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

__all__ = ["UNKNOWN", "Condition", "Shown", "Truth", "read_shown", "utc_text"]

UNKNOWN: Final = "unknown"

Truth = Literal["True", "False", "Unknown"]


class Condition(Struct, frozen=True):
    """As conditions of Kubernetes objects are: `type` is the question, `status` the answer."""

    type: str
    status: Truth
    reason: str
    """One word for programs."""
    message: str = ""
    """For people; empty: there is nothing to add."""
    since: str = ""
    """RFC 3339: when `status` became what it is."""

    def rendered(self) -> dict[str, str]:
        return {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": self.since,
        }


class Shown(Struct, frozen=True):
    """State and conditions as shown to people."""

    state: str = ""
    reason: str = ""
    since: str = ""
    """RFC 3339: since when the device is in this state; empty: not known."""
    conditions: Mapping[str, Condition] = {}
    """By type, in the order of being shown."""

    def status_of(self, type_: str) -> str:
        condition = self.conditions.get(type_)
        return condition.status if condition is not None else ""

    def reason_of(self, type_: str) -> str:
        condition = self.conditions.get(type_)
        return condition.reason if condition is not None else ""


def read_shown(status: object) -> Shown:
    """What a DeviceStatus says, read leniently: it may have been edited by hand."""
    whole = _object(status)
    extensions = _object(whole.get("extensions"))
    items = extensions.get("conditions")
    conditions = [c for item in (items if isinstance(items, list) else []) if (c := _condition(item)) is not None]
    return Shown(
        state=_text(whole.get("state")),
        reason=_text(extensions.get("reason")),
        since=_text(extensions.get("since")),
        conditions={condition.type: condition for condition in conditions},
    )


def utc_text(epoch_ms: int) -> str:
    """RFC 3339, UTC, whole seconds, as Kubernetes writes times. A time no calendar has is the epoch."""
    try:
        moment = datetime.datetime.fromtimestamp(epoch_ms // 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.datetime.fromtimestamp(0, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(item: object) -> Condition | None:
    value = _object(item)
    type_, status = _text(value.get("type")), value.get("status")
    if not type_ or status not in ("True", "False", "Unknown"):
        return None
    return Condition(
        type_, status, _text(value.get("reason")), _text(value.get("message")), _text(value.get("lastTransitionTime"))
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
