"""Devices and device models as every part of kubetwin sees them: frozen, typed, free of Kubernetes and gRPC.

Durations keep the wire's unit and say so in their name (`collect_cycle_ms`); 0 means the default, 1000 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NewType, get_args

from msgspec import Struct

__all__ = [
    "DEFAULT_CYCLE_MS",
    "PIN",
    "PROPERTY_TYPES",
    "AccessMode",
    "Config",
    "DesiredSpec",
    "Device",
    "DeviceId",
    "DeviceMethod",
    "DeviceModel",
    "DeviceProperty",
    "DeviceState",
    "ModelId",
    "ModelProperty",
    "NodeName",
    "PropertyType",
    "Scalar",
    "Visitor",
    "device_id",
    "split_id",
]

DeviceId = NewType("DeviceId", str)
"""`namespace/name` of a device: exactly one slash."""
ModelId = NewType("ModelId", str)
"""`namespace/name` of a device model."""
NodeName = NewType("NodeName", str)

PropertyType = Literal["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"]
PROPERTY_TYPES: Final[tuple[PropertyType, ...]] = get_args(PropertyType)
AccessMode = Literal["ReadOnly", "ReadWrite"]
DeviceState = Literal["online", "offline", "ok", "unknown", "unhealthy"]
"""The only states upstream's edge core takes (DMI contract 0.1, rule 11)."""

Scalar = str | bool | int | float
Config = Mapping[str, Scalar]
"""Flat protocol or visitor settings (`configData`). Nested ones cannot cross DMI."""

DEFAULT_CYCLE_MS: Final = 1000

PIN: Final = "mapper"
"""Key of `spec.protocol.configData`, for any protocol: the name of the one mapper that is to run the device, such as
the one that has the serial port. Read by our edge core."""


class Visitor(Struct, frozen=True):
    """How to reach one property on its device."""

    protocol: str = ""
    config: Config = {}


class ModelProperty(Struct, frozen=True):
    """What a device model says of one property."""

    name: str
    type: PropertyType
    access_mode: AccessMode = "ReadWrite"
    """Absent in the manifest counts as writable, as upstream."""
    minimum: str = ""
    """Decimal text; empty: no bound."""
    maximum: str = ""
    unit: str = ""
    description: str = ""
    visitor: Visitor | None = None
    """Defaults that a device's own visitor settings are laid over."""

    @property
    def writable(self) -> bool:
        return self.access_mode != "ReadOnly"


class DeviceModel(Struct, frozen=True):
    """The type of a device."""

    namespace: str
    name: str
    properties: tuple[ModelProperty, ...] = ()
    protocol: str = ""
    protocol_config: Config = {}

    @property
    def id(self) -> ModelId:
        return ModelId(f"{self.namespace}/{self.name}")

    def find(self, property_name: str) -> ModelProperty | None:
        return next((p for p in self.properties if p.name == property_name), None)


class DesiredSpec(Struct, frozen=True):
    """What the cloud wants a property to be. An empty value: nothing is wanted, the wire cannot tell those apart."""

    value: str = ""
    metadata: Mapping[str, str] = {}


class DeviceProperty(Struct, frozen=True):
    """What a device says of one property."""

    name: str
    desired: DesiredSpec = DesiredSpec()
    visitor: Visitor = Visitor()
    collect_cycle_ms: int = 0
    report_cycle_ms: int = 0
    report_to_cloud: bool = False
    push_method: Mapping[str, Any] | None = None
    """As the manifest has it, CRD key names; read by sinks only."""


class DeviceMethod(Struct, frozen=True):
    name: str
    description: str = ""
    property_names: tuple[str, ...] = ()


class Device(Struct, frozen=True):
    """One device: where it is, how to reach it, what to read from it."""

    namespace: str
    name: str
    model: str = ""
    """Bare name; the model lives in the device's namespace."""
    node: NodeName = NodeName("")
    """Does not cross DMI: a mapper sees it empty."""
    protocol: str = ""
    protocol_config: Config = {}
    properties: tuple[DeviceProperty, ...] = ()
    methods: tuple[DeviceMethod, ...] = ()
    report_state: bool = False
    state_report_cycle_ms: int = 0

    @property
    def id(self) -> DeviceId:
        return device_id(self.namespace, self.name)

    @property
    def model_id(self) -> ModelId:
        return ModelId(f"{self.namespace}/{self.model}")

    def find(self, property_name: str) -> DeviceProperty | None:
        return next((p for p in self.properties if p.name == property_name), None)


def device_id(namespace: str, name: str) -> DeviceId:
    return DeviceId(f"{namespace}/{name}")


def split_id(id_: DeviceId | ModelId | str) -> tuple[str, str]:
    """`namespace/name` → (namespace, name).

    Raises:
        ValueError: Not exactly two non-empty parts.
    """
    namespace, slash, name = id_.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise ValueError(f"{id_!r} is not of the form namespace/name")
    return namespace, name
