"""What local apps say over MQTT: topics and payloads → requests, strictly (device contract 3.2, 3.5).

Topics are split on `/`, so that a namespace may be called `dev`. A payload is read as Go reads it: keys in any case,
unknown ones ignored, null and a missing member alike. Whatever else is wrong is refused with the place in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

import msgspec
from msgspec import Struct

from dmi import ConfigError, DeviceId, DeviceState, device_id
from edgecore.devicetwin.document import Refused, TwinChange, Version
from edgecore.devicetwin.merge import read_state

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Asked",
    "NotJson",
    "Request",
    "read_changes",
    "read_event_id",
    "read_object",
    "read_request",
    "read_topic",
]

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_PROPERTIES: Final = 4096
"""In one request."""
MAX_EVENT_ID_CHARS: Final = 256
_MAX_VERSION: Final = 2**53

Kind = Literal["twin/update", "twin/get", "twin/cloud_updated", "state/update", "membership/get"]


class Asked(Struct, frozen=True):
    """What a topic asks for. `device` is empty for the node."""

    kind: Kind
    device: DeviceId = DeviceId("")


class Request(Struct, frozen=True):
    asked: Asked
    event_id: str = ""
    changes: Mapping[str, TwinChange] = {}
    state: DeviceState = "unknown"


class NotJson(Refused):
    """The payload cannot be read at all, so that nobody knows its event id."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


def read_topic(topic: str) -> Asked | None:
    """None for a topic that is none of the device twin's."""
    match topic.split("/"):
        case ["$hw", "events", "device", namespace, name, part, action] if namespace and name:
            kind = f"{part}/{action}"
            if kind in ("twin/update", "twin/get", "twin/cloud_updated", "state/update"):
                return Asked(cast(Kind, kind), device_id(namespace, name))
        case ["$hw", "events", "node", node, "membership", "get"] if node:
            return Asked("membership/get")
    return None


def read_object(payload: bytes) -> dict[str, Any]:
    """
    Raises:
        NotJson: Too large, not JSON, or not an object.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise NotJson(f"payload of {len(payload)} bytes: at most {MAX_PAYLOAD_BYTES} are taken")
    try:
        content = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"payload is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise NotJson(f"payload must be a JSON object, not {_kind(content)}")
    return content


def read_event_id(content: Mapping[str, Any]) -> str:
    """
    Raises:
        Refused: 400: no text, or a long one.
    """
    event_id = _text(content, "event_id", "event_id") or ""
    if len(event_id) > MAX_EVENT_ID_CHARS:
        raise Refused(400, f"event_id: over {MAX_EVENT_ID_CHARS} characters")
    return event_id


def read_request(asked: Asked, event_id: str, content: Mapping[str, Any]) -> Request:
    """
    Raises:
        Refused: 400, with the place in the payload.
    """
    match asked.kind:
        case "twin/update" | "twin/cloud_updated":
            return Request(asked, event_id, read_changes(content))
        case "state/update":
            return Request(asked, event_id, state=_state(content))
        case "twin/get" | "membership/get":
            return Request(asked, event_id)


def _state(content: Mapping[str, Any]) -> DeviceState:
    try:
        return read_state(_text(content, "state", "state") or "")
    except ConfigError as error:
        raise Refused(400, str(error), what="state") from error


def read_changes(content: Mapping[str, Any]) -> dict[str, TwinChange]:
    """The `twin` of an update.

    Raises:
        Refused: It is missing, or something in it is of another type.
    """
    twin = _object(content, "twin", "twin")
    if twin is None:
        raise Refused(400, "twin: is missing")
    if len(twin) > MAX_PROPERTIES:
        raise Refused(400, f"twin: over {MAX_PROPERTIES} properties")
    return {name: read_change(name, said) for name, said in twin.items()}


def read_change(name: str, said: Any) -> TwinChange:
    where = f"property {name[:128]!r}"
    if said is None:
        return TwinChange(deleted=True)
    if not isinstance(said, dict):
        raise Refused(400, f"{where}: must be an object or null, not {_kind(said)}", what=name)
    try:
        metadata = _object(said, "metadata", f"{where}: metadata") or {}
        type_ = _text(metadata, "type", f"{where}: metadata.type") or ""
        optional = _member(said, "optional")
        if optional is not None and not isinstance(optional, bool):
            raise Refused(400, f"{where}: optional must be true or false, not {_kind(optional)}")
        if type_ == "deleted":
            sides: tuple[str | None, str | None] = (None, None)
        else:
            sides = _value(said, "expected", where), _value(said, "actual", where)
        return TwinChange(
            *sides,
            optional=optional,
            type=type_,
            deleted=type_ == "deleted",
            expected_version=_version(said, "expected_version", where),
            actual_version=_version(said, "actual_version", where),
        )
    except Refused as refused:
        refused.what = name
        raise


def _value(said: Mapping[str, Any], side: str, where: str) -> str | None:
    """A side without a value is as one that is not there."""
    given = _object(said, side, f"{where}: {side}")
    return None if given is None else _text(given, "value", f"{where}: {side}.value")


def _version(said: Mapping[str, Any], key: str, where: str) -> Version | None:
    given = _object(said, key, f"{where}: {key}")
    if given is None:
        return None
    return Version(*(_count(given, part, f"{where}: {key}.{part}") for part in ("cloud", "edge")))


def _count(content: Mapping[str, Any], key: str, where: str) -> int:
    value = _member(content, key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_VERSION:
        raise Refused(400, f"{where}: must be a whole number from 0 to 2**53")
    return value


def _object(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any] | None:
    value = _member(content, key)
    if value is not None and not isinstance(value, dict):
        raise Refused(400, f"{where}: must be an object, not {_kind(value)}")
    return value


def _text(content: Mapping[str, Any], key: str, where: str) -> str | None:
    value = _member(content, key)
    if value is not None and not isinstance(value, str):
        raise Refused(400, f"{where}: must be a text, not {_kind(value)}: write it in quotes")
    return value


def _member(content: Mapping[str, Any], key: str) -> Any:
    """In any case, as Go's decoder; the key as it is documented first."""
    if key in content:
        return content[key]
    return next((value for other, value in content.items() if other.lower() == key), None)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return "an object"
