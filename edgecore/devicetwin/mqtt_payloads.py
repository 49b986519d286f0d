"""What local apps hear over MQTT: topics and payloads of answers and documents (device contract 3.5).

Member for member as upstream: no versions, deleted twins as null. Our additions are the string keys inside the inner
`metadata` objects that the messages to the cloud have too, and `reason` beside a state.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from cloudedge.message import now_ms
from dmi import DeviceId, split_id
from edgecore.bus import MqttOut
from edgecore.devicetwin.document import TwinChange, delta
from edgecore.devicetwin.messages import rfc3339, twin_view
from edgecore.store import StateRow, TwinRow, shown_state, why_old

__all__ = [
    "delta_of",
    "document_of",
    "membership_result",
    "membership_updated",
    "refusal",
    "reported_result",
    "result_topic",
    "state_result",
    "twins_result",
    "update_result",
]

_DEVICES: Final = "$hw/events/device/"
_NODES: Final = "$hw/events/node/"

Json = dict[str, Any]


def refusal(topic: str, code: int, reason: str, event_id: str) -> MqttOut:
    return _out(topic, event_id, {"code": code, "reason": reason})


def result_topic(kind: str, device: DeviceId | str, node: str) -> str:
    """Where a request is answered. Upstream answers a sync, where it does, as an update."""
    if kind == "membership/get":
        return f"{_NODES}{node}/membership/get/result"
    return f"{_DEVICES}{device}/{'twin/update' if kind == 'twin/cloud_updated' else kind}/result"


def update_result(
    device: DeviceId, changes: Mapping[str, TwinChange], rows: Mapping[str, TwinRow], event_id: str
) -> MqttOut:
    """The answer to an update: of each property the sides that were given, as they are now."""
    twin = {name: _given(change, rows.get(name)) for name, change in changes.items()}
    return _out(result_topic("twin/update", device, ""), event_id, {"twin": twin})


def reported_result(device: DeviceId, names: Iterable[str], rows: Mapping[str, TwinRow], event_id: str) -> MqttOut:
    """As the answer to an update, for what a mapper reported. Nobody waits for it."""
    twin = {name: _view(rows.get(name)) for name in names}
    return _out(result_topic("twin/update", device, ""), event_id, {"twin": twin})


def document_of(
    device: DeviceId, names: Iterable[str], before: Mapping[str, TwinRow], after: Mapping[str, TwinRow], event_id: str
) -> MqttOut:
    """What these properties were, and are."""
    twin = {name: {"last": _view(before.get(name)), "current": _view(after.get(name))} for name in names}
    return _out(f"{_DEVICES}{device}/twin/update/document", event_id, {"twin": twin})


def delta_of(device: DeviceId, rows: Mapping[str, TwinRow]) -> MqttOut | None:
    """All twins with an expected value, and which of them differ; None when none does."""
    apart = delta(rows)
    if not apart:
        return None
    twin = {name: twin_view(row) for name, row in rows.items() if row.twin.desired.value and not row.deleted}
    return _out(f"{_DEVICES}{device}/twin/update/delta", str(uuid.uuid4()), {"twin": twin, "delta": apart}, latest=True)


def twins_result(device: DeviceId, rows: Mapping[str, TwinRow], state: StateRow | None, event_id: str) -> MqttOut:
    """All twins. While the device is not there, what it reported is old, and said to be."""
    old = why_old(state)
    twin = {}
    for name, row in rows.items():
        if not row.deleted:
            twin[name] = view = twin_view(row)
            if old and "actual" in view and row.twin.reported.quality == "good":
                view["actual"]["metadata"] |= {"quality": "stale", "reason": old}
    return _out(result_topic("twin/get", device, ""), event_id, {"twin": twin})


def state_result(device: DeviceId, row: StateRow, event_id: str) -> MqttOut:
    """The state that is shown, which while edge core sees a fault is not what was just said."""
    state, reason = shown_state(row)
    said = {
        "name": split_id(device)[1],
        "state": state,
        **_present(lastOnlineTime=rfc3339(row.last_online_ms), reason=reason),
    }
    return _out(result_topic("state/update", device, ""), event_id or str(uuid.uuid4()), {"device": said})


def membership_result(node: str, states: Mapping[DeviceId, StateRow | None], event_id: str) -> MqttOut:
    devices = []
    for device, row in states.items():
        state, _ = shown_state(row) if row else ("", "")
        last_online = rfc3339(row.last_online_ms) if row else ""
        devices.append(_member(device) | _present(state=state, last_online=last_online))
    return _out(result_topic("membership/get", "", node), event_id, {"devices": devices})


def membership_updated(node: str, *, added: DeviceId | None = None, removed: DeviceId | None = None) -> MqttOut:
    content = {
        "added_devices": [_member(added)] if added else None,
        "removed_devices": [_member(removed)] if removed else None,
    }
    return _out(f"{_NODES}{node}/membership/updated", str(uuid.uuid4()), content)


def _given(change: TwinChange, row: TwinRow | None) -> Json | None:
    view = _view(row)
    if view is not None:
        if change.expected is None:
            view.pop("expected", None)
        if change.actual is None:
            view.pop("actual", None)
    return view


def _view(row: TwinRow | None) -> Json | None:
    return None if row is None or row.deleted else twin_view(row)


def _member(device: DeviceId) -> Json:
    return {"id": device, "name": split_id(device)[1]}


def _present(**texts: str) -> Json:
    return {key: text for key, text in texts.items() if text}


def _out(topic: str, event_id: str, content: Json, *, latest: bool = False) -> MqttOut:
    payload = msgspec.json.encode({"event_id": event_id, "timestamp": now_ms(), **content})
    return MqttOut(topic, payload, latest)
