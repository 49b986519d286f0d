"""The kinds this controller works with, as the API serves them."""

from __future__ import annotations

from typing import Final

from cloudcore.kube import Key, Kind, Object, spec_of
from dmi.crd import GROUP

__all__ = ["DEVICES", "MIRRORED", "MODELS", "STATUSES", "desired_values", "model_key", "node_name", "property_names"]

VERSION: Final = "v1beta1"

DEVICES: Final = Kind(group=GROUP, version=VERSION, plural="devices", kind="Device")
MODELS: Final = Kind(group=GROUP, version=VERSION, plural="devicemodels", kind="DeviceModel")
STATUSES: Final = Kind(group=GROUP, version=VERSION, plural="devicestatuses", kind="DeviceStatus")


MIRRORED: Final = ("twins", "state", "lastOnlineTime")
"""Members of a DeviceStatus's status that were in `Device.status` before KubeEdge 1.23, and may be mirrored there."""

# Read from the raw object, so that a device which is wrong elsewhere still belongs to its node and keeps its twins.


def node_name(device: Object) -> str:
    """The node a Device is bound to; empty: none."""
    name = spec_of(device).get("nodeName")
    return name if isinstance(name, str) else ""


def model_key(key: Key, device: Object) -> Key | None:
    """The DeviceModel that a Device names, which lives in its namespace; None: it names none."""
    reference = spec_of(device).get("deviceModelRef")
    name = reference.get("name") if isinstance(reference, dict) else None
    return Key(key.namespace, name) if isinstance(name, str) and name else None


def property_names(device: Object) -> tuple[str, ...]:
    """In the order of the Device, each once."""
    properties = spec_of(device).get("properties")
    if not isinstance(properties, list):
        return ()
    names = (p.get("name") for p in properties if isinstance(p, dict))
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def desired_values(device: Object) -> dict[str, str]:
    """Desired values by property. An empty one means that nothing is desired, as everywhere upstream."""
    properties = spec_of(device).get("properties")
    wanted: dict[str, str] = {}
    for item in properties if isinstance(properties, list) else []:
        desired = item.get("desired") if isinstance(item, dict) else None
        value = desired.get("value") if isinstance(desired, dict) else None
        name = item.get("name") if isinstance(item, dict) else None
        if isinstance(name, str) and name and isinstance(value, str) and value:
            wanted.setdefault(name, value)
    return wanted
