"""The mapper SDK: what a driver is written against. Everything not named here may change any day."""

from __future__ import annotations

from dmi.types import DeviceId, ModelProperty, Scalar
from dmi.values import Value, format_value, parse_value
from mappers.sdk.driver import (
    CanCall,
    CanRead,
    CanSubscribe,
    CanWrite,
    Driver,
    Found,
    FoundProperty,
    Link,
    Property,
    Push,
    ReadResult,
)
from mappers.sdk.errors import (
    ConfigError,
    ConversionError,
    DeviceError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    MapperError,
)
from mappers.sdk.line import Line
from mappers.sdk.lines import SharedLines
from mappers.sdk.schedule import epoch_ms

__all__ = [
    "CanCall",
    "CanRead",
    "CanSubscribe",
    "CanWrite",
    "ConfigError",
    "ConversionError",
    "DeviceError",
    "DeviceId",
    "DeviceProtocolError",
    "DeviceRejected",
    "DeviceTimeout",
    "DeviceUnreachable",
    "DeviceUnsupported",
    "Driver",
    "Found",
    "FoundProperty",
    "Line",
    "Link",
    "MapperError",
    "ModelProperty",
    "Property",
    "Push",
    "ReadResult",
    "Scalar",
    "SharedLines",
    "Value",
    "epoch_ms",
    "format_value",
    "parse_value",
]
