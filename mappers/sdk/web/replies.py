"""What the device API answers: upstream's shapes, key for key (DMI contract 4), and ours beside them."""

from __future__ import annotations

import time

from msgspec import Struct

from dmi.twins import Twin
from dmi.types import Device, DeviceModel, DeviceState
from dmi.web.http import Response, encode, json_response

__all__ = [
    "device_data",
    "device_json",
    "method_list",
    "model_reply",
    "reply",
    "reply_fields",
    "rfc3339",
]


class _ModelProperty(Struct, frozen=True, omit_defaults=True, rename="camel"):
    name: str
    data_type: str
    description: str = ""
    access_mode: str = ""
    minimum: str = ""
    maximum: str = ""
    unit: str = ""


def rfc3339(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))


def reply_fields() -> dict[str, object]:
    """What every reply of a success begins with."""
    return {"apiVersion": "v1", "statusCode": 200, "timeStamp": rfc3339(time.time())}


def reply(**fields: object) -> Response:
    """A success with these at the top level."""
    return json_response({**reply_fields(), **fields})


def device_data(device: Device, twin: Twin) -> dict[str, object]:
    """`Data` of a read."""
    return {
        "DeviceName": device.name,
        "PropertyName": twin.property_name,
        "Namespace": device.namespace,
        "Value": twin.reported.value,
        "Type": twin.reported.type,
        "TimeStamp": twin.reported.collected_ms,
    }


def method_list(device: Device, model: DeviceModel | None) -> dict[str, object]:
    """`Data` of a list of methods. A property the model does not have has no type."""
    types = {p.name: p.type.lower() for p in model.properties} if model else {}
    path = f"/api/v1/devicemethod/{device.namespace}/{device.name}"
    return {
        "Methods": [
            {
                "Name": method.name,
                "Path": f"{path}/{method.name}/{{propertyName}}/{{data}}",
                "Parameters": [{"PropertyName": p, "ValueType": types.get(p, "")} for p in method.property_names],
            }
            for method in device.methods
        ]
    }


def model_reply(model: DeviceModel) -> Response:
    """The model at the top level; what is empty is left out."""
    properties = [
        _ModelProperty(p.name, p.type, p.description, p.access_mode, p.minimum, p.maximum, p.unit)
        for p in model.properties
    ]
    fields: dict[str, object] = {"id": model.id, "name": model.name, "namespace": model.namespace}
    if properties:
        fields["properties"] = properties
    return reply(**fields)


def device_json(
    device: Device, protocol: str, state: tuple[DeviceState, str], twins: list[Twin], *, model: str
) -> bytes:
    """A device with what is known of it, for people."""
    state_name, reason = state
    return encode(
        {
            "Namespace": device.namespace,
            "Name": device.name,
            "Protocol": protocol,
            "Model": model,
            "State": state_name,
            **({"Reason": reason} if reason else {}),
            "Properties": [_twin_fields(twin) for twin in twins],
        }
    )


def _twin_fields(twin: Twin) -> dict[str, object]:
    reported, desired = twin.reported, twin.desired
    fields: dict[str, object] = {
        "Name": twin.property_name,
        "Value": reported.value,
        "Type": reported.type,
        "TimeStamp": reported.collected_ms,
        "Quality": reported.quality,
    }
    if reported.reason:
        fields["Reason"] = reported.reason
    if desired.value or desired.write:
        fields["Desired"] = {
            "Value": desired.value,
            "Write": desired.write,
            **({"Reason": desired.reason} if desired.reason else {}),
        }
    return fields
