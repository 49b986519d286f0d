"""Twins and states as messages to the cloud, member for member as upstream's edge core writes them.

Our additions are string keys inside the two inner `metadata` objects (`quality`, `write`, `reason`) and `reason` beside
a state, with `since`; each is absent when there is nothing to say.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cloudedge import Message, new_message
from cloudedge.message import now_ms
from cloudedge.resources import MEMBERSHIP_DETAIL, state_resource, twin_resource
from dmi import Desired, DeviceId, Reported, split_id
from edgecore.store import StateRow, TwinRow, shown_state

__all__ = ["membership_request", "rfc3339", "row_type", "state_message", "twin_message", "twin_view"]


def twin_message(device: DeviceId, rows: Iterable[TwinRow]) -> Message:
    """All given properties of a device."""
    content = {
        "event_id": str(uuid.uuid4()),
        "timestamp": now_ms(),
        "twin": {r.twin.property_name: _twin(r) for r in rows},
    }
    return _message("update", twin_resource(*split_id(device)), content)


def state_message(device: DeviceId, row: StateRow) -> Message:
    namespace, name = split_id(device)
    state, reason = shown_state(row)
    content = {
        "event_id": str(uuid.uuid4()),
        "timestamp": now_ms(),
        "device": {
            "name": name,
            "state": state,
            "lastOnlineTime": rfc3339(row.last_online_ms),
            **({"reason": reason} if reason else {}),
            **({"since": row.since_ms} if row.since_ms else {}),
        },
    }
    return _message("update", state_resource(namespace, name), _as_text(content))


def membership_request(node: str, objects: Mapping[str, tuple[str, str]] | None = None) -> Message:
    """Asks which devices this node has. Upstream's cloud never answers; ours does, and sends the objects that are not
    in `objects`, or all when there is none: by resource path the uid and version of what is stored
    (`cloudedge.inventory`).
    """
    content = {
        "event_type": "group_membership_event",
        "event_id": str(uuid.uuid4()),
        "group_id": node,
        "operation": "detail",
        "timestamp": now_ms(),
        **({} if objects is None else {"objects": objects}),
    }
    return _message("get", MEMBERSHIP_DETAIL, _as_text(content))


def _message(operation: str, resource: str, content: Any) -> Message:
    return new_message(source="twin", group="resource", operation=operation, resource=resource, content=content)


def _twin(row: TwinRow) -> dict[str, Any]:
    view = twin_view(row)
    if row.deleted:
        deleted = {"metadata": {"timestamp": row.twin.reported.collected_ms}}
        view = {"expected": deleted, "actual": deleted, **view}
    return {
        **view,
        "expected_version": {"cloud": row.desired_cloud, "edge": row.desired_edge},
        "actual_version": {"cloud": row.reported_cloud, "edge": row.reported_edge},
    }


def twin_view(row: TwinRow) -> dict[str, Any]:
    """A twin without its versions, as local apps see it too. As upstream, a side is absent while it never had a value,
    and both are in a tombstone, whose type is `deleted`.
    """
    reported, desired = row.twin.reported, row.twin.desired
    return {
        **({"expected": _expected(desired)} if desired.updated_ms and not row.deleted else {}),
        **({"actual": _actual(reported)} if reported.collected_ms and not row.deleted else {}),
        "optional": row.optional,
        "metadata": {"type": "deleted" if row.deleted else row_type(row) or "string"},
    }


def row_type(row: TwinRow) -> str:
    """Empty while it has none."""
    return row.twin.reported.type or row.twin.desired.type


def _expected(desired: Desired) -> dict[str, Any]:
    metadata: dict[str, Any] = {"timestamp": desired.updated_ms}
    if desired.write:
        metadata["write"] = desired.write
    if desired.reason:
        metadata["reason"] = desired.reason
    return {"value": desired.value, "metadata": metadata}


def _actual(reported: Reported) -> dict[str, Any]:
    metadata: dict[str, Any] = {"timestamp": reported.collected_ms}
    if reported.quality != "good":
        metadata["quality"] = reported.quality
    if reported.reason:
        metadata["reason"] = reported.reason
    return {"value": reported.value, "metadata": metadata}


def _as_text(content: Any) -> str:
    """Upstream sends these two as a JSON text inside the JSON."""
    return msgspec.json.encode(content).decode()


def rfc3339(epoch_ms: int) -> str:
    """UTC, whole seconds; empty for never."""
    if not epoch_ms:
        return ""
    return datetime.datetime.fromtimestamp(epoch_ms // 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
