"""Property values: text ⇄ Python values by declared type."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi import ConversionError, ModelProperty, Reported, check_range, format_value, parse_value, supersedes
from dmi.twins import LAST_MS, MAX_REASON_CHARS, Desired
from dmi.values import shortest_float32

finite = st.floats(allow_nan=False, allow_infinity=False)
float32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
int64 = st.integers(-(2**63), 2**63 - 1)


@given(int64)
def test_int_round_trip(number: int) -> None:
    assert parse_value(format_value(number, "INT"), "INT") == number


@given(finite)
def test_double_round_trip_without_exponent(number: float) -> None:
    text = format_value(number, "DOUBLE")
    assert "e" not in text
    assert parse_value(text, "DOUBLE") == number


@given(float32)
def test_float_round_trip_at_32_bits(number: float) -> None:
    text = format_value(number, "FLOAT")
    assert "e" not in text
    assert parse_value(text, "FLOAT") == number


@given(st.binary(max_size=64))
def test_bytes_round_trip_in_signs_that_upstream_takes(data: bytes) -> None:
    text = format_value(data, "BYTES")
    assert set(text) <= set("0123456789abcdef")
    assert parse_value(text, "BYTES") == data


@pytest.mark.parametrize(
    ("number", "text"),
    (
        (0.1, "0.1"),
        (struct.unpack("<f", struct.pack("<f", 0.1))[0], "0.1"),
        (21.5, "21.5"),
        (16777216.0, "16777216"),
        (-0.0, "0"),
        (1e-7, "0.0000001"),
        (1502, "1502"),
    ),
)
def test_float_prints_the_shortest_decimal(number: float, text: str) -> None:
    assert shortest_float32(number) == text


@pytest.mark.parametrize(
    ("text", "value"),
    (("1", True), ("t", True), ("TRUE", True), ("true", True), ("0", False), ("F", False), ("False", False)),
)
def test_boolean_takes_what_go_takes(text: str, value: bool) -> None:
    assert parse_value(text, "BOOLEAN") is value


@pytest.mark.parametrize(
    ("text", "type_", "says"),
    (
        ("1.5", "INT", "not an INT"),
        ("1_000", "INT", "not an INT"),
        ("9223372036854775808", "INT", "64 bits"),
        ("yes", "BOOLEAN", "true or false"),
        ("nan", "FLOAT", "not a finite number"),
        ("inf", "DOUBLE", "not a finite number"),
        ("1e39", "FLOAT", "declare the property DOUBLE"),
        ("warm", "FLOAT", "not a number"),
        ("0g", "BYTES", "hexadecimal"),
        ("x", "STREAM", "no value"),
    ),
)
def test_what_a_type_cannot_hold_is_refused_in_words(text: str, type_: str, says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        parse_value(text, type_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "type_"),
    (
        (1.5, "INT"),
        (math.nan, "DOUBLE"),
        ("text", "INT"),
        (7, "BOOLEAN"),
        (b"\xff", "STRING"),
        ("\ud800", "STRING"),
        (1, "BYTES"),
    ),
)
def test_a_device_value_of_the_wrong_type_is_refused(value: object, type_: str) -> None:
    with pytest.raises(ConversionError):
        format_value(value, type_)  # type: ignore[arg-type]


def test_range_is_inclusive_and_exact() -> None:
    property_ = ModelProperty(name="setpoint", type="DOUBLE", minimum="0.1", maximum="100")
    check_range("0.1", property_)
    check_range("100", property_)
    with pytest.raises(ConversionError, match=r"0\.0999 is below the minimum 0\.1"):
        check_range("0.0999", property_)
    with pytest.raises(ConversionError, match="101 is above the maximum 100"):
        check_range("101", property_)
    check_range("anything", ModelProperty(name="label", type="STRING", minimum="0", maximum="1"))


def test_metadata_keys_are_upstreams_and_ours_only_when_they_say_something() -> None:
    assert Reported(value="1", type="int", collected_ms=1_700_000_000_000).metadata() == {
        "type": "int",
        "timestamp": "1700000000000",
        "quality": "good",
    }
    assert Desired().metadata() == {"type": "", "timestamp": ""}


@given(
    st.builds(
        Reported,
        value=st.text(),
        type=st.sampled_from(["", "int", "float"]),
        collected_ms=st.integers(0, LAST_MS),
        quality=st.sampled_from(["good", "stale", "bad"]),
        reason=st.text(max_size=MAX_REASON_CHARS),
    )
)
def test_reported_survives_its_metadata(reported: Reported) -> None:
    assert Reported.from_metadata(reported.value, reported.metadata()) == reported


@given(
    st.dictionaries(
        st.sampled_from(["type", "timestamp", "quality", "write", "reason"]),
        st.none() | st.text() | st.integers() | st.booleans(),
    )
)
def test_odd_metadata_counts_as_absent(metadata: dict[str, object]) -> None:
    reported, desired = Reported.from_metadata("v", metadata), Desired.from_metadata("v", metadata)
    assert reported.quality in ("good", "stale", "bad")
    assert desired.write in ("", "pending", "applied", "failed")
    assert reported.collected_ms >= 0


def test_texts_and_times_of_a_peer_are_bounded() -> None:
    reported = Reported.from_metadata("v", {"reason": "x" * 1000, "type": "y" * 1000, "timestamp": str(LAST_MS + 1)})
    assert reported == Reported("v", "y" * MAX_REASON_CHARS, 0, "good", "x" * MAX_REASON_CHARS)
    assert Desired.from_metadata("v", {"timestamp": 2**63}).updated_ms == 0


@pytest.mark.parametrize(
    ("new", "old", "now", "wins"),
    (
        (2000, 1000, 2000, True),
        (1000, 2000, 2000, False),
        (2000, 2000, 2000, True),  # the same reading went stale
        (0, 2000, 2000, True),  # a Go mapper, which sends no time
        (1000, 3_600_000, 1000, True),  # the clock was set back an hour
    ),
)
def test_newer_by_collection_time_wins(new: int, old: int, now: int, wins: bool) -> None:
    assert supersedes(new, old, now_ms=now) is wins
