"""Kubernetes objects ⇄ values: `Device` and `DeviceModel` of `devices.kubeedge.io/v1beta1` as plain JSON dictionaries.

Reading is lenient in what upstream leaves open (absent members, `null`) and refuses what could never work with an error
that names the path. Writing gives the shape upstream's Go types give: `desired` always there, free objects bare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dmi.errors import ConfigError
from dmi.types import (
    PROPERTY_TYPES,
    Config,
    DesiredSpec,
    Device,
    DeviceMethod,
    DeviceModel,
    DeviceProperty,
    ModelProperty,
    NodeName,
    Scalar,
    Visitor,
)

__all__ = ["API_VERSION", "GROUP", "device_from_crd", "device_to_crd", "model_from_crd", "model_to_crd"]

GROUP: Final = "devices.kubeedge.io"
API_VERSION: Final = "devices.kubeedge.io/v1beta1"

Json = Mapping[str, Any]


def device_from_crd(obj: Json) -> Device:
    """A `Device` object → value.

    Raises:
        ConfigError: A member has the wrong type, or a setting is nested; the path is the one in the YAML.
    """
    namespace, name = _identity(obj)
    spec = _object(obj, "spec")
    protocol = _object(spec, "protocol", "spec")
    # The settings moved from `status` to `spec.stateReport`; where that is absent, upstream reads the old place.
    report, report_path = (
        (_object(spec, "stateReport", "spec"), "spec.stateReport")
        if spec.get("stateReport")
        else (_object(obj, "status"), "status")
    )
    return Device(
        namespace=namespace,
        name=name,
        model=_text(_object(spec, "deviceModelRef", "spec"), "name", "spec.deviceModelRef"),
        node=NodeName(_text(spec, "nodeName", "spec")),
        protocol=_text(protocol, "protocolName", "spec.protocol"),
        protocol_config=_config(protocol, "configData", "spec.protocol"),
        properties=tuple(_device_property(item, path) for item, path in _items(spec, "properties", "spec")),
        methods=tuple(
            DeviceMethod(
                name=_text(item, "name", path),
                description=_text(item, "description", path),
                property_names=tuple(_texts(item, "propertyNames", path)),
            )
            for item, path in _items(spec, "methods", "spec")
        ),
        report_state=_flag(report, "reportToCloud", report_path),
        state_report_cycle_ms=_cycle(report, "reportCycle", report_path),
    )


def device_to_crd(device: Device) -> dict[str, Any]:
    """Value → the `Device` object that `device_from_crd` reads back as the same value."""
    spec: dict[str, Any] = {
        "deviceModelRef": {"name": device.model},
        "nodeName": device.node,
        "protocol": {"protocolName": device.protocol, "configData": dict(device.protocol_config)},
        "properties": [
            {
                "name": p.name,
                "desired": {"value": p.desired.value, "metadata": dict(p.desired.metadata)},
                "visitors": {"protocolName": p.visitor.protocol, "configData": dict(p.visitor.config)},
                "collectCycle": p.collect_cycle_ms,
                "reportCycle": p.report_cycle_ms,
                "reportToCloud": p.report_to_cloud,
                **({"pushMethod": dict(p.push_method)} if p.push_method is not None else {}),
            }
            for p in device.properties
        ],
        "methods": [
            {"name": m.name, "description": m.description, "propertyNames": list(m.property_names)}
            for m in device.methods
        ],
        "stateReport": {"reportToCloud": device.report_state, "reportCycle": device.state_report_cycle_ms},
    }
    return _envelope("Device", device.namespace, device.name, spec)


def model_from_crd(obj: Json) -> DeviceModel:
    """A `DeviceModel` object → value.

    Raises:
        ConfigError: A member has the wrong type, a property type or access mode is unknown, or a setting is nested.
    """
    namespace, name = _identity(obj)
    spec = _object(obj, "spec")
    return DeviceModel(
        namespace=namespace,
        name=name,
        protocol=_text(spec, "protocol", "spec"),
        protocol_config=_config(spec, "protocolConfigData", "spec"),
        properties=tuple(_model_property(item, path) for item, path in _items(spec, "properties", "spec")),
    )


def model_to_crd(model: DeviceModel) -> dict[str, Any]:
    """Value → the `DeviceModel` object that `model_from_crd` reads back as the same value."""
    spec: dict[str, Any] = {
        "protocol": model.protocol,
        "protocolConfigData": dict(model.protocol_config),
        "properties": [
            {
                "name": p.name,
                "description": p.description,
                "type": p.type,
                "accessMode": p.access_mode,
                "minimum": p.minimum,
                "maximum": p.maximum,
                "unit": p.unit,
                **(
                    {"visitors": {"protocolName": p.visitor.protocol, "configData": dict(p.visitor.config)}}
                    if p.visitor is not None
                    else {}
                ),
            }
            for p in model.properties
        ],
    }
    return _envelope("DeviceModel", model.namespace, model.name, spec)


def _device_property(item: Json, path: str) -> DeviceProperty:
    desired = _object(item, "desired", path)
    push = item.get("pushMethod")
    return DeviceProperty(
        name=_required(item, "name", path),
        desired=DesiredSpec(
            value=_text(desired, "value", f"{path}.desired"),
            metadata={k: str(v) for k, v in _object(desired, "metadata", f"{path}.desired").items()},
        ),
        visitor=_visitor(item, path) or Visitor(),
        collect_cycle_ms=_cycle(item, "collectCycle", path),
        report_cycle_ms=_cycle(item, "reportCycle", path),
        report_to_cloud=_flag(item, "reportToCloud", path),
        push_method=None if push is None else _object(item, "pushMethod", path),
    )


def _model_property(item: Json, path: str) -> ModelProperty:
    type_ = _text(item, "type", path)
    if type_ not in PROPERTY_TYPES:
        raise ConfigError(f"{path}.type", f"{type_!r} is not one of {', '.join(PROPERTY_TYPES)}")
    access_mode = _text(item, "accessMode", path) or "ReadWrite"
    if access_mode not in ("ReadOnly", "ReadWrite"):
        raise ConfigError(f"{path}.accessMode", f"{access_mode!r} is not one of ReadOnly, ReadWrite")
    return ModelProperty(
        name=_required(item, "name", path),
        type=type_,
        access_mode="ReadOnly" if access_mode == "ReadOnly" else "ReadWrite",
        minimum=_text(item, "minimum", path),
        maximum=_text(item, "maximum", path),
        unit=_text(item, "unit", path),
        description=_text(item, "description", path),
        visitor=_visitor(item, path),
    )


def _visitor(item: Json, path: str) -> Visitor | None:
    if item.get("visitors") is None:
        return None
    visitors = _object(item, "visitors", path)
    path = f"{path}.visitors"
    return Visitor(protocol=_text(visitors, "protocolName", path), config=_config(visitors, "configData", path))


def _config(parent: Json, key: str, path: str) -> Config:
    config: dict[str, Scalar] = {}
    for name, value in _object(parent, key, path).items():
        if value is None:
            raise ConfigError(f"{path}.{key}.{name}", "has no value: give it one, or leave the key out")
        if not isinstance(value, str | bool | int | float):
            raise ConfigError(
                f"{path}.{key}.{name}",
                "settings are flat: a text, a number or true/false. Write a nested one as JSON in a text",
            )
        config[str(name)] = value
    return config


def _envelope(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def _identity(obj: Json) -> tuple[str, str]:
    metadata = _object(obj, "metadata")
    namespace, name = _required(metadata, "namespace", "metadata"), _required(metadata, "name", "metadata")
    for key, part in (("namespace", namespace), ("name", name)):
        if "/" in part:
            raise ConfigError(f"metadata.{key}", f"{part!r} contains a slash")
    return namespace, name


def _object(parent: Json, key: str, path: str = "") -> Json:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(_join(path, key), f"must be an object, not {_kind(value)}")
    return value


def _items(parent: Json, key: str, path: str) -> list[tuple[Json, str]]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(_join(path, key), f"must be a list, not {_kind(value)}")
    items: list[tuple[Json, str]] = []
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise ConfigError(f"{path}.{key}[{index}]", f"must be an object, not {_kind(item)}")
        items.append((item, f"{path}.{key}[{index}]"))
    return items


def _texts(parent: Json, key: str, path: str) -> list[str]:
    value = parent.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(_join(path, key), "must be a list of texts")
    return value


def _text(parent: Json, key: str, path: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(_join(path, key), f"must be a text, not {_kind(value)}: put it in quotes")
    return value


def _required(parent: Json, key: str, path: str) -> str:
    value = _text(parent, key, path)
    if not value:
        raise ConfigError(_join(path, key), "is missing")
    return value


def _flag(parent: Json, key: str, path: str) -> bool:
    value = parent.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(_join(path, key), f"must be true or false, not {_kind(value)}")
    return value


def _cycle(parent: Json, key: str, path: str) -> int:
    value = parent.get(key)
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():  # Go peers pass free numbers through float64
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(_join(path, key), f"must be a whole number of milliseconds, not {_kind(value)}")
    if not 0 <= value < 2**63:
        raise ConfigError(_join(path, key), f"{value} is not a cycle: milliseconds from 0 (the default, 1000) up")
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true/false"
        case int() | float():
            return f"the number {value!r}"
        case str():
            return f"the text {value[:64]!r}"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return type(value).__name__
