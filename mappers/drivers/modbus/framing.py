"""What transports put around a PDU, and how to find a reply in what arrives. Pure.

What is looked for is known: the reply of one unit to one function. Everything else that arrives is skipped: late
replies to what was given up, another unit's, noise. So the next request finds a line in step again.
"""

from __future__ import annotations

from binascii import a2b_hex, b2a_hex
from typing import ClassVar, Final, Protocol

from msgspec import Struct

from mappers.drivers.modbus.pdu import MAX_PDU, BadReply, reply_length

__all__ = ["ASCII", "MBAP", "RTU", "Expected", "Framing", "MoreNeeded"]

_EXCEPTION: Final = 0x80


class Expected(Struct, frozen=True):
    """Whose reply, to what. `transaction` is 0 where the framing has none. `size` is how long the PDU must be unless it
    is an exception, while late replies to other requests may come on a line without numbers; 0: of any length."""

    unit: int
    function: int
    transaction: int = 0
    size: int = 0

    def is_reply(self, function: int) -> bool:
        return function & ~_EXCEPTION == self.function

    def fits(self, function: int, size: int) -> bool:
        return not self.size or size == self.size or bool(function & _EXCEPTION)


class MoreNeeded(Struct, frozen=True):
    """No reply yet. The first `skip` bytes are of no use."""

    skip: int = 0


class Framing(Protocol):
    """One way to frame."""

    numbered: ClassVar[bool]
    """Replies carry the number of their request, so that a late one cannot be taken for another's."""
    max_frame: ClassVar[int]

    def encode(self, unit: int, transaction: int, pdu: bytes) -> bytes: ...

    def find(self, data: bytes, expected: Expected) -> bytes | MoreNeeded:
        """The expected reply's PDU.

        Raises:
            BadReply: It is there, and makes no sense.
        """
        ...


class Mbap:
    """TCP, TLS and UDP: transaction, protocol 0, length, unit (Messaging on TCP/IP V1.0b, 3.1.3)."""

    numbered: ClassVar[bool] = True
    max_frame: ClassVar[int] = 7 + MAX_PDU

    def encode(self, unit: int, transaction: int, pdu: bytes) -> bytes:
        return b"%b\0\0%b%c%b" % (transaction.to_bytes(2, "big"), (len(pdu) + 1).to_bytes(2, "big"), unit, pdu)

    def find(self, data: bytes, expected: Expected) -> bytes | MoreNeeded:
        at = 0
        while len(data) - at >= 8:
            length = int.from_bytes(data[at + 4 : at + 6], "big")
            if data[at + 2 : at + 4] != b"\0\0" or not 2 <= length <= MAX_PDU + 1:
                return MoreNeeded(len(data))  # no frame begins here: nobody can tell where the next one does
            end = at + 6 + length
            if length == 2 and data[at + 7] & _EXCEPTION and len(data) == end + 1:
                end += 1  # some devices forget to count the exception's code
            if len(data) < end:
                return MoreNeeded(at)
            if int.from_bytes(data[at : at + 2], "big") == expected.transaction:
                return _checked(data[at + 6], data[at + 7 : end], expected)
            at = end
        return MoreNeeded(at)


class Rtu:
    """Serial lines, also through TCP: unit, PDU, CRC (over Serial Line V1.02, 2.5.1). Nothing marks the begin."""

    numbered: ClassVar[bool] = False
    max_frame: ClassVar[int] = 3 + MAX_PDU

    def encode(self, unit: int, transaction: int, pdu: bytes) -> bytes:  # noqa: ARG002  # there are no numbers
        frame = bytes((unit,)) + pdu
        return frame + _crc(frame).to_bytes(2, "big")

    def find(self, data: bytes, expected: Expected) -> bytes | MoreNeeded:
        skip = len(data)
        for at in range(len(data)):
            if data[at] != expected.unit or (at + 1 < len(data) and not expected.is_reply(data[at + 1])):
                continue
            length = reply_length(data[at + 1 :]) if at + 1 < len(data) else None
            if length is not None and not expected.fits(data[at + 1], length):
                continue
            if length is None or len(data) < at + length + 3:
                skip = min(skip, at)  # perhaps the begin of it
                continue
            end = at + 1 + length
            if _crc(data[at:end]) == int.from_bytes(data[end : end + 2], "big"):
                return data[at + 1 : end]
        return MoreNeeded(skip)


class Ascii:
    """Serial lines, as hexadecimal digits: `:`, unit, PDU, LRC, CR LF (over Serial Line V1.02, 2.5.2)."""

    numbered: ClassVar[bool] = False
    max_frame: ClassVar[int] = 1 + 2 * (MAX_PDU + 2) + 2

    def encode(self, unit: int, transaction: int, pdu: bytes) -> bytes:  # noqa: ARG002  # as above
        frame = bytes((unit,)) + pdu
        return b":%b\r\n" % b2a_hex(frame + bytes((_lrc(frame),))).upper()

    def find(self, data: bytes, expected: Expected) -> bytes | MoreNeeded:
        at = data.find(b":")
        while at >= 0:
            end = data.find(b"\n", at)
            next_at = data.find(b":", at + 1)
            if 0 <= next_at < end or (end < 0 <= next_at):
                at = next_at  # a frame that was cut off
                continue
            if end < 0:
                return MoreNeeded(at)
            try:
                frame = a2b_hex(data[at + 1 : end].rstrip(b"\r"))
            except ValueError:
                frame = b""
            body = frame[:-1]
            sound = len(frame) >= 3 and _lrc(body) == frame[-1]
            ours = sound and body[0] == expected.unit and expected.is_reply(body[1])
            if ours and expected.fits(body[1], len(body) - 1):
                return body[1:]
            at = data.find(b":", end)
        return MoreNeeded(len(data))


MBAP: Final[Framing] = Mbap()
RTU: Final[Framing] = Rtu()
ASCII: Final[Framing] = Ascii()


def _crc(frame: bytes) -> int:
    from pymodbus.framer import FramerRTU  # 1 MB with all that comes along, and only serial framings have checksums

    return FramerRTU.compute_CRC(frame)


def _lrc(frame: bytes) -> int:
    from pymodbus.framer import FramerAscii  # as above

    return FramerAscii.compute_LRC(frame)


def _checked(unit: int, pdu: bytes, expected: Expected) -> bytes:
    """Of a frame that carries the request's number. To unit 0 devices answer as whom they like."""
    if expected.unit not in (0, unit):
        raise BadReply(f"unit {unit} answered in place of {expected.unit}")
    if not expected.is_reply(pdu[0]):
        raise BadReply(f"a reply to function {pdu[0] & ~_EXCEPTION}, which was not asked")
    return pdu
