"""Registers and bits ⇄ property values. Pure.

Reading a register property: reverse the registers (`isRegisterSwap`), swap the bytes in each (`isSwap`), read the
result big-endian, multiply by `scale`. Writing is the exact inverse. Products are decimal, so 3 × 0.1 is 0.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from typing import Final

from dmi.types import PropertyType
from dmi.values import Value, shortest_float32
from mappers.drivers.modbus.settings import ModbusVisitor
from mappers.sdk import ConversionError

__all__ = ["decode_bits", "decode_registers", "encode_bits", "encode_registers"]

MAX_WRITE_REGISTERS: Final = 123
"""Registers in one write (MODBUS Application Protocol V1.1b3, 6.12)."""


def decode_registers(words: Sequence[int], visitor: ModbusVisitor, type_: PropertyType) -> Value:
    """Registers in the order they were read → value, in the unit of the model.

    `int` is unsigned; for a property of type INT a fraction left by the scale is cut off, as upstream does. A `boolean`
    is true when any bit of its register is set.

    Raises:
        ConversionError: Not UTF-8, or not a number.
    """
    data = _to_bytes(words, visitor)
    match visitor.data_type:
        case "int":
            return _scaled(Decimal(int.from_bytes(data, "big")), visitor.scale, type_)
        case "float":
            number: float = struct.unpack(">f", data)[0]
            return _scaled_float(number, visitor.scale, single=True)
        case "double":
            number = struct.unpack(">d", data)[0]
            return _scaled_float(number, visitor.scale, single=False)
        case "boolean":
            return any(data)
        case "string":
            return _text(data)
        case "bytes":
            return data
        case _:
            raise AssertionError(f"dataType {visitor.data_type!r} was not resolved")


def encode_registers(value: Value, visitor: ModbusVisitor) -> list[int]:
    """Value → registers in the order they are written.

    Raises:
        ConversionError: The registers cannot hold it: too large, negative, too long, or of another kind.
    """
    size = 2 * visitor.limit
    if visitor.limit > MAX_WRITE_REGISTERS:
        raise ConversionError(f"{visitor.limit} registers cannot be written at once: up to {MAX_WRITE_REGISTERS} can")
    match visitor.data_type:
        case "int":
            data = _raw_int(value, visitor.scale, 8 * size).to_bytes(size, "big")
        case "float" | "double":
            number = float(_divided(value, visitor.scale))
            try:
                data = struct.pack(">f" if visitor.data_type == "float" else ">d", number)
            except OverflowError:
                raise ConversionError(f"{value!r} is too large for a 32-bit float") from None
        case "boolean":
            data = (1 if _truth(value) else 0).to_bytes(size, "big")
        case "string":
            if not isinstance(value, str):
                raise ConversionError(f"{value!r} is not a text")
            data = _padded(value.encode(), size)
        case "bytes":
            if not isinstance(value, bytes):
                raise ConversionError(f"{value!r} is not bytes")
            data = _padded(value, size)
        case _:
            raise AssertionError(f"dataType {visitor.data_type!r} was not resolved")
    return _to_words(data, visitor)


def decode_bits(bits: Sequence[bool], visitor: ModbusVisitor, type_: PropertyType) -> Value:
    """Coils or discrete inputs → value. Of several bits the first is the lowest."""
    if visitor.data_type == "boolean":
        return bool(bits[0])
    return _scaled(Decimal(sum(1 << i for i, bit in enumerate(bits) if bit)), visitor.scale, type_)


def encode_bits(value: Value, visitor: ModbusVisitor) -> list[bool]:
    """Value → coils, the lowest bit first.

    Raises:
        ConversionError: That many bits cannot hold it.
    """
    if visitor.data_type == "boolean":
        return [_truth(value)]
    raw = _raw_int(value, visitor.scale, visitor.limit)
    return [bool(raw >> i & 1) for i in range(visitor.limit)]


def _to_bytes(words: Sequence[int], visitor: ModbusVisitor) -> bytes:
    ordered = reversed(words) if visitor.is_register_swap else words
    return b"".join(word.to_bytes(2, "little" if visitor.is_swap else "big") for word in ordered)


def _to_words(data: bytes, visitor: ModbusVisitor) -> list[int]:
    words = [int.from_bytes(data[i : i + 2], "little" if visitor.is_swap else "big") for i in range(0, len(data), 2)]
    return words[::-1] if visitor.is_register_swap else words


def _scaled(raw: Decimal, scale: Decimal, type_: PropertyType) -> Value:
    product = raw * scale
    if type_ == "INT" or product == product.to_integral_value():
        return int(product)
    return float(product)


def _scaled_float(number: float, scale: Decimal, *, single: bool) -> float:
    if scale == 1 or number - number != 0:  # infinities and NaN go as they are, the value's type refuses them
        return number
    return float(Decimal(shortest_float32(number) if single else repr(number)) * scale)


def _divided(value: Value, scale: Decimal) -> Decimal:
    if isinstance(value, bytes):
        raise ConversionError("bytes do not fit a register that holds a number")
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ConversionError(f"{value!r} is not a number") from None
    if not number.is_finite():
        raise ConversionError(f"{value!r} is not a finite number")
    return number / scale


def _raw_int(value: Value, scale: Decimal, bits: int) -> int:
    with localcontext() as context:
        context.prec = 60  # 64-bit numbers over any sensible scale, without rounding before the rounding meant
        raw = int(_divided(value, scale).to_integral_value(ROUND_HALF_EVEN))
    if not 0 <= raw < 1 << bits:
        shown = f"{value!r} is {raw} in the device's scale, which" if scale != 1 else repr(value)
        raise ConversionError(f"{shown} does not fit {bits} unsigned bits: 0 to {(1 << bits) - 1}")
    return raw


def _truth(value: Value) -> bool:
    if value in (0, 1):  # True and False included
        return bool(value)
    raise ConversionError(f"{value!r} is not true or false")


def _padded(data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise ConversionError(f"{len(data)} bytes do not fit the {size} of the property's registers")
    return data.ljust(size, b"\0")


def _text(data: bytes) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ConversionError(f"the registers hold {data.hex()}, which is not UTF-8 text") from None
