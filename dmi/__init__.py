"""The device contract: what a device, its model, its twins and their values are, and how they cross DMI and Kubernetes.

The gRPC helpers stay in their modules (`dmi.client`, `dmi.server`), so that reading a value needs no gRPC.
"""

from dmi.checks import Problem, check_desired, check_device, merge_model
from dmi.crd import device_from_crd, device_to_crd, model_from_crd, model_to_crd
from dmi.errors import (
    ConfigError,
    ConversionError,
    DmiError,
    Overloaded,
    PeerRefused,
    PeerTimeout,
    PeerUnavailable,
    UnknownDevice,
    UnknownModel,
    UnknownProperty,
)
from dmi.twins import Desired, Reported, Twin, supersedes
from dmi.types import (
    Device,
    DeviceId,
    DeviceModel,
    DeviceProperty,
    DeviceState,
    ModelId,
    ModelProperty,
    NodeName,
    Visitor,
    device_id,
    split_id,
)
from dmi.values import Value, check_range, format_value, parse_value

__all__ = [
    "ConfigError",
    "ConversionError",
    "Desired",
    "Device",
    "DeviceId",
    "DeviceModel",
    "DeviceProperty",
    "DeviceState",
    "DmiError",
    "ModelId",
    "ModelProperty",
    "NodeName",
    "Overloaded",
    "PeerRefused",
    "PeerTimeout",
    "PeerUnavailable",
    "Problem",
    "Reported",
    "Twin",
    "UnknownDevice",
    "UnknownModel",
    "UnknownProperty",
    "Value",
    "Visitor",
    "check_desired",
    "check_device",
    "check_range",
    "device_from_crd",
    "device_id",
    "device_to_crd",
    "format_value",
    "merge_model",
    "model_from_crd",
    "model_to_crd",
    "parse_value",
    "split_id",
    "supersedes",
]
