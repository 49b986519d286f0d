"""What is taken out of a reply all at once is what the codec makes of each property by itself."""

from __future__ import annotations

import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi.errors import ConfigError, ConversionError
from dmi.types import ModelProperty, PropertyType
from dmi.values import Value
from mappers.drivers.modbus.batch import Batch
from mappers.drivers.modbus.checks import resolve_visitor
from mappers.drivers.modbus.codec import decode_bits, decode_registers
from mappers.drivers.modbus.pdu import BadReply
from mappers.drivers.modbus.plan import plan_reads
from mappers.drivers.modbus.settings import ModbusVisitor

SCALES = st.sampled_from(["1", "0.1", "0.01", "-0.5", "3", "1000", "0.3333", "1e-9", "1e15"]).map(Decimal)
BIASES = st.sampled_from(["0", "-40", "0.05", "273.15", "1e18"]).map(Decimal)
KINDS: tuple[tuple[Any, int], ...] = (
    ("int", 1), ("int", 2), ("int", 4), ("int16", 1), ("int32", 2), ("int64", 4), ("float", 2), ("double", 4),
    ("bcd", 1), ("bytes", 3), ("boolean", 1),
)  # fmt: skip


@st.composite
def properties(draw: st.DrawFn) -> tuple[ModbusVisitor, PropertyType]:
    data_type, limit = draw(st.sampled_from(KINDS))
    numeric = data_type not in ("bytes", "boolean")
    visitor = ModbusVisitor(
        "HoldingRegister",
        draw(st.integers(0, 60)),
        limit,
        scale=draw(SCALES) if numeric else Decimal(1),
        bias=draw(BIASES) if numeric else Decimal(0),
        is_swap=draw(st.booleans()),
        is_register_swap=draw(st.booleans()),
        data_type=data_type,
        bit=draw(st.none() | st.integers(0, 15)) if (data_type, limit) in (("int", 1), ("boolean", 1)) else None,
    )
    types: dict[str, PropertyType] = {"bytes": "BYTES", "boolean": "BOOLEAN"}
    numbers: tuple[PropertyType, ...] = ("INT", "FLOAT", "DOUBLE")
    type_ = types[data_type] if data_type in types else draw(st.sampled_from(numbers))
    return resolve_visitor(visitor, ModelProperty("p", type_)), type_


def decoded(part: list[int], visitor: ModbusVisitor, type_: PropertyType) -> Value | ConversionError:
    try:
        return decode_registers(part, visitor, type_)
    except ConversionError as error:
        return error


@given(st.lists(properties(), min_size=1, max_size=12), st.data())
def test_registers(declared: list[tuple[ModbusVisitor, PropertyType]], data: st.DataObject) -> None:
    items = [(f"p{i}", visitor) for i, (visitor, _) in enumerate(declared)]
    types = {f"p{i}": type_ for i, (_, type_) in enumerate(declared)}
    for request in plan_reads(items):
        words = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=request.count, max_size=request.count))
        reply = struct.pack(f">BB{request.count}H", 3, 2 * request.count, *words)
        results = Batch(request, types).decode(reply)
        assert set(results) == {name for name, _ in request.items}
        for name, visitor in request.items:
            part = words[visitor.offset - request.start : visitor.end - request.start]
            wanted = decoded(part, visitor, types[name])
            assert type(results[name]) is type(wanted)
            if isinstance(wanted, ConversionError):
                assert str(results[name]) == str(wanted)
            else:
                assert results[name] == wanted


def test_bits_and_their_raw_form() -> None:
    model = ModelProperty("p", "INT")
    visitors = [("a", ModbusVisitor("CoilRegister", 3, 2)), ("b", ModbusVisitor("CoilRegister", 4, 3))]
    items = [(name, resolve_visitor(visitor, model)) for name, visitor in visitors]
    (request,) = plan_reads(items)
    batch = Batch(request, {"a": "INT", "b": "INT"})
    reply = b"\x01\x01\x0b"
    bits = [True, True, False, True]
    assert batch.decode(reply) == {
        "a": decode_bits(bits[:2], items[0][1], "INT"),
        "b": decode_bits(bits[1:], items[1][1], "INT"),
    }
    assert batch.raw("a", reply) == "0b"


def test_a_reply_of_another_length_is_none() -> None:
    visitor = resolve_visitor(ModbusVisitor("HoldingRegister", 0), ModelProperty("p", "INT"))
    (request,) = plan_reads([("p", visitor)])
    batch = Batch(request, {"p": "INT"})
    assert batch.raw("p", b"\x03\x02\x12\x34") == "1234"
    for wrong in (b"\x03\x04\0\0\0\0", b"\x03\x02\0", b"\x03"):
        with pytest.raises(BadReply):
            batch.decode(wrong)
    with pytest.raises(ConfigError):  # what has no registers has no batch
        resolve_visitor(ModbusVisitor("HoldingRegister", 0), ModelProperty("p", "STREAM"))
