"""Values ⇄ protobuf messages of DMI. Protobuf objects stay in this module and the two gRPC helpers beside it.

Strict in what is sent: every sub-message a Go peer dereferences is there (DMI contract 0.1 rule 6, 0.2 rules 2 and 7).
Tolerant in what is read: upstream's edge core sends every number as a 32-bit `FloatValue`, so 0.1 arrives as
0.10000000149011612 and is read back as 0.1; anything absent counts as empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from dmi._pb import api_pb2 as pb
from dmi.errors import ConfigError
from dmi.push import push_from_pb, push_to_pb
from dmi.scalars import scalars_from_any, scalars_to_any
from dmi.twins import Desired, Reported, Twin
from dmi.types import (
    PROPERTY_TYPES,
    DesiredSpec,
    Device,
    DeviceMethod,
    DeviceModel,
    DeviceProperty,
    ModelProperty,
    Visitor,
)

__all__ = [
    "device_from_pb",
    "device_to_pb",
    "encode_device",
    "encode_model",
    "fingerprint",
    "model_from_pb",
    "model_to_pb",
    "twin_from_pb",
    "twin_to_pb",
    "twins_from_pb",
]

_REMEMBERED: Final = 4096
"""Desired sides, each of so many bytes at most:"""
_REMEMBERED_BYTES: Final = 256


def device_to_pb(device: Device) -> pb.Device:
    """Value → message, ready for a Go mapper. `node` does not travel."""
    return pb.Device(
        name=device.name,
        namespace=device.namespace,
        status=pb.DeviceStatus(reportToCloud=device.report_state, reportCycle=device.state_report_cycle_ms),
        spec=pb.DeviceSpec(
            deviceModelReference=device.model,
            protocol=pb.ProtocolConfig(
                protocolName=device.protocol,
                configData=pb.CustomizedValue(data=scalars_to_any(device.protocol_config, "spec.protocol.configData")),
            ),
            properties=[
                pb.DeviceProperty(
                    name=p.name,
                    desired=pb.TwinProperty(value=p.desired.value, metadata=p.desired.metadata),
                    visitors=pb.VisitorConfig(
                        protocolName=p.visitor.protocol,
                        configData=pb.CustomizedValue(
                            data=scalars_to_any(p.visitor.config, f"spec.properties[{index}].visitors.configData")
                        ),
                    ),
                    reportCycle=p.report_cycle_ms,
                    collectCycle=p.collect_cycle_ms,
                    reportToCloud=p.report_to_cloud,
                    pushMethod=None
                    if p.push_method is None
                    else push_to_pb(p.push_method, f"spec.properties[{index}].pushMethod"),
                )
                for index, p in enumerate(device.properties)
            ],
            methods=[
                pb.DeviceMethod(name=m.name, description=m.description, propertyNames=m.property_names)
                for m in device.methods
            ],
        ),
    )


def device_from_pb(message: pb.Device) -> Device:
    """Message → value.

    Raises:
        ConfigError: No name or namespace, or a setting of an unreadable type.
    """
    if not message.name or not message.namespace:
        raise ConfigError("device", f"name {message.name!r} and namespace {message.namespace!r} must both be given")
    spec = message.spec
    return Device(
        namespace=message.namespace,
        name=message.name,
        model=spec.deviceModelReference,
        protocol=spec.protocol.protocolName,
        protocol_config=scalars_from_any(spec.protocol.configData.data, "spec.protocol.configData"),
        properties=tuple(
            DeviceProperty(
                name=p.name,
                desired=DesiredSpec(value=p.desired.value, metadata=dict(p.desired.metadata)),
                visitor=Visitor(
                    protocol=p.visitors.protocolName,
                    config=scalars_from_any(
                        p.visitors.configData.data, f"spec.properties[{index}].visitors.configData"
                    ),
                ),
                collect_cycle_ms=max(p.collectCycle, 0),
                report_cycle_ms=max(p.reportCycle, 0),
                report_to_cloud=p.reportToCloud,
                push_method=push_from_pb(p.pushMethod) if p.HasField("pushMethod") else None,
            )
            for index, p in enumerate(spec.properties)
        ),
        methods=tuple(
            DeviceMethod(name=m.name, description=m.description, property_names=tuple(m.propertyNames))
            for m in spec.methods
        ),
        report_state=message.status.reportToCloud,
        state_report_cycle_ms=max(message.status.reportCycle, 0),
    )


def encode_device(device: Device) -> bytes:
    """The message, always the same bytes for the same device.

    Raises:
        ConfigError: It cannot be sent as it is declared; the path is the one in the YAML.
    """
    return device_to_pb(device).SerializeToString(deterministic=True)


def encode_model(model: DeviceModel) -> bytes:
    return model_to_pb(model).SerializeToString(deterministic=True)


def fingerprint(device: bytes, model: bytes) -> bytes:
    """16 bytes that differ when what a mapper is sent of a device and its model differs; both as encoded."""
    import hashlib  # with OpenSSL's digests 0.7 MB; only edge cores need it

    return hashlib.blake2b(device + model, digest_size=16).digest()


def model_to_pb(model: DeviceModel) -> pb.DeviceModel:
    """Value → message. Protocol and visitor defaults do not travel: they are merged into the devices."""
    return pb.DeviceModel(
        name=model.name,
        namespace=model.namespace,
        spec=pb.DeviceModelSpec(
            properties=[
                pb.ModelProperty(
                    name=p.name,
                    description=p.description,
                    type=p.type,
                    accessMode=p.access_mode,
                    minimum=p.minimum,
                    maximum=p.maximum,
                    unit=p.unit,
                )
                for p in model.properties
            ]
        ),
    )


def model_from_pb(message: pb.DeviceModel) -> DeviceModel:
    """Message → value.

    Raises:
        ConfigError: No name or namespace, or an unknown property type.
    """
    if not message.name or not message.namespace:
        raise ConfigError("model", f"name {message.name!r} and namespace {message.namespace!r} must both be given")
    return DeviceModel(
        namespace=message.namespace,
        name=message.name,
        properties=tuple(_model_property(p, f"spec.properties[{i}]") for i, p in enumerate(message.spec.properties)),
    )


def _model_property(message: pb.ModelProperty, path: str) -> ModelProperty:
    type_ = next((t for t in PROPERTY_TYPES if t == message.type.upper()), None)
    if type_ is None:
        raise ConfigError(f"{path}.type", f"{message.type!r} is not one of {', '.join(PROPERTY_TYPES)}")
    return ModelProperty(
        name=message.name,
        type=type_,
        access_mode="ReadOnly" if message.accessMode == "ReadOnly" else "ReadWrite",
        minimum=message.minimum,
        maximum=message.maximum,
        unit=message.unit,
        description=message.description,
    )


def twin_to_pb(twin: Twin) -> pb.Twin:
    return pb.Twin(
        propertyName=twin.property_name,
        observedDesired=pb.TwinProperty(value=twin.desired.value, metadata=twin.desired.metadata()),
        reported=pb.TwinProperty(value=twin.reported.value, metadata=twin.reported.metadata()),
    )


def twin_from_pb(message: pb.Twin) -> Twin:
    has_reported, has_desired = message.HasField("reported"), message.HasField("observedDesired")
    return Twin(
        property_name=message.propertyName,
        reported=Reported.from_metadata(message.reported.value, message.reported.metadata),
        desired=_desired(message.observedDesired.SerializeToString()),
        only="" if has_reported and has_desired else "reported" if has_reported else "desired",
    )


def _desired(encoded: bytes) -> Desired:
    """Mostly the same as last time, unlike what is reported."""
    return _remembered_desired(encoded) if len(encoded) <= _REMEMBERED_BYTES else _read_desired(encoded)


def _read_desired(encoded: bytes) -> Desired:
    message = pb.TwinProperty.FromString(encoded)
    return Desired.from_metadata(message.value, message.metadata)


_remembered_desired: Final = lru_cache(_REMEMBERED)(_read_desired)


def twins_from_pb(messages: Iterable[pb.Twin]) -> list[Twin]:
    """Twins of one report, in order. One with neither side says nothing and is left out.

    Raises:
        ConfigError: One has no property name, or none says anything.
    """
    twins = []
    for index, message in enumerate(messages):
        if not message.propertyName:
            raise ConfigError(f"reportedDevice.twins[{index}].propertyName", "is missing")
        if message.HasField("reported") or message.HasField("observedDesired"):
            twins.append(twin_from_pb(message))
    if not twins:
        raise ConfigError("reportedDevice.twins", "is empty, or none of them has reported or observedDesired")
    return twins
