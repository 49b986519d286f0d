"""What one object alone cannot show: whether a device fits its model. And the merge of the model's defaults into it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from dmi.errors import ConversionError
from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Visitor
from dmi.values import check_range, parse_value

__all__ = ["Problem", "check_desired", "check_device", "merge_model"]


class Problem(Struct, frozen=True):
    """One thing that is wrong with a device as declared. It concerns one property, or the device when that is empty."""

    reason: str
    """One word for programs, such as `ReadOnlyProperty`."""
    message: str
    """For people: what is wrong, where, and what to do."""
    property_name: str = ""


def merge_model(device: Device, model: DeviceModel) -> Device:
    """Lay the device's own settings over its model's defaults, as upstream's edge core does before a mapper sees them.

    Protocol settings and visitor settings merge per top-level key. A property whose model has a visitor takes that
    visitor's protocol name. Properties that the device does not list are not added, and those the model does not know
    are left out, because a Go mapper crashes on one; `check_device` names them.

    Source: upstream `edge/pkg/devicetwin/dmicache/dmicache.go:overrideDeviceInstanceConfig`.
    """
    return msgspec.structs.replace(
        device,
        protocol_config={**model.protocol_config, **device.protocol_config},
        properties=tuple(_merge_property(p, m) for p in device.properties if (m := model.find(p.name))),
    )


def _merge_property(property_: DeviceProperty, model_property: ModelProperty) -> DeviceProperty:
    default = model_property.visitor
    if default is None:
        return property_
    merged = Visitor(protocol=default.protocol, config={**default.config, **property_.visitor.config})
    return msgspec.structs.replace(property_, visitor=merged)


def check_device(device: Device, model: DeviceModel) -> list[Problem]:
    """Everything about a device that does not fit its model. An empty list means that a mapper can run it."""
    return [
        problem
        for index, property_ in enumerate(device.properties)
        for problem in _check_property(property_, index, device, model)
    ]


def _check_property(property_: DeviceProperty, index: int, device: Device, model: DeviceModel) -> Iterator[Problem]:
    path = f"spec.properties[{index}]"
    model_property = model.find(property_.name)
    if model_property is None:
        yield Problem(
            "UnknownProperty",
            f"{path}.name: model {model.name!r} has no property {property_.name!r}; it is not collected",
            property_.name,
        )
        return
    if problem := check_desired(property_.desired.value, model_property, path=f"{path}.desired.value"):
        yield problem
    protocol = property_.visitor.protocol
    if protocol and device.protocol and protocol != device.protocol:
        yield Problem(
            "ProtocolMismatch",
            f"{path}.visitors.protocolName: {protocol!r} is not the device's protocol {device.protocol!r}",
            property_.name,
        )


def check_desired(text: str, property_: ModelProperty, *, path: str = "desired") -> Problem | None:
    """Why a desired value can never be written, if it cannot. An empty one asks for nothing."""
    if text == "":
        return None
    if not property_.writable:
        return Problem(
            "ReadOnlyProperty",
            f"{path}: property {property_.name!r} is ReadOnly, so {text[:64]!r} is not written",
            property_.name,
        )
    try:
        parse_value(text, property_.type)
        check_range(text, property_)
    except ConversionError as error:
        return Problem("InvalidDesired", f"{path}: {error}", property_.name)
    return None
