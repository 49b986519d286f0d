"""What a manifest says about a Modbus device and its registers, with upstream's keys (DMI contract 6.1).

Addresses are PDU addresses and count from 0: register 40001 is `HoldingRegister` with `offset: 0`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal, assert_never

import msgspec
from msgspec import Meta, Struct

from dmi.types import ModelProperty, PropertyType
from mappers.sdk import ConfigError

__all__ = [
    "BITS",
    "MAX_BITS",
    "MAX_REGISTERS",
    "READ_CODES",
    "DataType",
    "ModbusConfig",
    "ModbusVisitor",
    "Register",
    "resolve_visitor",
]

Register = Literal["CoilRegister", "DiscreteInputRegister", "InputRegister", "HoldingRegister"]
DataType = Literal["", "int", "float", "double", "string", "boolean", "bool", "bytes"]

MAX_REGISTERS: Final = 125
"""Registers in one read (MODBUS Application Protocol V1.1b3, 6.3)."""
MAX_BITS: Final = 2000
"""Coils or discrete inputs in one read (V1.1b3, 6.1)."""
ADDRESSES: Final = 65_536
BITS: Final[frozenset[Register]] = frozenset({"CoilRegister", "DiscreteInputRegister"})
READ_CODES: Final[dict[Register, int]] = {
    "CoilRegister": 1,
    "DiscreteInputRegister": 2,
    "HoldingRegister": 3,
    "InputRegister": 4,
}
"""Function codes that read each kind."""


class ModbusConfig(Struct, frozen=True):
    """How to reach a device: `spec.protocol.configData`."""

    ip: str
    """Address or host name."""
    communicate_mode: str = msgspec.field(default="TCP", name="communicateMode")
    port: Annotated[int, Meta(ge=1, le=65535)] = 502
    slave_id: Annotated[int, Meta(ge=0, le=255)] = msgspec.field(default=0, name="slaveID")
    """The unit. 0, upstream's default, is answered by most devices that are no gateway."""
    timeout: Annotated[int, Meta(ge=50, le=60_000)] = 2000
    """Milliseconds, like all durations of a manifest, for a connect and for each request."""


class ModbusVisitor(Struct, frozen=True):
    """Where one property lives on the device: `spec.properties[].visitors.configData`."""

    register: Register
    offset: Annotated[int, Meta(ge=0, le=ADDRESSES - 1)]
    """PDU address, from 0."""
    limit: Annotated[int, Meta(ge=0, le=MAX_BITS)] = 0
    """Registers or bits the property takes; 0: as many as its type needs."""
    scale: Decimal = Decimal(1)
    """Reported = raw × scale, written raw = value / scale; 0 counts as 1, as manifests in use have it."""
    is_swap: bool = msgspec.field(default=False, name="isSwap")
    """Swap the two bytes of each register."""
    is_register_swap: bool = msgspec.field(default=False, name="isRegisterSwap")
    """Reverse the order of the registers."""
    data_type: DataType = msgspec.field(default="", name="dataType")
    """What the registers hold; empty: what the model's type and `limit` suggest. `int` is unsigned, as upstream."""

    @property
    def is_bits(self) -> bool:
        return self.register in BITS

    @property
    def is_writable(self) -> bool:
        return self.register in ("CoilRegister", "HoldingRegister")

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.offset + self.limit


def resolve_visitor(visitor: ModbusVisitor, model: ModelProperty) -> ModbusVisitor:
    """Fill in `dataType`, `limit` and `scale`, and refuse registers that cannot hold the property.

    Raises:
        ConfigError: `path` is the key.
    """
    if not visitor.scale.is_finite():
        raise ConfigError("scale", f"{visitor.scale} is not a finite number")
    data_type = _data_type(visitor, model.type)
    limit = visitor.limit or _default_limit(data_type)
    visitor = msgspec.structs.replace(
        visitor, data_type=data_type, limit=limit, scale=visitor.scale if visitor.scale else Decimal(1)
    )
    if visitor.is_bits:
        _check_bits(visitor)
    else:
        _check_registers(visitor)
    if visitor.end > ADDRESSES:
        raise ConfigError("offset", f"{visitor.offset} and {limit} more go past the last address, {ADDRESSES - 1}")
    return visitor


def _data_type(visitor: ModbusVisitor, type_: PropertyType) -> DataType:
    if visitor.data_type == "bool":
        return "boolean"
    if visitor.data_type:
        return visitor.data_type
    match type_:
        case "INT":
            return "int"
        case "FLOAT" | "DOUBLE":
            if visitor.is_bits:
                return "int"
            by_width: dict[int, DataType] = {
                0: "float" if type_ == "FLOAT" else "double",
                1: "int",
                2: "float",
                4: "double",
            }
            return by_width.get(visitor.limit, by_width[0])
        case "BOOLEAN":
            return "boolean"
        case "STRING":
            return "string"
        case "BYTES":
            return "bytes"
        case "STREAM":
            raise ConfigError("", "a STREAM has no registers")
        case _:
            assert_never(type_)


def _default_limit(data_type: DataType) -> int:
    if data_type in ("string", "bytes"):
        raise ConfigError("limit", f"is missing: say how many registers the {data_type} takes")
    return {"float": 2, "double": 4}.get(data_type, 1)


def _check_bits(visitor: ModbusVisitor) -> None:
    if visitor.data_type not in ("boolean", "int"):
        raise ConfigError(
            "dataType", f"a {visitor.data_type} does not fit a {visitor.register}: bits hold boolean or int"
        )
    most = 1 if visitor.data_type == "boolean" else 64
    if visitor.limit > most:
        raise ConfigError("limit", f"{visitor.limit} bits are too many: {visitor.data_type} takes up to {most}")
    if visitor.data_type == "boolean" and visitor.scale != 1:
        raise ConfigError("scale", "a boolean has none")


def _check_registers(visitor: ModbusVisitor) -> None:
    widths: dict[DataType, tuple[int, ...]] = {"int": (1, 2, 4), "float": (2,), "double": (4,), "boolean": (1,)}
    allowed = widths.get(visitor.data_type)
    if allowed is not None and visitor.limit not in allowed:
        takes = " or ".join(str(n) for n in allowed)
        hint = ": a whole number times a scale is dataType int" if visitor.limit == 1 else ""
        raise ConfigError(
            "limit", f"{visitor.limit} is not possible, {visitor.data_type} takes {takes} registers{hint}"
        )
    if visitor.limit > MAX_REGISTERS:
        raise ConfigError("limit", f"{visitor.limit} registers are too many: one read takes up to {MAX_REGISTERS}")
    if visitor.data_type in ("string", "bytes", "boolean") and visitor.scale != 1:
        raise ConfigError("scale", f"a {visitor.data_type} has none")
