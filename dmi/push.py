"""`pushMethod` ⇄ protobuf. The manifest and DMI spell some names differently, and Go's case-insensitive JSON bridges
them upstream; here the renames are a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dmi._pb import api_pb2 as pb
from dmi.errors import ConfigError
from dmi.scalars import scalars_from_any, scalars_to_any

__all__ = ["push_from_pb", "push_to_pb"]

_TO_DMI: Final = {
    "hostName": "hostname",
    "requestPath": "requestpath",
    "TDEngine": "tdengine",
    "TDEngineClientConfig": "tdEngineClientConfig",
    "dbName": "dbname",
}
_TO_CRD: Final = {dmi: crd for crd, dmi in _TO_DMI.items()}
_FREE_MAPS: Final = ("tag",)
"""Maps of the user's own keys: never renamed."""
_INT64: Final = ("port", "timeout")
"""64-bit numbers: the protobuf JSON form writes them as text."""


def push_to_pb(push: Mapping[str, Any], path: str) -> pb.PushMethod:
    """The manifest's `pushMethod` → message.

    Raises:
        ConfigError: An unknown key or a value of the wrong type.
    """
    from google.protobuf import json_format  # 0.5 MB that an edge box without push methods does not need

    known = {key: value for key, value in push.items() if key != "anomalyDetection" and value is not None}
    try:
        message = json_format.ParseDict(_rename(known, _TO_DMI), pb.PushMethod())
    except json_format.ParseError as error:
        raise ConfigError(path, str(error)) from error
    anomaly = push.get("anomalyDetection")
    if anomaly is not None:
        if not isinstance(anomaly, Mapping):
            raise ConfigError(f"{path}.anomalyDetection", "must be an object")
        # A Go mapper renders these through protojson, which turns 64-bit integers into text (DMI contract 0.2, rule 8).
        data = scalars_to_any(anomaly, f"{path}.anomalyDetection", int_bits=32)
        message.anomalyDetection.CopyFrom(pb.AnomalyDetection(data=data))
    return message


def push_from_pb(message: pb.PushMethod) -> dict[str, Any]:
    """Message → `pushMethod` as the manifest has it. Members at their default (0, false, empty) are left out."""
    from google.protobuf import json_format

    typed = pb.PushMethod()
    typed.CopyFrom(message)
    typed.ClearField("anomalyDetection")
    push = _ints(_rename(json_format.MessageToDict(typed, preserving_proto_field_name=True), _TO_CRD))
    if message.HasField("anomalyDetection"):
        push["anomalyDetection"] = scalars_from_any(message.anomalyDetection.data, "pushMethod.anomalyDetection")
    return push


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        names.get(key, key): child if key in _FREE_MAPS else _rename(child, names)
        for key, child in value.items()
        if child is not None
    }


def _ints(value: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _ints(child)
        if isinstance(child, dict) and key not in _FREE_MAPS
        else int(child)
        if key in _INT64
        else child
        for key, child in value.items()
    }
