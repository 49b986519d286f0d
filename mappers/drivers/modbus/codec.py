"""Registers and bits ⇄ property values. Pure.

Reading a register property: put the bytes in order (`isRegisterSwap` reverses the registers, `isSwap` the bytes in
each, or `byteOrder` says it all), take them as `dataType`, multiply by `scale`, add `bias`. Writing is the exact
inverse. Numbers are decimal in between, so 3 × 0.1 is 0.3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Final

from dmi.types import PropertyType
from dmi.values import Value, shortest_float32
from mappers.drivers.modbus.checks import MAX_WRITE_REGISTERS
from mappers.drivers.modbus.settings import ModbusVisitor
from mappers.sdk import ConversionError

__all__ = [
    "decode_bits",
    "decode_registers",
    "encode_bits",
    "encode_mask",
    "encode_registers",
    "merge_bits",
]

_EXACT: Final = Context(prec=100)
"""64-bit numbers, scales and biases of 30 digits, without rounding before the rounding meant."""
_LARGEST: Final = 400
"""Decimal digits before the point that any number here may have: a DOUBLE has 309."""
_SIGNED: Final = frozenset({"int16", "int32", "int64"})


def decode_registers(words: Sequence[int], visitor: ModbusVisitor, type_: PropertyType) -> Value:
    """Registers in the order they were read → value, in the unit of the model.

    `int` is unsigned; for a property of type INT a fraction left by the scale is cut off, as upstream does. A `boolean`
    is true when its bit is set, or without `bit` when any is.

    Raises:
        ConversionError: Not UTF-8, no BCD, NaN, infinite, or outside the 64 bits of an INT.
    """
    data = _to_bytes(words, visitor)
    match visitor.data_type:
        case "boolean":
            if visitor.bit is not None:
                return bool(int.from_bytes(data, "big") >> visitor.bit & 1)
            return any(data)
        case "string":
            return _text(data)
        case "bytes":
            return data
        case "float":
            return _scaled_float(struct.unpack(">f", data)[0], data, visitor)
        case "double":
            return _scaled_float(struct.unpack(">d", data)[0], data, visitor)
        case "bcd":
            return _scaled(_bcd(data), visitor, type_)
        case "int" if visitor.bit is not None:
            raw = int.from_bytes(data, "big") >> visitor.bit & (1 << visitor.bit_count) - 1
            return _scaled(raw, visitor, type_)
        case "int" | "int16" | "int32" | "int64":
            return _scaled(int.from_bytes(data, "big", signed=visitor.data_type in _SIGNED), visitor, type_)
        case _:
            raise AssertionError(f"dataType {visitor.data_type!r} was not resolved")


def encode_registers(value: Value, visitor: ModbusVisitor) -> list[int]:
    """Value → registers in the order they are written; of a property with `bit`, its register with all other bits 0.

    Raises:
        ConversionError: The registers cannot hold it: too large, negative, too long, or of another kind.
    """
    size = 2 * visitor.limit
    if visitor.limit > MAX_WRITE_REGISTERS:
        raise ConversionError(f"{visitor.limit} registers cannot be written at once: up to {MAX_WRITE_REGISTERS} can")
    match visitor.data_type:
        case "boolean":
            data = (_truth(value) << (visitor.bit or 0)).to_bytes(size, "big")
        case "string":
            if not isinstance(value, str):
                raise ConversionError(f"{value!r} is not a text")
            data = _padded(_utf8(value), size)
        case "bytes":
            if not isinstance(value, bytes):
                raise ConversionError(f"{value!r} is not bytes")
            data = _padded(value, size)
        case "float" | "double":
            data = _packed_float(value, visitor)
        case "bcd":
            digits = 2 * size
            raw = _raw_int(value, visitor, 0, 10**digits - 1, f"{digits} BCD digits")
            data = bytes.fromhex(f"{raw:0{digits}d}")
        case "int" if visitor.bit is not None:
            data = (_raw_unsigned(value, visitor, visitor.bit_count) << visitor.bit).to_bytes(size, "big")
        case "int":
            data = _raw_unsigned(value, visitor, 8 * size).to_bytes(size, "big")
        case "int16" | "int32" | "int64":
            half = 1 << (8 * size - 1)
            raw = _raw_int(value, visitor, -half, half - 1, f"{8 * size} signed bits")
            data = raw.to_bytes(size, "big", signed=True)
        case _:
            raise AssertionError(f"dataType {visitor.data_type!r} was not resolved")
    return _to_words(data, visitor)


def encode_mask(value: Value, visitor: ModbusVisitor) -> tuple[int, int]:
    """Value of a property with `bit` → (AND mask, OR mask) of a mask write.

    The device makes of its register (register AND and) OR (or AND NOT and) (V1.1b3, 6.16), so what is 1 in the AND mask
    stays as it is.

    Raises:
        ConversionError: Those bits cannot hold it.
    """
    (wanted,) = encode_registers(value, visitor)
    return 0xFFFF & ~_mask(visitor), wanted


def merge_bits(word: int, value: Value, visitor: ModbusVisitor) -> int:
    """A register as it was read, with the bits of a property with `bit` exchanged for its value.

    Raises:
        ConversionError: Those bits cannot hold it.
    """
    keep, wanted = encode_mask(value, visitor)
    return word & keep | wanted


def decode_bits(bits: Sequence[bool], visitor: ModbusVisitor, type_: PropertyType) -> Value:
    """Coils or discrete inputs → value. Of several bits the first is the lowest.

    Raises:
        ConversionError: Outside the 64 bits of an INT.
    """
    if visitor.data_type == "boolean":
        return bool(bits[0])
    return _scaled(sum(1 << i for i, bit in enumerate(bits) if bit), visitor, type_)


def encode_bits(value: Value, visitor: ModbusVisitor) -> list[bool]:
    """Value → coils, the lowest bit first.

    Raises:
        ConversionError: That many bits cannot hold it.
    """
    if visitor.data_type == "boolean":
        return [_truth(value)]
    raw = _raw_unsigned(value, visitor, visitor.limit)
    return [bool(raw >> i & 1) for i in range(visitor.limit)]


def _mask(visitor: ModbusVisitor) -> int:
    """The property's bits in its register, as the register travels."""
    bits = ((1 << visitor.bit_count) - 1) << (visitor.bit or 0)
    return _to_words(bits.to_bytes(2, "big"), visitor)[0]


def _to_bytes(words: Sequence[int], visitor: ModbusVisitor) -> bytes:
    """Registers as they travel → bytes, the most significant first."""
    if visitor.byte_order:
        wire = struct.pack(f">{len(words)}H", *words)
        return bytes(wire[visitor.byte_order.index(letter)] for letter in sorted(visitor.byte_order))
    ordered = words[::-1] if visitor.is_register_swap else words
    return struct.pack(f"{'<' if visitor.is_swap else '>'}{len(ordered)}H", *ordered)


def _to_words(data: bytes, visitor: ModbusVisitor) -> list[int]:
    if visitor.byte_order:
        wire = bytes(data[ord(letter) - ord("A")] for letter in visitor.byte_order)
        return list(struct.unpack(f">{len(wire) // 2}H", wire))
    words = list(struct.unpack(f"{'<' if visitor.is_swap else '>'}{len(data) // 2}H", data))
    return words[::-1] if visitor.is_register_swap else words


def _scaled(raw: int, visitor: ModbusVisitor, type_: PropertyType) -> int | float:
    if visitor.scale == 1 and not visitor.bias:
        number: int | float = raw
    else:
        result = _EXACT.add(_EXACT.multiply(Decimal(raw), visitor.scale), visitor.bias)
        number = int(result) if type_ == "INT" or result == result.to_integral_value() else float(result)
    if type_ == "INT" and not -(2**63) <= number < 2**63:
        raise ConversionError(f"the registers hold {raw}, which is outside the 64 bits of an INT")
    return number


def _scaled_float(number: float, data: bytes, visitor: ModbusVisitor) -> float:
    if not math.isfinite(number):
        raise ConversionError(f"the registers hold {data.hex()}, which is {number}, not a number")
    if visitor.scale == 1 and not visitor.bias:
        return number
    exact = Decimal(shortest_float32(number) if visitor.data_type == "float" else repr(number))
    scaled = float(_EXACT.add(_EXACT.multiply(exact, visitor.scale), visitor.bias))
    if not math.isfinite(scaled):
        raise ConversionError(f"the registers hold {number!r}, which is too large once it is scaled")
    return scaled


def _bcd(data: bytes) -> int:
    text = data.hex()
    if not text.isdecimal():
        raise ConversionError(f"the registers hold {text}, which is not BCD: a digit is above 9")
    return int(text)


def _raw(value: Value, visitor: ModbusVisitor) -> Decimal:
    """(value - bias) / scale, unrounded."""
    if isinstance(value, bytes):
        raise ConversionError("bytes do not fit a register that holds a number")
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ConversionError(f"{str(value)[:64]!r} is not a number") from None
    if not number.is_finite():
        raise ConversionError(f"{value!r} is not a finite number")
    if abs(number.adjusted()) > _LARGEST:
        raise ConversionError(f"{str(value)[:64]} is out of reach")
    return _EXACT.divide(_EXACT.subtract(number, visitor.bias), visitor.scale)


def _raw_unsigned(value: Value, visitor: ModbusVisitor, bits: int) -> int:
    return _raw_int(value, visitor, 0, (1 << bits) - 1, f"{bits} unsigned bits")


def _raw_int(value: Value, visitor: ModbusVisitor, least: int, most: int, room: str) -> int:
    raw = int(_raw(value, visitor).to_integral_value(ROUND_HALF_EVEN))
    if not least <= raw <= most:
        scaled = visitor.scale != 1 or visitor.bias
        shown = f"{value!r} is {str(raw)[:40]} in the device's scale, which" if scaled else f"{value!r}"
        raise ConversionError(f"{shown} does not fit {room}: {least} to {most}")
    return raw


def _packed_float(value: Value, visitor: ModbusVisitor) -> bytes:
    number, bits = float(_raw(value, visitor)), 32 if visitor.data_type == "float" else 64
    try:
        if math.isfinite(number):
            return struct.pack(">f" if bits == 32 else ">d", number)
    except OverflowError:
        pass
    raise ConversionError(f"{str(value)[:64]} is too large for a {bits}-bit float")


def _truth(value: Value) -> bool:
    if value in (0, 1):  # True and False included
        return bool(value)
    raise ConversionError(f"{value!r} is not true or false")


def _padded(data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise ConversionError(f"{len(data)} bytes do not fit the {size} of the property's registers")
    return data.ljust(size, b"\0")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConversionError(f"{text[:64]!r} has no UTF-8 form") from None


def _text(data: bytes) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ConversionError(f"the registers hold {data.hex()}, which is not UTF-8 text") from None
