"""What the structs of `settings` alone cannot refuse, and what follows from a model. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final, assert_never

import msgspec

from dmi.types import ModelProperty, PropertyType
from mappers.drivers.modbus.settings import (
    ADDRESSES,
    DEFAULT_TIMEOUT_MS,
    MAX_REGISTERS,
    SERIAL,
    DataType,
    ModbusConfig,
    ModbusVisitor,
)
from mappers.sdk import ConfigError

__all__ = ["MAX_READ_WRITE_REGISTERS", "MAX_WRITE_BITS", "MAX_WRITE_REGISTERS", "check_config", "config_warnings",
           "resolve_visitor"]  # fmt: skip

MIN_TIMEOUT_MS: Final = 50
MAX_WRITE_REGISTERS: Final = 123
"""Registers in one write (MODBUS Application Protocol V1.1b3, 6.12)."""
MAX_READ_WRITE_REGISTERS: Final = 121
"""Registers written by one read/write (V1.1b3, 6.17)."""
MAX_WRITE_BITS: Final = 1968
"""Coils in one write (V1.1b3, 6.11)."""

_LARGEST: Final = Decimal("1e24")
_SMALLEST: Final = Decimal("1e-24")
"""Outside these a scale is a slip, and numbers would grow to megabytes."""
_DIGITS: Final = 30

_SERIAL_KEYS: Final = ("serial_name", "baud_rate", "data_bits", "stop_bits", "parity", "rs485_enabled")
_NETWORK_KEYS: Final = ("ip", "port", "share_connection")
_TLS_KEYS: Final = ("ca_file", "cert_file", "key_file", "server_name")
_CANONICAL: Final[dict[DataType, DataType]] = {
    "bool": "boolean",
    "float32": "float",
    "float64": "double",
    "uint16": "int",
    "uint32": "int",
    "uint64": "int",
}
_WIDTHS: Final[dict[DataType, tuple[int, ...]]] = {
    "int": (1, 2, 4),
    "uint16": (1,),
    "uint32": (2,),
    "uint64": (4,),
    "int16": (1,),
    "int32": (2,),
    "int64": (4,),
    "bcd": (1, 2, 4),
    "float": (2,),
    "float32": (2,),
    "double": (4,),
    "float64": (4,),
    "boolean": (1,),
    "bool": (1,),
}
"""Registers each type can take, the first one by default; the others take any number, which must be said."""


def check_config(config: ModbusConfig) -> ModbusConfig:
    """Refuse what cannot work in the device's mode; fill in mode, port, parity (`N`, `E` or `O`) and timeout.

    Raises:
        ConfigError: `path` is the key.
    """
    mode = config.mode
    if mode in SERIAL:
        if not config.serial_name.strip():
            raise ConfigError("serialName", f"is missing: {mode} needs the serial port, such as /dev/ttyUSB0")
        least = 8 if mode == "RTU" else 7
        if config.data_bits < least:
            takes = "8" if mode == "RTU" else "7 or 8"
            raise ConfigError("dataBits", f"{config.data_bits} is not possible: {mode} takes {takes}")
    else:
        if not config.ip.strip():
            raise ConfigError("ip", f"is missing: {mode} needs the device's address")
        config = msgspec.structs.replace(config, port=config.endpoint[1])
    if mode == "TLS" and bool(config.cert_file) != bool(config.key_file):
        missing, present = ("keyFile", "certFile") if config.cert_file else ("certFile", "keyFile")
        raise ConfigError(missing, f"is missing: {present} needs it beside it")
    return msgspec.structs.replace(
        config,
        communicate_mode=mode,
        ip=config.ip.strip(),
        serial_name=config.serial_name.strip(),
        parity={"e": "E", "o": "O"}.get(config.parity[:1].lower(), "N"),
        timeout=config.timeout if config.timeout >= MIN_TIMEOUT_MS else DEFAULT_TIMEOUT_MS,
    )


def config_warnings(config: ModbusConfig) -> Iterator[tuple[str, str]]:
    """(key, what is odd about it) of a config as it was declared, for one that `check_config` accepts."""
    mode = config.mode
    if config.timeout < MIN_TIMEOUT_MS:
        yield (
            "timeout",
            f"{config.timeout} is less than {MIN_TIMEOUT_MS} milliseconds: {DEFAULT_TIMEOUT_MS} is used",
        )
    if mode in SERIAL and config.slave_id > 247:
        yield "slaveID", f"{config.slave_id} is reserved on a serial line: devices have 1 to 247"
    unused = {*(_NETWORK_KEYS if mode in SERIAL else _SERIAL_KEYS), *(() if mode == "TLS" else _TLS_KEYS)}
    for field in msgspec.structs.fields(ModbusConfig):
        if field.name in unused and getattr(config, field.name) not in (field.default, ""):
            yield field.encode_name, f"is not used in mode {mode}"


def resolve_visitor(visitor: ModbusVisitor, model: ModelProperty) -> ModbusVisitor:
    """Fill in `dataType`, `limit` and `scale`, and refuse registers that cannot hold the property.

    Afterwards `dataType` is one of `int` (unsigned), `int16`, `int32`, `int64`, `bcd`, `float`, `double`, `string`,
    `boolean` and `bytes`.

    Raises:
        ConfigError: `path` is the key.
    """
    declared = visitor.data_type or _suggested(visitor, model.type)
    if declared in ("float", "double") and visitor.limit == 1 and not visitor.is_bits:
        declared = "int"  # upstream's samples say so of a whole number times a scale (DMI contract 6.1)
    visitor = msgspec.structs.replace(
        visitor,
        data_type=declared,
        limit=visitor.limit or _default_limit(visitor, declared),
        scale=visitor.scale if visitor.scale else Decimal(1),
    )
    _check_numbers(visitor)
    if visitor.is_bits:
        _check_bits(visitor)
    else:
        _check_registers(visitor)
    if visitor.end > ADDRESSES:
        raise ConfigError(
            "offset", f"{visitor.offset} and {visitor.limit} more go past the last address, {ADDRESSES - 1}"
        )
    _check_write_function(visitor)
    return msgspec.structs.replace(visitor, data_type=_CANONICAL.get(declared, declared))


def _suggested(visitor: ModbusVisitor, type_: PropertyType) -> DataType:
    match type_:
        case "INT":
            return "int"
        case "FLOAT" | "DOUBLE":
            if visitor.is_bits or visitor.bit is not None:
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


def _default_limit(visitor: ModbusVisitor, data_type: DataType) -> int:
    if data_type in ("string", "bytes"):
        raise ConfigError("limit", f"is missing: say how many registers the {data_type} takes")
    if visitor.is_bits:
        return 1
    if data_type == "int" and len(visitor.byte_order) in (4, 8):
        return len(visitor.byte_order) // 2
    return _WIDTHS[data_type][0]


def _check_numbers(visitor: ModbusVisitor) -> None:
    for key, number in (("scale", visitor.scale), ("bias", visitor.bias)):
        if not number.is_finite():
            raise ConfigError(key, f"{number} is not a finite number")
        if number and not (_SMALLEST <= abs(number) <= _LARGEST and len(number.as_tuple().digits) <= _DIGITS):
            raise ConfigError(key, f"{str(number)[:40]} is out of reach: up to {_LARGEST:e}, down to {_SMALLEST:e}")
        neutral = 1 if key == "scale" else 0
        if number != neutral and visitor.data_type in ("string", "bytes", "boolean", "bool"):
            raise ConfigError(key, f"a {visitor.data_type} has none")


def _check_bits(visitor: ModbusVisitor) -> None:
    if visitor.data_type not in ("boolean", "bool", "int"):
        raise ConfigError(
            "dataType", f"a {visitor.data_type} does not fit a {visitor.register}: bits hold boolean or int"
        )
    most = 64 if visitor.data_type == "int" else 1
    if visitor.limit > most:
        raise ConfigError("limit", f"{visitor.limit} bits are too many: {visitor.data_type} takes up to {most}")
    if visitor.bit is not None:
        raise ConfigError("bit", f"a {visitor.register} is a bit already: offset says which")
    if visitor.byte_order:
        raise ConfigError("byteOrder", f"a {visitor.register} has no bytes to order")


def _check_registers(visitor: ModbusVisitor) -> None:
    allowed = _WIDTHS.get(visitor.data_type)
    if allowed is not None and visitor.limit not in allowed:
        takes = " or ".join(str(n) for n in allowed)
        raise ConfigError("limit", f"{visitor.limit} is not possible, {visitor.data_type} takes {takes} registers")
    if visitor.limit > MAX_REGISTERS:
        raise ConfigError("limit", f"{visitor.limit} registers are too many: one read takes up to {MAX_REGISTERS}")
    _check_order(visitor)
    if visitor.bit is None:
        if visitor.bit_count != 1:
            raise ConfigError("bit", "is missing: bitCount counts from it")
        return
    if visitor.data_type not in ("boolean", "bool", "int", "uint16") or visitor.limit != 1:
        raise ConfigError("dataType", "bits of a register are a boolean, or an int of one register")
    if visitor.bit_count > 1 and visitor.data_type in ("boolean", "bool"):
        raise ConfigError("bitCount", f"{visitor.bit_count} bits are no boolean: say dataType int")
    if visitor.bit + visitor.bit_count > 16:
        raise ConfigError("bitCount", f"{visitor.bit_count} bits from bit {visitor.bit} go past bit 15 of the register")


def _check_order(visitor: ModbusVisitor) -> None:
    if not visitor.byte_order:
        return
    for key, flag in (("isSwap", visitor.is_swap), ("isRegisterSwap", visitor.is_register_swap)):
        if flag:
            raise ConfigError(key, "says what byteOrder says too: keep one of them")
    if visitor.data_type in ("string", "bytes"):
        raise ConfigError("byteOrder", f"is for numbers: for a {visitor.data_type} there are isSwap and isRegisterSwap")
    if len(visitor.byte_order) != 2 * visitor.limit:
        raise ConfigError(
            "byteOrder",
            f"{visitor.byte_order} orders {len(visitor.byte_order)} bytes, the property has {2 * visitor.limit}",
        )


def _check_write_function(visitor: ModbusVisitor) -> None:
    wanted = visitor.write_function
    if wanted == "auto":
        return
    if not visitor.is_writable:
        raise ConfigError("writeFunction", f"a {visitor.register} cannot be written")
    if wanted == "mask" and visitor.bit is None:
        raise ConfigError("writeFunction", "mask writes a bit of a HoldingRegister: say which with the key bit")
    if wanted == "readWrite" and (visitor.is_bits or visitor.bit is not None):
        raise ConfigError("writeFunction", "readWrite writes whole HoldingRegisters")
    if wanted == "readWrite" and visitor.limit > MAX_READ_WRITE_REGISTERS:
        raise ConfigError(
            "writeFunction", f"readWrite takes up to {MAX_READ_WRITE_REGISTERS} registers, this has {visitor.limit}"
        )
    if wanted == "single" and visitor.limit > 1:
        raise ConfigError("writeFunction", f"single writes one register or coil, the property has {visitor.limit}")
