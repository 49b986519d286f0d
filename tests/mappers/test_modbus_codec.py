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
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.drivers.modbus.codec import (
    decode_bits,
    decode_registers,
    encode_bits,
    encode_mask,
    encode_registers,
    merge_bits,
)
from mappers.drivers.modbus.settings import ModbusVisitor
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
    data_type=st.sampled_from(["int", "int16", "bcd", "float", "double", "string", "boolean", "bytes"]),
    type_=st.sampled_from(["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES"]),
)
def test_whatever_a_device_holds_is_a_value_or_a_conversion_error(
    words: list[int], data_type: str, type_: PropertyType
) -> None:
    limit = {"float": 2, "double": 4, "boolean": 1}.get(data_type, 1)
    v = visitor(
        limit, data_type, scale=Decimal("0.1") if data_type in ("int", "bcd", "float", "double") else Decimal(1)
    )
    with contextlib.suppress(ConversionError):
        format_value(decode_registers((words * 4)[:limit], v, type_), type_)


@given(
    value=st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    data_type=st.sampled_from(["int", "int32", "bcd", "float", "double", "string", "boolean", "bytes"]),
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


NUMBERS = {"int16": (1, True), "int32": (2, True), "int64": (4, True), "uint16": (1, False), "uint32": (2, False),
           "uint64": (4, False)}  # fmt: skip
ORDERS = {
    1: ("AB", "BA"),
    2: ("ABCD", "BADC", "CDAB", "DCBA"),
    4: ("ABCDEFGH", "BADCFEHG", "CDABGHEF", "DCBAHGFE", "EFGHABCD", "FEHGBADC", "GHEFCDAB", "HGFEDCBA"),
}


@given(data=st.data(), data_type=st.sampled_from(sorted(NUMBERS)), scale=SCALES, bias=st.integers(-1000, 1000))
def test_every_whole_number_in_every_order_scale_and_bias(
    data: st.DataObject, data_type: str, scale: Decimal, bias: int
) -> None:
    limit, signed = NUMBERS[data_type]
    bits = 16 * limit
    raw = data.draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1))
    order = data.draw(st.sampled_from(ORDERS[limit]))
    v = visitor(0, data_type, scale=scale, bias=Decimal(bias), byte_order=order)
    plain = raw.to_bytes(2 * limit, "big", signed=signed)
    wire = bytes(plain["ABCDEFGH".index(letter)] for letter in order)
    words = list(struct.unpack(f">{limit}H", wire))
    value = decode_registers(words, v, "DOUBLE")
    exact = raw * scale + bias
    assert Decimal(value) == exact or value == float(exact)  # type: ignore[arg-type]  # a number
    if abs(raw) < 2**45:  # a float holds 53 bits
        assert encode_registers(value, v) == words


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(ORDERS[4]))
def test_doubles_in_every_order(number: float, order: str) -> None:
    v = visitor(0, "double", byte_order=order)
    words = encode_registers(number, v)
    plain = struct.pack(">d", number)
    assert struct.pack(">4H", *words) == bytes(plain["ABCDEFGH".index(letter)] for letter in order)
    assert decode_registers(words, v, "DOUBLE") == number


def test_orders_mean_what_the_two_swaps_mean() -> None:
    words = [0x0102, 0x0304]
    for order, flags in (
        ("ABCD", {}),
        ("BADC", {"is_swap": True}),
        ("CDAB", {"is_register_swap": True}),
        ("DCBA", {"is_swap": True, "is_register_swap": True}),
    ):
        assert decode_registers(words, visitor(2, "int", byte_order=order), "INT") == decode_registers(
            words, visitor(2, "int", **flags), "INT"
        )


@given(data=st.data(), limit=st.sampled_from([1, 2, 4]), scale=SCALES)
def test_bcd_comes_back(data: st.DataObject, limit: int, scale: Decimal) -> None:
    raw = data.draw(st.integers(0, 10 ** (4 * limit) - 1))
    v = visitor(limit, "bcd", scale=scale)
    digits = f"{raw:0{4 * limit}d}"
    words = [int(digits[i : i + 4], 16) for i in range(0, len(digits), 4)]
    value = decode_registers(words, v, "DOUBLE")
    assert value in (raw * scale, float(raw * scale))
    if raw < 2**45:
        assert encode_registers(value, v) == words


def test_what_is_no_bcd_names_the_registers() -> None:
    with pytest.raises(ConversionError, match="registers hold 1a34, which is not BCD"):
        decode_registers([0x1A34], visitor(1, "bcd"), "INT")
    with pytest.raises(ConversionError, match="4 BCD digits: 0 to 9999"):
        encode_registers(10000, visitor(1, "bcd"))
    with pytest.raises(ConversionError, match="BCD digits"):
        encode_registers(-1, visitor(1, "bcd"))


@given(
    word=st.integers(0, 0xFFFF),
    bit=st.integers(0, 15),
    count=st.integers(1, 16),
    raw=st.integers(0, 0xFFFF),
    swap=st.booleans(),
)
def test_a_field_of_a_register_changes_nothing_beside_it(word: int, bit: int, count: int, raw: int, swap: bool) -> None:
    count = min(count, 16 - bit)
    raw %= 1 << count
    v = visitor(1, "int", bit=bit, bit_count=count, is_swap=swap)
    and_mask, or_mask = encode_mask(raw, v)
    after = (word & and_mask) | (or_mask & ~and_mask)  # what the device does (V1.1b3, 6.16)
    assert after == merge_bits(word, raw, v)
    assert decode_registers([after], v, "INT") == raw
    everywhere = visitor(1, "int", is_swap=swap)
    mask = ((1 << count) - 1) << bit
    before_plain, after_plain = (decode_registers([w], everywhere, "INT") for w in (word, after))
    assert isinstance(before_plain, int)
    assert isinstance(after_plain, int)
    assert before_plain & ~mask == after_plain & ~mask


def test_a_bit_of_a_register_is_a_boolean() -> None:
    v = visitor(1, "boolean", bit=3)
    assert decode_registers([0x0008], v, "BOOLEAN") is True
    assert decode_registers([0xFFF7], v, "BOOLEAN") is False
    assert encode_mask(True, v) == (0xFFF7, 0x0008)
    assert encode_mask(False, v) == (0xFFF7, 0x0000)
    assert encode_registers(True, v) == [0x0008]
    with pytest.raises(ConversionError, match="not true or false"):
        encode_mask(2, v)
    with pytest.raises(ConversionError, match="2 unsigned bits: 0 to 3"):
        encode_mask(4, visitor(1, "int", bit=0, bit_count=2))


@pytest.mark.parametrize(
    ("words", "data_type", "says"),
    (
        ([0x7FC0, 0], "float", "hold 7fc00000, which is nan"),
        ([0xFF80, 0], "float", "hold ff800000, which is -inf"),
        ([0x7FF0, 0, 0, 0], "double", "which is inf"),
    ),
)
def test_what_is_no_number_is_no_value(words: list[int], data_type: str, says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        decode_registers(words, visitor(0, data_type), "DOUBLE")


def test_what_overflows_is_no_value() -> None:
    with pytest.raises(ConversionError, match="outside the 64 bits of an INT"):
        decode_registers([0xFFFF] * 4, visitor(4, "int"), "INT")
    assert decode_registers([0xFFFF] * 4, visitor(4, "int"), "DOUBLE") == 2**64 - 1
    with pytest.raises(ConversionError, match="outside the 64 bits of an INT"):
        decode_registers([0x7FFF] * 4, visitor(0, "int64", scale=Decimal(10)), "INT")
    largest = encode_registers(1.7e308, visitor(0, "double"))
    with pytest.raises(ConversionError, match="too large once it is scaled"):
        decode_registers(largest, visitor(0, "double", scale=Decimal(1000)), "DOUBLE")
    with pytest.raises(ConversionError, match="64-bit float"):
        encode_registers(1.7e308, visitor(0, "double", scale=Decimal("0.001")))
    with pytest.raises(ConversionError, match="out of reach"):
        encode_registers("1e999999999", visitor(1, "int"))
    with pytest.raises(ConversionError, match="no UTF-8 form"):
        encode_registers("\ud800", visitor(4, "string"))


def test_bias_is_added_after_the_scale() -> None:
    v = visitor(1, "int", scale=Decimal("0.1"), bias=Decimal(-40))
    assert decode_registers([615], v, "FLOAT") == 21.5
    assert encode_registers(21.5, v) == [615]
    assert decode_registers([385], v, "FLOAT") == -1.5
    signed = visitor(0, "int16", scale=Decimal("0.1"))
    assert decode_registers([0xFFF1], signed, "FLOAT") == -1.5
    assert encode_registers(-1.5, signed) == [0xFFF1]
    with pytest.raises(ConversionError, match="-32769 in the device's scale, which does not fit 16 signed bits"):
        encode_registers(-3276.9, signed)
