"""The mapper SDK: what a driver is written against. Everything not named here may change any day."""

from __future__ import annotations

from dmi.types import DeviceId, ModelProperty
from dmi.values import Value
from mappers.sdk.driver import Driver, Link, Property, ReadResult
from mappers.sdk.errors import (
    ConfigError,
    ConversionError,
    DeviceError,
    DeviceProtocolError,
    DeviceRejected,
    DeviceTimeout,
    DeviceUnreachable,
    MapperError,
)

__all__ = [
    "ConfigError",
    "ConversionError",
    "DeviceError",
    "DeviceId",
    "DeviceProtocolError",
    "DeviceRejected",
    "DeviceTimeout",
    "DeviceUnreachable",
    "Driver",
    "Link",
    "MapperError",
    "ModelProperty",
    "Property",
    "ReadResult",
    "Value",
]
