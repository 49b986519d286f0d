"""Property values: text on every wire, Python values inside, with the property's declared type between them.

Upstream's rules where they are sound (DMI contract 2.5: `ConvertToString`, `Convert`): integers are decimal int64,
floats plain decimals without exponent, booleans what Go's ParseBool takes. Two differences: `FLOAT` prints the shortest
decimal that is the same 32-bit number (upstream prints 0.1 as 0.10000000149011612), and `BYTES`, which upstream cannot
write at all, is lower-case hexadecimal, because upstream's edge core refuses the signs of base64.
"""

from __future__ import annotations

import math
import struct
from decimal import Decimal, InvalidOperation
from typing import Final, assert_never

from dmi.errors import ConversionError
from dmi.types import ModelProperty, PropertyType

__all__ = ["Value", "check_range", "format_value", "parse_value", "shortest_float32"]

Value = bool | int | float | str | bytes

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def parse_value(text: str, type_: PropertyType) -> Value:
    """Text → value of the declared type: int, float, bool, str or bytes.

    Raises:
        ConversionError: The text is not a value of that type. `STREAM` has no values.
    """
    match type_:
        case "INT":
            return _checked_int64(text)
        case "FLOAT":
            return _to_float32(_finite(text))
        case "DOUBLE":
            return _finite(text)
        case "BOOLEAN":
            if text in _TRUE:
                return True
            if text in _FALSE:
                return False
            raise ConversionError(f"{text!r} is not a BOOLEAN: write true or false")
        case "STRING":
            return text
        case "BYTES":
            try:
                return bytes.fromhex(text)
            except ValueError:
                raise ConversionError(f"{text!r} is not BYTES: write pairs of hexadecimal digits") from None
        case "STREAM":
            raise ConversionError("a STREAM property has no value")
        case _:
            assert_never(type_)


def format_value(value: Value, type_: PropertyType) -> str:
    """Value → text as it is reported.

    Raises:
        ConversionError: The value does not fit the declared type (a fraction for INT, not a number, out of 64 bits).
    """
    match type_:
        case "INT":
            if isinstance(value, float) and not value.is_integer():
                raise ConversionError(f"{value!r} is not a whole number, and the property is INT")
            if isinstance(value, bool | int | float):
                if not INT64_MIN <= (number := int(value)) <= INT64_MAX:
                    shown = number if number.bit_length() < 200 else "a number of that size"
                    raise ConversionError(f"{shown} is outside the 64 bits of an INT")
                return str(number)
        case "FLOAT":
            if isinstance(value, bool | int | float):
                return shortest_float32(_finite(value))
        case "DOUBLE":
            if isinstance(value, bool | int | float):
                return _plain(repr(_finite(value)))
        case "BOOLEAN":
            if isinstance(value, bool) or value in (0, 1):
                return "true" if value else "false"
        case "STRING":
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ConversionError(f"{value!r} is no text that UTF-8 can hold") from None
                return value
            if isinstance(value, bytes):
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    raise ConversionError(
                        f"bytes {value.hex()} are not UTF-8 text, and the property is STRING"
                    ) from None
            return (
                _plain(repr(value))
                if isinstance(value, float)
                else ("true" if value is True else "false" if value is False else str(value))
            )
        case "BYTES":
            if isinstance(value, bytes):
                return value.hex()
        case "STREAM":
            raise ConversionError("a STREAM property has no value")
        case _:
            assert_never(type_)
    raise ConversionError(f"{value!r} is not a value of type {type_}")


def check_range(text: str, property_: ModelProperty) -> None:
    """Whether a value lies between the model's `minimum` and `maximum`, both inclusive; only numbers have a range.

    Raises:
        ConversionError: It does not, or a bound is not a number.
    """
    if property_.type not in ("INT", "FLOAT", "DOUBLE"):
        return
    try:
        number = Decimal(text)
        too_low = bool(property_.minimum.strip()) and number < Decimal(property_.minimum)
        too_high = bool(property_.maximum.strip()) and number > Decimal(property_.maximum)
    except InvalidOperation:  # no number, or NaN, which has no order
        raise ConversionError(
            f"{text!r} cannot be compared with minimum {property_.minimum!r} and maximum {property_.maximum!r}"
        ) from None
    if too_low:
        raise ConversionError(f"{text} is below the minimum {property_.minimum}")
    if too_high:
        raise ConversionError(f"{text} is above the maximum {property_.maximum}")


def shortest_float32(number: float) -> str:
    """The shortest plain decimal that is the same number once rounded to 32 bits: 0.1 stays `0.1`.

    Raises:
        ConversionError: Too large for 32 bits.
    """
    single = _to_float32(number)
    for digits in range(6, 10):
        text = f"{single:.{digits}g}"
        if _to_float32(float(text)) == single:
            return _plain(text)
    return _plain(repr(single))


def _checked_int64(text: str) -> int:
    try:
        if "_" in text:
            raise ValueError
        number = int(text, 10)
    except ValueError:
        raise ConversionError(f"{text[:64]!r} is not an INT: write a decimal whole number") from None
    if not INT64_MIN <= number <= INT64_MAX:
        raise ConversionError(f"{text[:64]} is outside the 64 bits of an INT")
    return number


def _finite(number: str | float) -> float:
    try:
        if isinstance(number, str) and "_" in number:
            raise ValueError
        result = float(number)
    except (ValueError, OverflowError):
        raise ConversionError(f"{str(number)[:64]!r} is not a number") from None
    if not math.isfinite(result):
        raise ConversionError(f"{str(number)[:64]} is not a finite number")
    return result


def _to_float32(number: float) -> float:
    try:
        result: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        raise ConversionError(f"{number!r} is too large for a 32-bit FLOAT: declare the property DOUBLE") from None
    return result


def _plain(text: str) -> str:
    """No exponent, no trailing `.0`: what Go prints with format 'f' and the shortest precision."""
    plain = format(Decimal(text), "f") if "e" in text or "E" in text else text
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain == "-0" else plain
