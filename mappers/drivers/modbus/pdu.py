"""Requests and replies as bytes, without what a transport puts around them. Pure.

Spec: MODBUS Application Protocol V1.1b3, 6. A PDU is a function code and its data, 253 bytes at most (4.1).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

__all__ = [
    "MAX_PDU",
    "BadReply",
    "check_echo",
    "exception_code",
    "mask_write",
    "parse_bits",
    "parse_registers",
    "read",
    "read_write",
    "register_bytes",
    "reply_length",
    "reply_size",
    "write_coil",
    "write_coils",
    "write_register",
    "write_registers",
]

MAX_PDU: Final = 253
_EXCEPTION: Final = 0x80
_COUNTED: Final = frozenset({1, 2, 3, 4, 12, 17, 20, 21, 23})
"""Functions whose reply says in its second byte how many follow."""
_FIXED: Final = {5: 5, 6: 5, 7: 2, 8: 5, 11: 5, 15: 5, 16: 5, 22: 7}
"""Lengths of the replies to the others."""
_DEVICE_IDENTIFICATION: Final = 43


class BadReply(ValueError):
    """The reply is none to this request; the text says what is wrong with it."""


def read(function: int, start: int, count: int) -> bytes:
    """Functions 1 to 4: `count` coils, discrete inputs, holding or input registers (6.1 to 6.4)."""
    return struct.pack(">BHH", function, start, count)


def write_coil(address: int, value: bool) -> bytes:
    """Function 5."""
    return struct.pack(">BHH", 5, address, 0xFF00 if value else 0)


def write_register(address: int, word: int) -> bytes:
    """Function 6."""
    return struct.pack(">BHH", 6, address, word)


def write_coils(start: int, bits: Sequence[bool]) -> bytes:
    """Function 15: up to 1968 (6.11)."""
    packed = sum(1 << i for i, bit in enumerate(bits) if bit).to_bytes(-(-len(bits) // 8), "little")
    return struct.pack(">BHHB", 15, start, len(bits), len(packed)) + packed


def write_registers(start: int, words: Sequence[int]) -> bytes:
    """Function 16: up to 123 (6.12)."""
    return struct.pack(f">BHHB{len(words)}H", 16, start, len(words), 2 * len(words), *words)


def mask_write(address: int, and_mask: int, or_mask: int) -> bytes:
    """Function 22: the register becomes (register & and_mask) | (or_mask & ~and_mask) (6.16)."""
    return struct.pack(">BHHH", 22, address, and_mask, or_mask)


def read_write(start: int, words: Sequence[int]) -> bytes:
    """Function 23: write up to 121 registers, then read the same ones back (6.17)."""
    count = len(words)
    return struct.pack(f">BHHHHB{count}H", 23, start, count, start, count, 2 * count, *words)


def exception_code(reply: bytes) -> int:
    """The code of an exception reply (7); 0 for any other.

    Raises:
        BadReply: It has none.
    """
    if not reply[0] & _EXCEPTION:
        return 0
    if len(reply) != 2 or not reply[1]:
        raise BadReply("an exception without a code")
    return reply[1]


def parse_registers(reply: bytes, count: int) -> tuple[int, ...]:
    """The registers of a reply to function 3, 4 or 23.

    Raises:
        BadReply: Not as many as were asked for.
    """
    return struct.unpack(f">{count}H", register_bytes(reply, count))


def register_bytes(reply: bytes, count: int) -> bytes:
    """As `parse_registers`, the bytes as they came."""
    return _counted(reply, 2 * count)


def parse_bits(reply: bytes, count: int) -> list[bool]:
    """The bits of a reply to function 1 or 2.

    Raises:
        BadReply: Not as many as were asked for.
    """
    packed = int.from_bytes(_counted(reply, -(-count // 8)), "little")
    return [bool(packed >> i & 1) for i in range(count)]


def check_echo(request: bytes, reply: bytes) -> None:
    """A write is confirmed by its function, address and value or count; a mask write by all of it.

    Raises:
        BadReply: The reply confirms something else.
    """
    wanted = request if request[0] == 22 else request[:5]
    if reply != wanted:
        raise BadReply(f"wrote {wanted.hex()}, and the reply confirms {reply[:16].hex()}")


def reply_size(request: bytes) -> int:
    """How long the reply to a read is, function code included, unless it is an exception; 0 for other requests."""
    function = request[0]
    if function not in (1, 2, 3, 4, 23):
        return 0
    count = int.from_bytes(request[3:5], "big")
    return 2 + (-(-count // 8) if function in (1, 2) else 2 * count)


def reply_length(pdu: bytes) -> int | None:
    """How long the reply that begins like this is, function code included; None while that cannot be told.

    Raises:
        BadReply: Nobody can tell: the function is not known.
    """
    function = pdu[0]
    if function & _EXCEPTION:
        return 2
    if function in _FIXED:
        return _FIXED[function]
    if function in _COUNTED:
        return 2 + pdu[1] if len(pdu) > 1 else None
    if function != _DEVICE_IDENTIFICATION:
        raise BadReply(f"function {function} is not known")
    if len(pdu) < 7:
        return None
    end = 7
    for _ in range(pdu[6]):  # objects: id, length, text (6.21)
        if len(pdu) < end + 2:
            return None
        end += 2 + pdu[end + 1]
    return end


def _counted(reply: bytes, wanted: int) -> bytes:
    if len(reply) < 2 or reply[1] != len(reply) - 2:
        raise BadReply(f"says {reply[1] if len(reply) > 1 else 'nothing'} bytes follow, and {len(reply) - 2} do")
    if reply[1] != wanted:
        raise BadReply(f"asked for {wanted} bytes, got {reply[1]}")
    return reply[2:]
