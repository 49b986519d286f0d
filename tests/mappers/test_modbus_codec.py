from __future__ import annotations

import contextlib
import math
import struct
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.types import ModelProperty, PropertyType
from dmi.values import format_value
from mappers.drivers.modbus.codec import decode_bits, decode_registers, encode_bits, encode_registers
from mappers.drivers.modbus.settings import ModbusVisitor, resolve_visitor
from mappers.sdk import ConversionError

SCALES = st.sampled_from([Decimal(s) for s in ("1", "0.1", "0.01", "0.001", "10", "0.5", "2.5")])


def visitor(limit: int, data_type: str, **rest: Any) -> ModbusVisitor:
    raw = ModbusVisitor("HoldingRegister", 0, limit=limit, data_type=data_type, **rest)  # type: ignore[arg-type]
    return resolve_visitor(raw, ModelProperty("p", "INT"))


@given(words=st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=4), swap=st.booleans(), swap_words=st.booleans())
def test_any_registers_come_back_as_bytes(words: list[int], swap: bool, swap_words: bool) -> None:
    v = visitor(4, "bytes", is_swap=swap, is_register_swap=swap_words)
    value = decode_registers(words, v, "BYTES")
    assert encode_registers(value, v) == words


@given(data=st.data(), limit=st.sampled_from([1, 2, 4]), scale=SCALES, swap=st.booleans(), swap_words=st.booleans())
def test_every_int_is_held_exactly(
    data: st.DataObject, limit: int, scale: Decimal, swap: bool, swap_words: bool
) -> None:
    raw = data.draw(st.integers(0, min(2 ** (16 * limit), 2**50) - 1))  # a DOUBLE holds 53 bits
    v = visitor(limit, "int", scale=scale, is_swap=swap, is_register_swap=swap_words)
    words = encode_registers(float(raw * scale), v)
    assert len(words) == limit
    assert decode_registers(words, v, "DOUBLE") == pytest.approx(float(raw * scale), rel=1e-15)
    plain = struct.pack(f"<{limit}H" if swap else f">{limit}H", *(words[::-1] if swap_words else words))
    assert int.from_bytes(plain, "big") == raw


@given(
    number=st.floats(width=32, allow_nan=False, allow_infinity=False),
    swap=st.booleans(),
    swap_words=st.booleans(),
)
def test_floats_come_back(number: float, swap: bool, swap_words: bool) -> None:
    for limit, data_type in ((2, "float"), (4, "double")):
        v = visitor(limit, data_type, is_swap=swap, is_register_swap=swap_words)
        assert decode_registers(encode_registers(number, v), v, "DOUBLE") == number


@given(number=st.floats(-1e6, 1e6, width=32), scale=SCALES)
def test_what_a_scaled_float_holds_is_stable(number: float, scale: Decimal) -> None:
    """Writing what was read back gives the same number: the read-back after a write can be compared."""
    v = visitor(4, "double", scale=scale)
    held = decode_registers(encode_registers(number, v), v, "DOUBLE")
    assert isinstance(held, float)
    assert held == pytest.approx(number, rel=1e-12)


@given(st.text(max_size=5).filter(lambda t: not t.endswith("\0")), st.booleans(), st.booleans())
def test_texts_come_back(text: str, swap: bool, swap_words: bool) -> None:
    v = visitor(10, "string", is_swap=swap, is_register_swap=swap_words)
    assert decode_registers(encode_registers(text, v), v, "STRING") == text


@given(st.integers(1, 64), st.data())
def test_bits_come_back(limit: int, data: st.DataObject) -> None:
    v = resolve_visitor(ModbusVisitor("CoilRegister", 0, limit=limit, data_type="int"), ModelProperty("p", "INT"))
    raw = data.draw(st.integers(0, 2**limit - 1))
    bits = encode_bits(raw, v)
    assert len(bits) == limit
    assert decode_bits(bits, v, "INT") == raw


@given(
    words=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=4),
    data_type=st.sampled_from(["int", "float", "double", "string", "boolean", "bytes"]),
    type_=st.sampled_from(["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES"]),
)
def test_whatever_a_device_holds_is_a_value_or_a_conversion_error(
    words: list[int], data_type: str, type_: PropertyType
) -> None:
    limit = {"float": 2, "double": 4, "boolean": 1}.get(data_type, 1)
    v = visitor(limit, data_type, scale=Decimal("0.1") if data_type in ("int", "float", "double") else Decimal(1))
    with contextlib.suppress(ConversionError):
        format_value(decode_registers((words * 4)[:limit], v, type_), type_)


@given(
    value=st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    data_type=st.sampled_from(["int", "float", "double", "string", "boolean", "bytes"]),
)
def test_whatever_is_wanted_is_encoded_or_a_conversion_error(value: Any, data_type: str) -> None:
    v = visitor({"float": 2, "double": 4, "boolean": 1}.get(data_type, 2), data_type)
    try:
        words = encode_registers(value, v)
    except ConversionError:
        return
    assert len(words) == v.limit
    assert all(0 <= w <= 0xFFFF for w in words)


def test_three_tenths_are_point_three() -> None:
    assert decode_registers([3], visitor(1, "int", scale=Decimal("0.1")), "FLOAT") == 0.3


def test_known_orders() -> None:
    """123456.0 as a 32-bit float is 47 F1 20 00."""
    for flags, words in (
        ({}, [0x47F1, 0x2000]),
        ({"is_register_swap": True}, [0x2000, 0x47F1]),
        ({"is_swap": True}, [0xF147, 0x0020]),
        ({"is_swap": True, "is_register_swap": True}, [0x0020, 0xF147]),
    ):
        v = visitor(2, "float", **flags)
        assert decode_registers(words, v, "FLOAT") == 123456.0
        assert encode_registers(123456.0, v) == words


def test_int_is_unsigned_and_cut_off_for_an_int_property() -> None:
    assert decode_registers([0xFFFF], visitor(1, "int"), "INT") == 65535
    assert decode_registers([27], visitor(1, "int", scale=Decimal("0.1")), "INT") == 2


@pytest.mark.parametrize(
    ("value", "limit", "data_type", "says"),
    (
        (-1, 1, "int", "0 to 65535"),
        (65536, 1, "int", "0 to 65535"),
        (1e39, 2, "float", "32-bit float"),
        ("far too long", 1, "string", "do not fit the 2"),
        (7, 1, "boolean", "not true or false"),
        ("x", 1, "int", "not a number"),
        (math.nan, 1, "int", "not a finite number"),
    ),
)
def test_refused_values_say_why(value: Any, limit: int, data_type: str, says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        encode_registers(value, visitor(limit, data_type))


def test_not_utf8_is_refused() -> None:
    with pytest.raises(ConversionError, match="not UTF-8"):
        decode_registers([0xFFFE], visitor(1, "string"), "STRING")


def test_more_registers_than_one_write_takes() -> None:
    with pytest.raises(ConversionError, match="up to 123"):
        encode_registers("x", msgspec.structs.replace(visitor(125, "string")))
