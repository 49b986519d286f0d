"""What nodes report, as messages: twins and states of devices. Parsing only.

One property that cannot be read does not spoil the others of its message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from cloudedge import MalformedMessage, Message
from cloudedge.message import now_ms
from dmi import Desired, Reported

__all__ = ["Sides", "StateReport", "read_state_report", "read_twin_report"]

MAX_VALUE_CHARACTERS: Final = 64 * 1024
"""Longest value taken: all twins of a device share one API object, which etcd limits to 1.5 MiB."""


MAX_REPORT_BYTES: Final = 4 * 1024 * 1024
"""Of a report; more could not be written, and decoded it takes many times as much memory."""
MAX_PROPERTIES: Final = 10_000
"""In a report; fewer fit into an API object, and nobody else is served while they are read."""
_MEMBERS: Final = 20
"""Of a property, at most; stock edge cores send 8."""
MAX_WRONG: Final = 16
"""Properties that are named when they cannot be read."""


class Sides(Struct, frozen=True):
    """What a report says of one property; None: nothing of that side."""

    deleted_ms: int = 0
    """Epoch milliseconds when the property was deleted at the edge; 0: it was not."""

    reported: Reported | None = None
    desired: Desired | None = None


class StateReport(Struct, frozen=True):
    state: str = ""
    last_online: str = ""
    """RFC 3339; empty: as before."""
    reason: str = ""
    since_ms: int = 0
    """Epoch milliseconds; 0: the edge core does not say since when."""


class _Side(Struct):
    value: str | None = None
    metadata: dict[str, Any] | None = None


class _Twin(Struct):
    expected: _Side | None = None
    actual: _Side | None = None
    metadata: dict[str, Any] | None = None


class _TwinContent(Struct):
    twin: dict[str, Raw]
    timestamp: Any = None


class _Device(Struct, rename="camel"):
    state: str | None = None
    last_online_time: str | None = None
    reason: str | None = None
    since: Any = None


class _StateContent(Struct):
    device: _Device


def read_twin_report(message: Message) -> tuple[dict[str, Sides], list[str]]:
    """Sides by property, and what was wrong with the properties that were left out.

    Raises:
        MalformedMessage: Not the content of a twin report at all.
    """
    sides: dict[str, Sides] = {}
    wrong: list[str] = []
    _check_size(message)
    if bytes(message.content).count(b",") > MAX_PROPERTIES * _MEMBERS:
        raise MalformedMessage(f"content of {message.describe()}: more than {MAX_PROPERTIES} properties")
    content = message.data(_TwinContent)
    if len(content.twin) > MAX_PROPERTIES:
        raise MalformedMessage(f"content of {message.describe()}: more than {MAX_PROPERTIES} properties")
    for name, raw in content.twin.items():
        try:
            twin = msgspec.json.decode(raw, type=_Twin | None)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if len(wrong) < MAX_WRONG:
                wrong.append(f"property {name[:128]!r}: {error}")
            continue
        if twin is None:
            continue
        type_ = (twin.metadata or {}).get("type")
        if type_ == "deleted":
            sides[name] = Sides(deleted_ms=_deleted_ms(twin, content.timestamp) or now_ms())
            continue
        too_long = [s for s in (twin.actual, twin.expected) if s and len(s.value or "") > MAX_VALUE_CHARACTERS]
        if too_long:
            wrong.append(f"property {name[:128]!r}: the value is longer than {MAX_VALUE_CHARACTERS} characters")
            continue
        sides[name] = Sides(reported=_side(twin.actual, type_, Reported), desired=_side(twin.expected, type_, Desired))
    return sides, wrong


def read_state_report(message: Message) -> StateReport:
    """The state that a device is in, with its reason where there is one.

    Raises:
        MalformedMessage: Not the content of a state report, or an empty state.
    """
    _check_size(message)
    device = message.data(_StateContent).device
    if not device.state:
        raise MalformedMessage(f"content of {message.describe()}: device.state is empty")
    return StateReport(
        state=device.state[:64],
        last_online=(device.last_online_time or "")[:64],
        reason=(device.reason or "")[:1024],
        since_ms=millis(device.since),
    )


def _check_size(message: Message) -> None:
    if len(message.content) > MAX_REPORT_BYTES:
        raise MalformedMessage(f"content of {message.describe()}: more than {MAX_REPORT_BYTES} bytes")


def _side(side: _Side | None, type_: object, cls: type[Any]) -> Any:
    if side is None or side.value is None:
        return None
    metadata: Mapping[str, Any] = {**(side.metadata or {}), "type": type_}
    return cls.from_metadata(side.value, metadata)


def _deleted_ms(twin: _Twin, sent: object) -> int:
    """When a property was deleted: a time on its sides, else the message's."""
    times = [
        millis((side.metadata or {}).get("timestamp")) for side in (twin.actual, twin.expected) if side is not None
    ]
    return max(times, default=0) or millis(sent)


def millis(value: object) -> int:
    """Epoch milliseconds of the years 1970 to 9999; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 253_402_300_800_000 else 0
