"""Register maps: a small YAML file that says what a simulated device holds. Its entries use a visitor's own keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from dmi.errors import ConfigError, ConversionError
from dmi.settings import load_settings
from dmi.types import ModelProperty
from dmi.values import Value, parse_value
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.drivers.modbus.settings import ModbusVisitor
from mappers.drivers.modbus.simulator.cells import Cell, CellMotion, image_of, repeated
from mappers.drivers.modbus.simulator.memory import ANY_UNIT
from mappers.drivers.modbus.simulator.scene import Scene
from mappers.drivers.modbus.simulator.waves import Wave
from mappers.sdk.settings import decode_settings

__all__ = ["RegisterMap", "load_map", "scene_of_cells", "scene_of_map"]


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """What a unit answers to function 43."""

    vendor: str = ""
    product: str = ""
    revision: str = ""
    name: str = ""

    def objects(self) -> dict[int, str]:
        texts = {0: self.vendor, 1: self.product, 2: self.revision, 4: self.name}
        return {i: text for i, text in texts.items() if text or (i < 3 and any(texts.values()))}


class Unit(Struct, frozen=True, forbid_unknown_fields=True):
    """One unit. `registers` are entries: a visitor's keys, and those of `Movement` and `value`."""

    registers: list[dict[str, Any]] = []
    identity: Identity = Identity()


class RegisterMap(Struct, frozen=True):
    """The file. `registers` and `identity` on top are of every unit that `units` does not name."""

    units: dict[Annotated[int, Meta(ge=0, le=255)], Unit] = {}
    registers: list[dict[str, Any]] = []
    identity: Identity = Identity()
    every: Annotated[int, Meta(ge=10, le=3_600_000)] = 1000
    """Milliseconds between two moves."""


class Movement(Struct, frozen=True):
    """The keys of an entry that are not a visitor's."""

    wave: Literal["", "sine", "ramp", "random-walk", "counter", "square"] = ""
    min: float | None = None
    max: float | None = None
    period: Annotated[int, Meta(ge=1)] = 60_000
    """Milliseconds."""
    step: float = 1.0
    count: Annotated[int, Meta(ge=1, le=65_536)] = 1
    """How many of them lie side by side."""


_MOVEMENT: Final = frozenset(f.encode_name for f in msgspec.structs.fields(Movement))


def load_map(file: Path) -> RegisterMap:
    """Raises: ConfigError: It cannot be read, or a key or value is wrong; the path names the file and the key."""
    loaded, unknown = load_settings(file, RegisterMap, strict=False)
    for key in unknown:
        raise ConfigError(f"{file}: {key}", "there is no such key")
    return loaded


def scene_of_map(map_: RegisterMap, *, units: Sequence[int] = (), seed: int = 0) -> Scene:
    """What the map describes.

    Args:
        units: Those that hold what the map says on top; none: every unit it does not name.

    Raises:
        ConfigError: An entry is wrong; the path is its own.
    """
    cells = {
        unit: (list(_cells(each.registers, f"units.{unit}.registers")), each.identity.objects())
        for unit, each in map_.units.items()
    }
    if map_.registers:
        common = list(_cells(map_.registers, "registers")), map_.identity.objects()
        for unit in units or (ANY_UNIT,):
            cells.setdefault(unit, common)
    if not cells:
        raise ConfigError("registers", "there are none")
    return scene_of_cells(cells, every_s=map_.every / 1000, seed=seed)


def scene_of_cells(
    cells: Mapping[int, tuple[Sequence[Cell], Mapping[int, str]]], *, every_s: float = 1.0, seed: int = 0
) -> Scene:
    """Unit → its cells and its identity, as a scene.

    Raises:
        ConfigError: Two cells are at the same address, or one cannot hold what it is to.
    """
    made = {unit: image_of(each, identity, seed + unit) for unit, (each, identity) in cells.items()}
    moving = {unit: movers for unit, (_, movers) in made.items() if movers}
    return Scene({unit: image for unit, (image, _) in made.items()}, CellMotion(every_s, moving) if moving else None)


def _cells(entries: Sequence[Mapping[str, Any]], where: str) -> Iterator[Cell]:
    for index, entry in enumerate(entries):
        path = f"{where}[{index}]"
        try:
            yield from _entry(entry, path)
        except ConfigError as error:
            if error.path.startswith(path):
                raise
            raise ConfigError(f"{path}.{error.path}" if error.path else path, error.problem) from None


def _entry(entry: Mapping[str, Any], path: str) -> Iterator[Cell]:
    movement, _ = decode_settings({k: v for k, v in entry.items() if k in _MOVEMENT}, Movement)
    visitor, unknown = decode_settings(
        {k: v for k, v in entry.items() if k not in _MOVEMENT and k != "value"}, ModbusVisitor
    )
    for key in unknown:
        raise ConfigError(key, f"there is no such key: there are a visitor's, value, {', '.join(sorted(_MOVEMENT))}")
    visitor = resolve_visitor(_with_type(visitor), ModelProperty("", "INT"))
    values = entry.get("value", [] if movement.wave else _nothing(visitor))
    listed = values if isinstance(values, list) else [values] * movement.count
    if movement.wave:
        if "value" in entry:
            raise ConfigError("value", f"a {movement.wave} makes its own")
        if visitor.data_type in ("string", "bytes"):
            raise ConfigError("wave", f"a {visitor.data_type} cannot move")
        cell = Cell(path, visitor, wave=_wave(movement, visitor))
        yield from (repeated(cell, i) for i in range(movement.count))
        return
    if isinstance(values, list) and "count" in entry:
        raise ConfigError("count", "says what the list of values says: leave it out")
    for i, value in enumerate(listed):
        yield repeated(Cell(path, visitor, _value(value, visitor)), i)


def _with_type(visitor: ModbusVisitor) -> ModbusVisitor:
    """There is no model to tell the type: a single bit is a boolean, everything else an int."""
    if visitor.data_type:
        return visitor
    single = visitor.limit <= 1 if visitor.is_bits else visitor.bit is not None and visitor.bit_count == 1
    return msgspec.structs.replace(visitor, data_type="boolean" if single else "int")


def _wave(movement: Movement, visitor: ModbusVisitor) -> Wave:
    assert movement.wave  # noqa: S101  # for mypy
    low = movement.min if movement.min is not None else 0.0
    high = movement.max if movement.max is not None else 1.0 if visitor.data_type == "boolean" else max(100.0, low)
    if high < low:
        raise ConfigError("max", f"{high:g} is below min, {low:g}")
    return Wave(movement.wave, low, high, movement.period / 1000, movement.step)


def _nothing(visitor: ModbusVisitor) -> Value:
    return {"string": "", "bytes": ""}.get(visitor.data_type, 0)


def _value(value: Any, visitor: ModbusVisitor) -> Value:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        match visitor.data_type:
            case "string":
                return text
            case "bytes":
                return parse_value(text, "BYTES")
            case "boolean":
                return parse_value(text, "BOOLEAN")
            case _:
                return value if isinstance(value, int | float) else parse_value(text, "DOUBLE")
    except ConversionError as error:
        raise ConfigError("value", str(error)) from None
