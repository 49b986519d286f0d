"""PDUs and frames, compared with pymodbus' own, and cut, spoilt and mixed with noise in every way."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer import FramerAscii, FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu import bit_message as bits_
from pymodbus.pdu import register_message as registers_
from pymodbus.pdu.mei_message import ReadDeviceInformationResponse

from mappers.drivers.modbus import pdu
from mappers.drivers.modbus.framing import ASCII, MBAP, RTU, Expected, Framing, MoreNeeded
from mappers.drivers.modbus.pdu import BadReply

WORDS = st.integers(0, 0xFFFF)
ADDRESSES = st.integers(0, 0xFFFF)
FRAMINGS: tuple[Framing, ...] = (MBAP, RTU, ASCII)


def raw(message: ModbusPDU) -> bytes:
    return bytes((message.function_code,)) + message.encode()


@given(ADDRESSES, st.integers(1, 125), st.sampled_from((1, 2, 3, 4)))
def test_reads_are_those_of_the_reference(start: int, count: int, function: int) -> None:
    classes: dict[int, Any] = {
        1: bits_.ReadCoilsRequest,
        2: bits_.ReadDiscreteInputsRequest,
        3: registers_.ReadHoldingRegistersRequest,
        4: registers_.ReadInputRegistersRequest,
    }
    assert pdu.read(function, start, count) == raw(classes[function](address=start, count=count))


@given(ADDRESSES, st.lists(WORDS, min_size=1, max_size=121), st.lists(st.booleans(), min_size=1, max_size=1968))
def test_writes_are_those_of_the_reference(address: int, words: list[int], bits: list[bool]) -> None:
    multiple = registers_.WriteMultipleRegistersRequest(address=address, count=len(words), registers=words)
    assert pdu.write_registers(address, words) == raw(multiple)
    assert pdu.write_coils(address, bits) == raw(bits_.WriteMultipleCoilsRequest(address=address, bits=bits))
    single = registers_.WriteSingleRegisterRequest(address=address, registers=words[:1])
    assert pdu.write_register(address, words[0]) == raw(single)
    assert pdu.write_coil(address, bits[0]) == raw(bits_.WriteSingleCoilRequest(address=address, bits=bits[:1]))
    mask = registers_.MaskWriteRegisterRequest(address=address, and_mask=words[0], or_mask=words[-1])
    assert pdu.mask_write(address, words[0], words[-1]) == raw(mask)
    both = registers_.ReadWriteMultipleRegistersRequest(
        read_address=address, read_count=len(words), write_address=address, write_registers=words
    )
    assert pdu.read_write(address, words) == raw(both)


@given(st.lists(WORDS, min_size=1, max_size=125), st.lists(st.booleans(), min_size=1, max_size=2000))
def test_what_the_reference_replies_is_understood(words: list[int], bits: list[bool]) -> None:
    reply = raw(registers_.ReadHoldingRegistersResponse(registers=words))
    assert list(pdu.parse_registers(reply, len(words))) == words
    assert pdu.reply_length(reply[:2]) == len(reply)
    reply = raw(bits_.ReadCoilsResponse(bits=bits))
    assert pdu.parse_bits(reply, len(bits)) == bits
    assert pdu.reply_size(pdu.read(1, 0, len(bits))) == len(reply)
    assert pdu.reply_size(pdu.read(3, 0, len(words))) == 2 + 2 * len(words)
    assert pdu.reply_size(pdu.read_write(0, words[:121])) == 2 + 2 * len(words[:121])
    assert pdu.reply_size(pdu.write_register(0, 1)) == 0
    with pytest.raises(BadReply):
        pdu.parse_bits(reply, len(bits) + 8)
    with pytest.raises(BadReply):
        pdu.parse_registers(reply[:-1], len(words))


@given(st.dictionaries(st.integers(0, 255), st.binary(max_size=20), max_size=5))
def test_the_length_of_an_identification_is_found(objects: dict[int, bytes]) -> None:
    reply = raw(ReadDeviceInformationResponse(read_code=4, information=objects))
    assert pdu.reply_length(reply) == len(reply)
    assert all(pdu.reply_length(reply[:n]) in (None, len(reply)) for n in range(1, len(reply)))


def test_an_exception_is_told_from_a_reply() -> None:
    assert pdu.exception_code(raw(ExceptionResponse(3, 2))) == 2
    assert pdu.exception_code(b"\x03\x02\x00\x01") == 0
    for broken in (b"\x83", b"\x83\x00", b"\x83\x02\x00"):
        with pytest.raises(BadReply):
            pdu.exception_code(broken)
    with pytest.raises(BadReply):
        pdu.reply_length(b"\x63")


def test_a_write_is_confirmed_by_its_own_address_and_value() -> None:
    request = pdu.write_registers(7, [1, 2])
    pdu.check_echo(request, request[:5])
    for other in (pdu.write_registers(8, [1, 2])[:5], pdu.write_registers(7, [1])[:5], request, b"\x10"):
        with pytest.raises(BadReply):
            pdu.check_echo(request, other)


# frames

UNITS = st.integers(0, 255)
NUMBERS = st.integers(1, 0xFFFF)
PAYLOADS = st.lists(WORDS, min_size=1, max_size=125).map(
    lambda w: raw(registers_.ReadHoldingRegistersResponse(registers=w))
)


@given(UNITS, NUMBERS, PAYLOADS)
def test_frames_are_those_of_the_reference(unit: int, number: int, payload: bytes) -> None:
    decoder = DecodePDU(False)
    references: list[Any] = [FramerSocket(decoder), FramerRTU(decoder), FramerAscii(decoder)]
    for framing, reference in zip(FRAMINGS, references, strict=True):
        assert framing.encode(unit, number, payload) == reference.encode(payload, unit, number)


def numbered(framing: Framing, number: int) -> int:
    return number if framing.numbered else 0


@given(st.sampled_from(FRAMINGS), UNITS, NUMBERS, PAYLOADS, st.data())
def test_a_reply_is_found_in_whatever_pieces_it_comes(
    framing: Framing, unit: int, number: int, payload: bytes, data: st.DataObject
) -> None:
    frame = framing.encode(unit, number, payload)
    expected = Expected(unit, payload[0], numbered(framing, number))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(frame) - 1), max_size=5)))
    buffer, at = b"", 0
    for cut in cuts:
        buffer, at = buffer + frame[at:cut], cut
        found = framing.find(buffer, expected)
        assert isinstance(found, MoreNeeded)
        buffer = buffer[found.skip :]
    assert framing.find(buffer + frame[at:], expected) == payload


@given(st.sampled_from(FRAMINGS), UNITS, NUMBERS, PAYLOADS, st.binary(max_size=300))
def test_a_reply_that_comes_byte_by_byte_or_with_more_behind_it_is_found(
    framing: Framing, unit: int, number: int, payload: bytes, behind: bytes
) -> None:
    frame = framing.encode(unit, number, payload)
    expected = Expected(unit, payload[0], numbered(framing, number))
    buffer = b""
    for byte in frame[:-1]:
        found = framing.find(buffer + bytes((byte,)), expected)
        assert isinstance(found, MoreNeeded)
        buffer = (buffer + bytes((byte,)))[found.skip :]
    assert framing.find(buffer + frame[-1:] + behind, expected) == payload
    assert framing.find(buffer + frame[-1:] + frame, expected) == payload


@given(st.sampled_from((RTU, ASCII)), UNITS, PAYLOADS, st.binary(max_size=40), st.integers(0, 255), PAYLOADS)
def test_a_reply_is_found_behind_noise_and_another_unit(
    framing: Framing, unit: int, payload: bytes, noise: bytes, other: int, others: bytes
) -> None:
    ours = framing.encode(unit, 0, payload)
    before = noise.replace(b":", b"") if framing is ASCII else noise
    if other != unit:
        before += framing.encode(other, 0, others)
    assert framing.find(before + ours, Expected(unit, payload[0])) == payload


@given(NUMBERS, NUMBERS, PAYLOADS, PAYLOADS)
def test_a_late_reply_to_another_number_is_skipped(number: int, other: int, payload: bytes, others: bytes) -> None:
    late = MBAP.encode(1, other, others)
    found = MBAP.find(late + MBAP.encode(1, number, payload), Expected(1, payload[0], number))
    assert found == (payload if other != number else others)


@given(st.sampled_from(FRAMINGS), st.binary(max_size=600), UNITS, st.integers(0, 0xFFFF))
def test_noise_is_no_reply_and_does_no_harm(framing: Framing, noise: bytes, unit: int, number: int) -> None:
    try:
        found = framing.find(noise, Expected(unit, 3, numbered(framing, number)))
    except BadReply:
        return
    if isinstance(found, MoreNeeded):
        assert 0 <= found.skip <= len(noise)
    else:  # a sound frame by chance, which hypothesis can find for the framing without a checksum
        assert framing is MBAP or found in noise or framing is ASCII


@given(UNITS, PAYLOADS, st.integers(0, 10_000), st.integers(0, 7))
def test_a_bit_turned_over_on_a_serial_line_is_noticed(unit: int, payload: bytes, at: int, bit: int) -> None:
    frame = bytearray(RTU.encode(unit, 0, payload))
    frame[at % len(frame)] ^= 1 << bit
    assert isinstance(RTU.find(bytes(frame), Expected(unit, payload[0])), MoreNeeded)


def test_who_answers_in_place_of_another_is_named() -> None:
    frame = MBAP.encode(5, 9, b"\x03\x02\x00\x01")
    with pytest.raises(BadReply, match="unit 5 answered in place of 1"):
        MBAP.find(frame, Expected(1, 3, 9))
    assert MBAP.find(frame, Expected(0, 3, 9)) == b"\x03\x02\x00\x01"  # to 0 a device answers as whom it likes
    with pytest.raises(BadReply, match="function 3"):
        MBAP.find(frame, Expected(5, 4, 9))


def test_an_exception_whose_code_was_not_counted_is_read() -> None:
    frame = MBAP.encode(1, 9, b"\x83\x02")
    short = frame[:5] + b"\x02" + frame[6:]
    assert cast(bytes, MBAP.find(short, Expected(1, 3, 9))) == b"\x83\x02"
