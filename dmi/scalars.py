"""Flat settings ⇄ maps of `google.protobuf.Any`, the form `configData` and `anomalyDetection` have in DMI."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.message import DecodeError, Message

from dmi.errors import ConfigError, ConversionError
from dmi.types import Scalar
from dmi.values import shortest_float32

__all__ = ["scalars_from_any", "scalars_to_any"]

_PREFIX: Final = "google.protobuf."
_READERS: Final[dict[str, type[Any]]] = {
    "StringValue": wrappers_pb2.StringValue,
    "BoolValue": wrappers_pb2.BoolValue,
    "FloatValue": wrappers_pb2.FloatValue,
    "DoubleValue": wrappers_pb2.DoubleValue,
    "Int32Value": wrappers_pb2.Int32Value,
    "Int64Value": wrappers_pb2.Int64Value,
    "UInt32Value": wrappers_pb2.UInt32Value,
    "UInt64Value": wrappers_pb2.UInt64Value,
}


def scalars_to_any(
    settings: Mapping[str, Scalar], path: str, *, int_bits: Literal[32, 64] = 64
) -> dict[str, any_pb2.Any]:
    """Settings → wrappers that a Go mapper understands: StringValue, BoolValue, FloatValue, Int32Value, Int64Value.

    Numbers with a fraction are narrowed to 32 bits, because a Go mapper skips a DoubleValue without a word. A setting
    that needs more digits is written as a text. With `int_bits=32` larger integers become a FloatValue as well.

    Raises:
        ConfigError: A setting is nested or does not fit; the path is `path` and its key.
    """
    return {str(key): _to_any(value, f"{path}.{key}", int_bits) for key, value in settings.items()}


def scalars_from_any(data: Mapping[str, any_pb2.Any], path: str) -> dict[str, Scalar]:
    """Wrappers → settings. A FloatValue becomes the shortest decimal that is the same 32-bit number, an int when whole.

    Raises:
        ConfigError: A value is no wrapper of a scalar, or damaged; the path is `path` and its key.
    """
    return {key: _from_any(value, f"{path}.{key}") for key, value in data.items()}


def _to_any(value: Scalar, path: str, int_bits: int) -> any_pb2.Any:
    wrapper: Message
    if isinstance(value, bool):
        wrapper = wrappers_pb2.BoolValue(value=value)
    elif isinstance(value, str):
        wrapper = wrappers_pb2.StringValue(value=value)
    elif isinstance(value, int) and int_bits == 64:
        if not -(2**63) <= value < 2**63:
            raise ConfigError(path, f"{value} does not fit 64 bits: write it as a text")
        wrapper = wrappers_pb2.Int64Value(value=value)
    elif isinstance(value, int) and -(2**31) <= value < 2**31:
        wrapper = wrappers_pb2.Int32Value(value=value)
    elif isinstance(value, int | float):
        try:
            wrapper = wrappers_pb2.FloatValue(value=float(shortest_float32(value)))
        except (ConversionError, OverflowError):
            raise ConfigError(path, f"{value} does not fit 32 bits: write it as a text") from None
    else:
        raise ConfigError(
            path, "settings are flat: a text, a number or true/false. Write a nested one as JSON in a text"
        )
    result = any_pb2.Any()
    result.Pack(wrapper)
    return result


def _from_any(message: any_pb2.Any, path: str) -> Scalar:
    name = message.type_url.rpartition("/")[2].removeprefix(_PREFIX)
    reader = _READERS.get(name)
    if reader is None:
        raise ConfigError(
            path, f"a value of type {message.type_url[:100]!r} is no setting: use a text, number or true/false"
        )
    wrapper = reader()
    try:
        wrapper.ParseFromString(message.value)
    except DecodeError as error:
        raise ConfigError(path, f"damaged {name}: {error}") from error
    value: Scalar = wrapper.value
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ConfigError(path, f"{value} is not a finite number")
    if name == "FloatValue":
        value = float(shortest_float32(value))
    return int(value) if value.is_integer() else value
