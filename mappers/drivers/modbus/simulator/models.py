"""A simulated device from manifests: its visitors say where its properties are, its model what they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from dmi.checks import merge_model
from dmi.crd import device_from_crd, model_from_crd
from dmi.errors import ConfigError, ConversionError
from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty
from dmi.values import Value
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.drivers.modbus.settings import ModbusConfig, ModbusVisitor
from mappers.drivers.modbus.simulator.cells import Cell, encode
from mappers.drivers.modbus.simulator.memory import ANY_UNIT
from mappers.drivers.modbus.simulator.registermap import scene_of_cells
from mappers.drivers.modbus.simulator.scene import Scene
from mappers.drivers.modbus.simulator.waves import Wave
from mappers.sdk.settings import decode_settings

__all__ = ["load_manifests", "scene_of_manifests"]

_PROTOCOL: Final = "modbus"
_HIGHS: Final = (100.0, 10.0, 1.0)
"""Upper ends to try where a model names no maximum: the first that the registers hold."""


def load_manifests(files: Sequence[Path]) -> tuple[list[DeviceModel], list[Device]]:
    """The models and devices in YAML files; other objects are passed over.

    Raises:
        ConfigError: A file cannot be read, or an object is wrong; the path names the file.
    """
    models: list[DeviceModel] = []
    devices: list[Device] = []
    for file in files:
        try:
            documents = list(yaml.safe_load_all(file.read_text()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(str(file), f"cannot be read: {error}") from error
        for document in documents:
            kind = document.get("kind") if isinstance(document, Mapping) else None
            try:
                if kind == "DeviceModel":
                    models.append(model_from_crd(_named(document)))
                elif kind == "Device":
                    devices.append(device_from_crd(_named(document)))
            except ConfigError as error:
                raise ConfigError(f"{file}: {error.path}", error.problem) from None
    return models, devices


def scene_of_manifests(
    models: Sequence[DeviceModel], devices: Sequence[Device], *, units: Sequence[int] = (), seed: int = 0
) -> Scene:
    """Units that hold what the manifests say: one for each device, its `slaveID`; without devices, the model's.

    What can be written stands still within its limits, what cannot moves between them.

    Args:
        units: Without devices, those that hold the model's properties; none: every unit.

    Raises:
        ConfigError: There is nothing to simulate, or a visitor is wrong.
    """
    by_id = {model.id: model for model in models}
    cells: dict[int, tuple[list[Cell], dict[int, str]]] = {}
    for device in devices or [_of_model(model) for model in models]:
        model = by_id.get(device.model_id)
        if model is None:
            raise ConfigError(f"{device.id}: spec.deviceModelRef.name", f"model {device.model_id!r} is not given")
        if _PROTOCOL not in (device.protocol or model.protocol or _PROTOCOL):
            continue
        merged = merge_model(device, model)
        targets = [_unit(merged)] if devices else list(units) or [ANY_UNIT]
        made = list(_cells(merged, model))
        identity = {0: "kubetwin", 1: model.name, 2: "1", 4: device.name}
        for unit in targets:
            cells.setdefault(unit, ([], identity))[0].extend(made)
    if not any(each for each, _ in cells.values()):
        raise ConfigError("visitors", "no Modbus property says where it is: give the Device's manifest too")
    return scene_of_cells(cells, seed=seed)


def _named(document: Mapping[str, Any]) -> dict[str, Any]:
    """As the API would have it: kubectl fills in the namespace."""
    metadata = document.get("metadata")
    named = {"namespace": "default", **metadata} if isinstance(metadata, Mapping) else metadata
    return {**document, "metadata": named}


def _of_model(model: DeviceModel) -> Device:
    """A device with all properties that the model says the place of."""
    properties = tuple(DeviceProperty(p.name) for p in model.properties if p.visitor is not None and p.visitor.config)
    return Device(model.namespace, model.name, model=model.name, protocol=model.protocol, properties=properties)


def _unit(device: Device) -> int:
    key = {k.lower(): k for k in device.protocol_config}.get("slaveid")
    given = {key: device.protocol_config[key]} if key is not None else {}
    return decode_settings(given, ModbusConfig)[0].slave_id


def _cells(device: Device, model: DeviceModel) -> Iterator[Cell]:
    for property_ in device.properties:
        declared = model.find(property_.name)
        if declared is None or declared.type == "STREAM":
            continue
        path = f"{device.id}: {property_.name}"
        try:
            visitor, _ = decode_settings(property_.visitor.config, ModbusVisitor)
            yield _cell(path, resolve_visitor(visitor, declared), declared)
        except ConfigError as error:
            raise ConfigError(f"{path}: visitors.configData.{error.path}", error.problem) from None


def _cell(path: str, visitor: ModbusVisitor, model: ModelProperty) -> Cell:
    if visitor.data_type in ("string", "bytes"):
        text = model.name.encode()[: 2 * visitor.limit]
        return Cell(path, visitor, text if visitor.data_type == "bytes" else text.decode(errors="ignore"))
    if visitor.data_type == "boolean":
        return (
            Cell(path, visitor, False) if _set(visitor, model) else Cell(path, visitor, wave=Wave("square", 0, 1, 20))
        )
    low, high = (0.0, 1.0) if model.type == "BOOLEAN" else _range(visitor, model)
    if _set(visitor, model):
        return Cell(path, visitor, low)
    if model.type == "BOOLEAN":
        return Cell(path, visitor, wave=Wave("square", low, high, 20))
    if model.type == "INT":  # whole numbers, whatever the registers could hold
        return Cell(path, visitor, wave=Wave("counter", low, high, step=max(1, round((high - low) / 20))))
    return Cell(path, visitor, wave=Wave("sine", low, high))


def _set(visitor: ModbusVisitor, model: ModelProperty) -> bool:
    """It is a set-point: the device does not move it."""
    return model.writable and visitor.is_writable


def _range(visitor: ModbusVisitor, model: ModelProperty) -> tuple[float, float]:
    low = _bound(model.minimum)
    high = _bound(model.maximum)
    lows = [b for b in (low, 0.0, float(visitor.bias)) if b is not None]
    chosen = next((b for b in lows if _fits(b, visitor)), lows[-1])
    highs = [high] if high is not None else []
    highs += [chosen + h for h in _HIGHS] + [chosen]
    return chosen, next((h for h in highs if h >= chosen and _fits(h, visitor)), chosen)


def _bound(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return None


def _fits(value: Value, visitor: ModbusVisitor) -> bool:
    try:
        encode(value, visitor)
    except ConversionError:
        return False
    return True
