"""WebSocket as upstream writes it (channel contract 1.3), byte by byte and with nothing of the project's own."""

import asyncio
import base64
import hashlib
import json
import os
import struct
from dataclasses import dataclass
from typing import Any

TEXT, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x0, 0x8, 0x9, 0xA
GO_BUFFER = 4096
"""Of Go's WebSocket writer: a message beyond it leaves in several frames."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    opcode: int
    fin: bool
    masked: bool
    payload: bytes


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bool = False) -> bytes:
    head = bytes([opcode | (0x80 if fin else 0)])
    flag = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([flag | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([flag | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([flag | 127]) + struct.pack(">Q", len(payload))
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + _masked(payload, key)


def _masked(payload: bytes, key: bytes) -> bytes:
    whole = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(payload), "big")


def go_json(value: Any) -> bytes:
    """As Go's encoder writes it: compact, three characters escaped, a newline behind."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


def from_edge(payload: bytes) -> list[bytes]:
    """The frames in which upstream's EdgeCore sends one message: pieces of 4 KiB, masked."""
    pieces = [payload[at : at + GO_BUFFER] for at in range(0, len(payload), GO_BUFFER)]
    last = len(pieces) - 1
    return [frame(CONTINUATION if at else TEXT, piece, fin=at == last, mask=True) for at, piece in enumerate(pieces)]


def from_cloud(payload: bytes) -> list[bytes]:
    """The frames in which upstream's CloudCore sends one message."""
    if len(payload) > 2 * GO_BUFFER:
        return [frame(TEXT, payload, fin=False), frame(CONTINUATION, b"")]
    pieces = [payload[at : at + GO_BUFFER] for at in range(0, len(payload), GO_BUFFER)]
    last = len(pieces) - 1
    return [frame(CONTINUATION if at else TEXT, piece, fin=at == last) for at, piece in enumerate(pieces)]


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises IncompleteReadError at the end."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", await reader.readexactly(8))
    assert not first & 0x70, "an extension that was never agreed on"
    key = await reader.readexactly(4) if second & 0x80 else b""
    payload = await reader.readexactly(length)
    return Frame(first & 0xF, bool(first & 0x80), bool(key), _masked(payload, key) if key else payload)


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    """First line and headers of an HTTP message, names as they are written."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    return lines[0], [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]


def accept_key(key: str) -> str:
    magic = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 4.2.2
    return base64.b64encode(hashlib.sha1((key + magic).encode()).digest()).decode()
