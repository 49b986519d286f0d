"""Reading Kubernetes' protobuf bodies: kubectl's typed commands (`create configmap|secret|namespace|…`,
`auth can-i|whoami`) and Go clients send built-in kinds so, whatever the server offers. Answers are JSON; they take it.

Only the kinds in `_KINDS`. A body is the magic `k8s\\0` and a `runtime.Unknown`; the numbers below are those of the
`generated.proto` files of k8s.io/api and k8s.io/apimachinery. Unknown fields are skipped, as protobuf wants it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from kubetwin.apiserver.items import JsonObject

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
_MAX_DEPTH = 32

Scalar: TypeAlias = Literal["text", "bytes", "int", "bool", "time", "micro"]


class Field(NamedTuple):
    """One field of a message: its JSON name and what it holds. `many`: a list, or a map from text."""

    name: str
    holds: Scalar | Message
    many: Literal["", "list", "map"] = ""


Message: TypeAlias = "dict[int, Field]"


class ProtobufError(ValueError):
    """The body is not what it claims to be."""


def _texts(*names: str) -> Message:
    return {number: Field(name, "text") for number, name in enumerate(names, start=1) if name}


_OWNER: Message = {
    **_texts("kind", "", "name", "uid", "apiVersion"),
    6: Field("controller", "bool"),
    7: Field("blockOwnerDeletion", "bool"),
}
_META: Message = {
    **_texts("name", "generateName", "namespace", "", "uid", "resourceVersion"),
    7: Field("generation", "int"),
    8: Field("creationTimestamp", "time"),
    9: Field("deletionTimestamp", "time"),
    10: Field("deletionGracePeriodSeconds", "int"),
    11: Field("labels", "text", "map"),
    12: Field("annotations", "text", "map"),
    13: Field("ownerReferences", _OWNER, "list"),
    14: Field("finalizers", "text", "list"),
}
_REFERENCE = _texts("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_RESOURCE = _texts("namespace", "verb", "group", "version", "resource", "subresource", "name")
_LEASE_SPEC: Message = {
    1: Field("holderIdentity", "text"),
    2: Field("leaseDurationSeconds", "int"),
    3: Field("acquireTime", "micro"),
    4: Field("renewTime", "micro"),
    5: Field("leaseTransitions", "int"),
    6: Field("strategy", "text"),
    7: Field("preferredHolder", "text"),
}
_EVENT: Message = {
    2: Field("involvedObject", _REFERENCE),
    3: Field("reason", "text"),
    4: Field("message", "text"),
    5: Field("source", _texts("component", "host")),
    6: Field("firstTimestamp", "time"),
    7: Field("lastTimestamp", "time"),
    8: Field("count", "int"),
    9: Field("type", "text"),
    10: Field("eventTime", "micro"),
    11: Field("series", {1: Field("count", "int"), 2: Field("lastObservedTime", "micro")}),
    12: Field("action", "text"),
    13: Field("related", _REFERENCE),
    14: Field("reportingComponent", "text"),
    15: Field("reportingInstance", "text"),
}


def _object(fields: Message) -> Message:
    return {1: Field("metadata", _META), **fields}


_KINDS: dict[tuple[str, str], Message] = {
    ("v1", "ConfigMap"): _object(
        {2: Field("data", "text", "map"), 3: Field("binaryData", "bytes", "map"), 4: Field("immutable", "bool")}
    ),
    ("v1", "Secret"): _object(
        {
            2: Field("data", "bytes", "map"),
            3: Field("type", "text"),
            4: Field("stringData", "text", "map"),
            5: Field("immutable", "bool"),
        }
    ),
    ("v1", "Namespace"): _object(
        {2: Field("spec", {1: Field("finalizers", "text", "list")}), 3: Field("status", {1: Field("phase", "text")})}
    ),
    ("v1", "ServiceAccount"): _object(
        {
            2: Field("secrets", _REFERENCE, "list"),
            3: Field("imagePullSecrets", _texts("name"), "list"),
            4: Field("automountServiceAccountToken", "bool"),
        }
    ),
    ("v1", "Event"): _object(_EVENT),
    ("coordination.k8s.io/v1", "Lease"): _object({2: Field("spec", _LEASE_SPEC)}),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): _object(
        {
            2: Field(
                "spec",
                {1: Field("resourceAttributes", _RESOURCE), 2: Field("nonResourceAttributes", _texts("path", "verb"))},
            )
        }
    ),
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"): _object({2: Field("spec", _texts("namespace"))}),
    ("authentication.k8s.io/v1", "SelfSubjectReview"): _object({}),
}
_DELETE_OPTIONS: Message = {
    1: Field("gracePeriodSeconds", "int"),
    2: Field("preconditions", _texts("uid", "resourceVersion")),
    3: Field("orphanDependents", "bool"),
    4: Field("propagationPolicy", "text"),
    5: Field("dryRun", "text", "list"),
}
_ENVELOPE: Message = {1: Field("typeMeta", _texts("apiVersion", "kind")), 2: Field("raw", "bytes")}


def read_protobuf(body: bytes) -> JsonObject:
    """The object in a body, as JSON would have brought it.

    Raises:
        ProtobufError: The body is malformed, or of a kind that is only read as JSON here.
    """
    if not body.startswith(MAGIC):
        raise ProtobufError("the body does not start with the Kubernetes protobuf prefix")
    meta: dict[str, str] = {}
    raw = b""
    for number, _wire, value in _fields(body[len(MAGIC) :]):
        if number == 1:
            meta = _message(_as_bytes(value), _ENVELOPE[1].holds, 0)
        elif number == 2:
            raw = _as_bytes(value)
    api_version, kind = meta.get("apiVersion", ""), meta.get("kind", "")
    message = _DELETE_OPTIONS if kind == "DeleteOptions" else _KINDS.get((api_version, kind))
    if message is None:
        raise ProtobufError(f"{api_version or '?'} {kind or '?'} is read as JSON only")
    return {"apiVersion": api_version, "kind": kind, **_message(raw, message, 0)}


def _message(data: bytes, message: Any, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ProtobufError("the body is nested too deeply")
    found: dict[str, Any] = {}
    for number, _wire, value in _fields(data):
        field: Field | None = message.get(number)
        if field is None:
            continue
        match field.many:
            case "map":
                entry = _message(_as_bytes(value), {1: Field("key", "text"), 2: Field("value", field.holds)}, depth + 1)
                found.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", "")
            case "list":
                found.setdefault(field.name, []).append(_value(value, field.holds, depth))
            case _:
                decoded = _value(value, field.holds, depth)
                # Go writes every text field, also the empty ones that JSON leaves out.
                if decoded != "" or field.name == "value":
                    found[field.name] = decoded
    return found


def _value(value: int | bytes, holds: Any, depth: int) -> Any:
    match holds:
        case "text":
            return _as_bytes(value).decode()
        case "bytes":
            return base64.b64encode(_as_bytes(value)).decode()
        case "int" | "bool":
            if not isinstance(value, int):
                raise ProtobufError("a number was expected")
            signed = value - (1 << 64) if value >> 63 else value
            return bool(value) if holds == "bool" else signed
        case "time" | "micro":
            return _time(_message(_as_bytes(value), {1: Field("s", "int"), 2: Field("n", "int")}, depth + 1), holds)
    return _message(_as_bytes(value), holds, depth + 1)


def _time(parts: dict[str, Any], holds: str) -> str:
    try:
        at = datetime.fromtimestamp(parts.get("s", 0), UTC).replace(microsecond=parts.get("n", 0) // 1000)
    except (ValueError, OverflowError, OSError) as exc:
        raise ProtobufError(f"not a time: {parts}") from exc
    if holds == "time":
        # An empty Time is written too, as seconds zero or as nothing at all.
        return "" if not parts.get("s") else at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return "" if not parts else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ProtobufError("a number where text or a message was expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field; values are numbers or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ProtobufError(f"wire type {wire} is not used by Kubernetes")
        if at + size > len(data):
            raise ProtobufError("the body is cut off")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ProtobufError("the body is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ProtobufError("a number is longer than 64 bits")
