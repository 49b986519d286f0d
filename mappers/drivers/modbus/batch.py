"""The reply to one read as the values of its properties. How is worked out once per plan, as most of the work of a
mapper happens here: plain numbers in the protocol's own order are taken out of the reply all at once. Pure.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from dmi.errors import ConversionError
from dmi.types import PropertyType
from dmi.values import Value
from mappers.drivers.modbus import pdu
from mappers.drivers.modbus.codec import decode_bits, decode_registers
from mappers.drivers.modbus.plan import ReadRequest
from mappers.drivers.modbus.settings import BITS, ModbusVisitor

__all__ = ["Batch"]

_PLAIN: Final[dict[tuple[str, int], str]] = {
    ("int", 1): "H",
    ("int", 2): "I",
    ("int16", 1): "h",
    ("int32", 2): "i",
    ("int64", 4): "q",
    ("float", 2): "f",
    ("double", 4): "d",
}
"""(dataType, registers) → how `struct` calls it. Unsigned numbers of 64 bits are not here: an INT cannot hold them."""
_OWN_ORDER: Final = ("", "AB", "ABCD", "ABCDEFGH")


class Batch:
    """One request and what its reply means.

    Args:
        types: Type of each property by name, at least of those of the request.
    """

    def __init__(self, request: ReadRequest, types: Mapping[str, PropertyType]) -> None:
        self.request = request
        self.types = types
        plain: list[str] = []
        self._floats: list[tuple[str, ModbusVisitor]] = []
        self._scaled: list[tuple[str, int, int, int, bool]] = []
        self._others: list[tuple[str, ModbusVisitor]] = []
        layout, at = ">", request.start
        for name, visitor in request.items:
            code = _plain_code(visitor)
            fraction = _fraction(visitor, code)
            if not code or visitor.offset < at or fraction is None:  # behind `at`: it shares registers with another
                self._others.append((name, visitor))
                continue
            if fraction != (1, 0, 1):
                self._scaled.append((name, *fraction, types[name] == "INT"))
            layout += f"{2 * (visitor.offset - at)}x{code}"
            at = visitor.end
            plain.append(name)
            if code in "fd":
                self._floats.append((name, visitor))
        self._plain = tuple(plain)
        self._layout = struct.Struct(f"{layout}{2 * (request.end - at)}x")

    def decode(self, reply: bytes) -> dict[str, Value | ConversionError]:
        """The value of each property, or why it has none.

        Raises:
            BadReply: The reply has not what was asked for.
        """
        request = self.request
        if request.register in BITS:
            bits = pdu.parse_bits(reply, request.count)
            return {name: self._decoded(name, visitor, bits) for name, visitor in request.items}
        data = pdu.register_bytes(reply, request.count)
        results: dict[str, Value | ConversionError] = dict(zip(self._plain, self._layout.unpack(data), strict=True))
        for name, factor, summand, divisor, is_int in self._scaled:
            number = results[name] * factor + summand  # type: ignore[operator]  # a whole number
            whole, rest = divmod(number, divisor)
            if not rest:
                results[name] = whole
            elif is_int:  # the fraction is cut off, towards 0
                results[name] = whole + (number < 0)
            else:
                results[name] = number / divisor  # the float nearest to the exact value, as of a decimal
        others = self._others
        if self._floats:
            others = others + [item for item in self._floats if not math.isfinite(results[item[0]])]  # type: ignore[arg-type]  # floats
        if others:
            words = struct.unpack(f">{request.count}H", data)
            for name, visitor in others:
                results[name] = self._decoded(name, visitor, words)
        return results

    def raw(self, name: str, reply: bytes) -> str:
        """The registers of one property in hexadecimal digits, or all bits of the reply; for the log."""
        visitor = next(v for n, v in self.request.items if n == name)
        if visitor.is_bits:
            return reply[2:].hex()
        start = 2 + 2 * (visitor.offset - self.request.start)
        return reply[start : start + 2 * visitor.limit].hex()

    def _decoded(
        self, name: str, visitor: ModbusVisitor, cells: list[bool] | tuple[int, ...]
    ) -> Value | ConversionError:
        part = cells[visitor.offset - self.request.start : visitor.end - self.request.start]
        try:
            decode = decode_bits if visitor.is_bits else decode_registers
            return decode(part, visitor, self.types[name])  # type: ignore[arg-type]  # bits for the one, words for the other
        except ConversionError as error:
            return error


def _plain_code(visitor: ModbusVisitor) -> str:
    """How `struct` calls the property's number, if its registers hold just that; otherwise empty."""
    swapped = visitor.is_swap or (visitor.is_register_swap and visitor.limit > 1)
    if visitor.is_bits or swapped or visitor.bit is not None or visitor.byte_order not in _OWN_ORDER:
        return ""
    return _PLAIN.get((visitor.data_type, visitor.limit), "")


def _fraction(visitor: ModbusVisitor, code: str) -> tuple[int, int, int] | None:
    """(f, s, d) so that raw × `scale` + `bias` is (raw × f + s) / d in whole numbers; None where that does not do."""
    if visitor.scale == 1 and not visitor.bias:
        return 1, 0, 1
    if code not in "HhIi":
        return None
    factor, divisor = visitor.scale.as_integer_ratio()
    summand, bias_divisor = visitor.bias.as_integer_ratio()
    factor, summand, divisor = factor * bias_divisor, summand * divisor, divisor * bias_divisor
    if (abs(factor) << 32) + abs(summand) >= divisor << 62:  # might not fit an INT
        return None
    return factor, summand, divisor
