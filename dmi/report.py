"""`ReportDeviceStatusRequest` straight to bytes: the one message that is sent thousands of times a second.

Building it of protobuf objects takes five times as long, for some fifty small objects per ten properties.
`dmi.wire` builds the same message that way; tests hold the two together.

Spec: Protocol Buffers encoding, of `v1beta1/api.proto` (DMI contract 1.2): every field here is of wire type 2, a tag, a
length as varint, and so many bytes; a map is a repeated message of key = 1 and value = 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from dmi.twins import Desired, Reported, Twin

__all__ = ["encode_report"]

_FIELD: Final = {number: bytes((number << 3 | 2,)) for number in (1, 2, 3)}
_SHORT: Final = tuple(bytes((length,)) for length in range(128))
_REMEMBERED: Final = 4096


def encode_report(namespace: str, name: str, twins: Iterable[Twin]) -> bytes:
    """A device's twins as they go over the wire, all their sub-messages present (DMI contract 0.1, rule 6)."""
    status = b"".join(
        [_bytes(1, _name(t.property_name) + _desired(t.desired) + _bytes(3, _reported(t.reported))) for t in twins]
    )
    return _text(1, name) + _bytes(2, status) + _text(3, namespace)


def _reported(side: Reported) -> bytes:
    metadata = _known(side.type, "quality", side.quality) + _timestamp(side.collected_ms)
    if side.reason:
        metadata += _entry("reason", side.reason)
    return _text(1, side.value) + metadata


@lru_cache(_REMEMBERED)
def _desired(side: Desired) -> bytes:
    """Mostly the same as last time, unlike what is reported."""
    metadata = _known(side.type, "write", side.write) + _timestamp(side.updated_ms)
    if side.reason:
        metadata += _entry("reason", side.reason)
    return _bytes(2, _text(1, side.value) + metadata)


@lru_cache(_REMEMBERED)
def _known(type_: str, key: str, value: str) -> bytes:
    return _entry("type", type_) + (_entry(key, value) if value else b"")


def _timestamp(epoch_ms: int) -> bytes:
    if 10**12 <= epoch_ms < 10**13:  # 13 digits, from 2001 to 2286
        return b"\x12\x1a\x0a\x09timestamp\x12\x0d%d" % epoch_ms
    return _entry("timestamp", str(epoch_ms) if epoch_ms else "")


@lru_cache(_REMEMBERED)
def _name(property_name: str) -> bytes:
    return _text(1, property_name)


def _entry(key: str, value: str) -> bytes:
    return _bytes(2, _bytes(1, key.encode()) + _bytes(2, value.encode()))


def _text(number: int, text: str) -> bytes:
    """An empty text is absent, as in every proto3 message."""
    return _bytes(number, text.encode()) if text else b""


def _bytes(number: int, data: bytes) -> bytes:
    length = len(data)
    if length < 128:
        return b"%b%b%b" % (_FIELD[number], _SHORT[length], data)
    return b"%b%b%b" % (_FIELD[number], _varint(length), data)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the highest bit set."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
