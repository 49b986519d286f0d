"""`kubectl twin describe`: everything the cluster knows of a device, for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from dmi.twins import Desired, Reported
from kubetwin.lenient import items, mapping, text
from kubetwin.rows import TwinRow, age_text, twin_rows
from kubetwin.twin.text import NOTHING, Columns, cell, clock_text, safe

__all__ = ["Described", "describe"]

Json = Mapping[str, Any]

_SECRET: Final = re.compile(r"pass|secret|token|credential|private|apikey|api_key", re.IGNORECASE)
_KNOWN_METADATA: Final = frozenset({"timestamp", "type", "quality", "write", "reason"})
_EVENTS: Final = 10
"""So many of the latest are shown."""
_WHOLE: Final = 10_000


class Described(Struct, frozen=True):
    """What is described; None or empty: there is none, or it may not be read."""

    device: Json
    model: Json | None = None
    status: Json | None = None
    node: Json | None = None
    events: Sequence[Json] = ()
    notes: Sequence[str] = ()
    """What could not be read, and why."""


def describe(seen: Described, *, now_ms: int, node_away: bool) -> str:
    """Everything, in kubectl's manner; every value whole, none able to steer the terminal."""
    status = [seen.status] if seen.status else []
    rows = twin_rows(
        [seen.device], [seen.model] if seen.model else [], status, now_ms=now_ms,
        nodes_away={text(seen.device, "spec", "nodeName")} if node_away else (),
    )  # fmt: skip
    lines = [*_head(seen, rows, now_ms), *_conditions(seen, now_ms), *_problems(seen)]
    lines += [*_properties(seen, rows), *_events(seen, now_ms)]
    lines += [f"Note:       {safe(note)}" for note in seen.notes]
    return "\n".join(lines)


def _head(seen: Described, rows: Sequence[TwinRow], now_ms: int) -> Iterator[str]:
    metadata, spec = mapping(seen.device, "metadata"), mapping(seen.device, "spec")
    status = mapping(seen.status or {}, "status")
    extensions, protocol = mapping(status, "extensions"), mapping(spec, "protocol")
    yield _field("Name", text(metadata, "name"))
    yield _field("Namespace", text(metadata, "namespace"))
    labels = [f"{k}={v}" for k, v in mapping(metadata, "labels").items()]
    yield from _block("Labels", labels)
    model = text(spec, "deviceModelRef", "name")
    missing = "" if seen.model or not model else "  (not there, or not to be read)"
    yield _field("Model", (model or NOTHING) + missing)
    yield from _block(
        "Protocol", [text(protocol, "protocolName") or NOTHING, *_settings(mapping(protocol, "configData"))]
    )
    yield _field("Node", _node(seen, spec, status))
    state = rows[0].state if rows else text(status, "state")
    since = text(extensions, "since")
    yield _field("State", (state or "none reported") + (f" since {_moment(since, now_ms)}" if since else ""))
    if rows and (reason := text(extensions, "reason")):
        yield _field("Reason", reason)
    elif state == "unknown" and rows and rows[0].state != text(status, "state"):
        yield _field("Reason", "its node is not connected")
    online = text(status, "lastOnlineTime")
    yield _field("Last online", _moment(online, now_ms) if online else "never")
    if seen.status is None:
        yield _field("DeviceStatus", "none: CloudCore makes it when it sees the Device")


def _node(seen: Described, spec: Json, status: Json) -> str:
    name = text(spec, "nodeName")
    if not name:
        return "none named (spec.nodeName): the device is sent nowhere"
    for condition in items(status, "extensions", "conditions"):
        if condition.get("type") == "NodeConnected":
            connected = {"True": "connected", "False": "not connected"}.get(text(condition, "status"), "")
            return f"{name}  ({connected or 'nobody knows whether it is connected'})"
    ready = [c for c in items(seen.node or {}, "status", "conditions") if c.get("type") == "Ready"]
    if ready:
        return f"{name}  ({'Ready' if ready[0].get('status') == 'True' else 'not Ready'})"
    return name


def _settings(config: Json) -> list[str]:
    return [f"{key}: {'(hidden)' if _SECRET.search(key) else value}" for key, value in config.items()]


def _conditions(seen: Described, now_ms: int) -> Iterator[str]:
    conditions = items(seen.status or {}, "status", "extensions", "conditions")
    if not conditions:
        return
    yield "Conditions:"
    columns = Columns(("Type", "Status", "Since", "Reason", "Message"), gap=2)
    rows = [
        (
            cell(text(c, "type")),
            cell(text(c, "status")),
            _age(text(c, "lastTransitionTime"), now_ms) or NOTHING,
            cell(text(c, "reason")) or NOTHING,
            cell(text(c, "message"), limit=_WHOLE),
        )
        for c in conditions
    ]
    yield from (f"  {line}".rstrip() for line in columns.lines(rows, header=True))


def _problems(seen: Described) -> Iterator[str]:
    problems = items(seen.status or {}, "status", "extensions", "problems")
    if problems:
        yield "Problems:"
        yield from (f"  {safe(text(p, 'reason'))}: {safe(text(p, 'message'))}" for p in problems)


def _properties(seen: Described, rows: Sequence[TwinRow]) -> Iterator[str]:
    if not rows:
        yield _field("Properties", "none declared")
        return
    yield "Properties:"
    models = {text(p, "name"): p for p in items(seen.model or {}, "spec", "properties")}
    declared = {text(p, "name"): p for p in items(seen.device, "spec", "properties")}
    twins = {text(t, "propertyName"): t for t in items(seen.status or {}, "status", "twins")}
    for row in rows:
        name = row.property_name
        yield from _property(row, models.get(name, {}), declared.get(name, {}), twins.get(name, {}))


def _property(row: TwinRow, model: Json, declared: Json, twin: Json) -> Iterator[str]:
    facts = ", ".join(fact for fact in (row.type, row.access, row.unit) if fact)
    yield f"  {safe(row.property_name)}:" + (f"  {safe(facts)}" if facts else "")
    if description := text(model, "description"):
        yield _inner("Description", description)
    if text(model, "minimum") or text(model, "maximum"):
        yield _inner("Range", f"{text(model, 'minimum') or 'any'} to {text(model, 'maximum') or 'any'}")
    cycles = [f"{word} every {declared[key]} ms" for word, key in
              (("collected", "collectCycle"), ("reported", "reportCycle")) if declared.get(key)]  # fmt: skip
    if cycles:
        yield _inner("Cycle", ", ".join(cycles))
    reported, observed = mapping(twin, "reported"), mapping(twin, "observedDesired")
    seen = Reported.from_metadata(text(reported, "value"), mapping(reported, "metadata"))
    if row.is_reported:
        age = f"  collected {age_text(row.age_s)} ago, {clock_text(row.collected_ms)}" if row.collected_ms else ""
        yield _inner("Reported", _quoted(row.value) + (f" {row.unit}" if row.unit and row.value else "") + age)
        yield _inner("Quality", row.quality + (f": {row.reason}" if row.quality != "good" and row.reason else ""))
    else:
        yield _inner("Reported", "nothing yet" + (f": {seen.reason}" if seen.reason else ""))
    if row.desired:
        yield _inner("Desired", _quoted(row.desired) + (f" {row.unit}" if row.unit else ""))
        yield _inner("In sync", ("yes" if row.in_sync else "no"))
    wanted = Desired.from_metadata(text(observed, "value"), mapping(observed, "metadata"))
    if row.write:
        same = row.write == wanted.write and wanted.value == row.desired
        since = f" since {clock_text(wanted.updated_ms)}" if same and wanted.updated_ms else ""
        yield _inner("Write", row.write + since + (f": {wanted.reason}" if same and wanted.reason else ""))
    if wanted.value and wanted.value != row.desired:
        yield _inner("Seen by edge", _quoted(wanted.value) + "  (the desired value that the edge knows)")
    others = {**mapping(observed, "metadata"), **mapping(reported, "metadata")}
    yield from (_inner(key, str(value)) for key, value in others.items() if key not in _KNOWN_METADATA)
    if seen.type not in ("", "string") and seen.type.upper() != row.type:  # stock edge cores say string of everything
        yield _inner("Reported type", seen.type)


def _events(seen: Described, now_ms: int) -> Iterator[str]:
    if not seen.events:
        yield _field("Events", "none")
        return
    yield "Events:"
    columns = Columns(("Type", "Reason", "Age", "From", "Message"), gap=2)
    latest = sorted(seen.events, key=_event_time)[-_EVENTS:]
    rows = []
    for event in latest:
        count = event.get("count")
        age = _age(_event_time(event), now_ms) + (f" (x{count})" if isinstance(count, int) and count > 1 else "")
        component = text(event, "source", "component") or text(event, "reportingComponent")
        message = cell(text(event, "message"), limit=_WHOLE)
        rows.append((cell(text(event, "type")), cell(text(event, "reason")), age or NOTHING, cell(component), message))
    yield from (f"  {line}".rstrip() for line in columns.lines(rows, header=True))


def _event_time(event: Json) -> str:
    series = text(event, "series", "lastObservedTime")
    metadata = mapping(event, "metadata")
    times = (series, text(event, "lastTimestamp"), text(event, "eventTime"), text(metadata, "creationTimestamp"))
    return next((time for time in times if time), "")


def _field(title: str, text: str) -> str:
    return f"{title + ':':<14}{safe(text)}".rstrip()


def _inner(title: str, text: str) -> str:
    return f"    {safe(title) + ':':<14}{safe(text)}".rstrip()


def _block(title: str, texts: Sequence[str]) -> Iterator[str]:
    first, *rest = texts or (NOTHING,)
    yield _field(title, first)
    yield from (" " * 14 + safe(line) for line in rest)


def _quoted(text: str) -> str:
    return f'"{text}"' if not text or text != text.strip() else text


def _moment(text: str, now_ms: int) -> str:
    age = _age(text, now_ms)
    return f"{text} ({age} ago)" if age else text


def _age(text: str, now_ms: int) -> str:
    """Since an RFC 3339 time; empty where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = max(0.0, now_ms / 1000 - moment.timestamp())
    return age_text(seconds if seconds >= 10 else round(seconds))  # these times have whole seconds
