"""Looking for Modbus devices: which units answer, what they say of themselves, and which registers can be read.

Nothing is written: the only functions used are the reads 1 to 4 and 43/14, read device identification.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from dmi.types import Scalar
from mappers.drivers.modbus import pdu
from mappers.drivers.modbus.settings import ADDRESSES, BITS, MAX_BITS, READ_CODES, SERIAL, ModbusConfig, Register
from mappers.sdk import (
    ConfigError,
    DeviceId,
    DeviceProtocolError,
    DeviceTimeout,
    DeviceUnreachable,
    Found,
    FoundProperty,
)

__all__ = ["DISCOVERY", "MAX_PROPERTIES", "Ask", "discover", "parse_ranges", "probe_timeout_s"]

DISCOVERY: Final = DeviceId("discover/modbus")
"""Stands for the device in errors while there is none yet."""
MAX_PROPERTIES: Final = 64
"""Properties proposed for one device; what is left out is said in its description."""
_PROBE_TIMEOUT_S: Final = 0.3
"""Silence after which nobody is there. A device that needs longer is found with `discoverUnits` and its `timeout`."""
_UNITS: Final = range(1, 248)
"""Addresses of devices on a serial line (over Serial Line V1.02, 2.2)."""
_UNLIKELY: Final = (247, 246, 201)
"""A device that answers as all of these does not look at the unit."""
_ABSENT: Final = frozenset({10, 11})
"""A gateway's answer for a unit that is not there."""
_TEXT_WORDS: Final = 3
"""Registers of printable characters in a row that are taken for a text."""
_SPANS_SHOWN: Final = 6
_OURS: Final = ("discover_units", "discover_registers")
_PARITY: Final = {"E": "even", "O": "odd"}
_ONE_BY_ONE: Final = 8
"""A refused stretch no longer than this is read one by one: most likely nothing of it is there."""
_REQUESTS_A_DEVICE: Final = 2000
"""A map full of holes ends the search of a device here, with what was found so far."""


class Ask(Protocol):
    """Sends a request to a unit and gives back the PDU of the reply; one at a time."""

    async def __call__(self, unit: int, request: bytes, /) -> bytes:
        """Raises: DeviceError: No reply, or one that makes no sense."""
        ...


class _Block(Struct, frozen=True):
    """Readable cells side by side, with what they held."""

    register: Register
    start: int
    cells: tuple[int, ...]


async def discover(config: ModbusConfig, ask: Ask) -> AsyncGenerator[Found, None]:
    """Devices, as they are found.

    Args:
        config: After `check_config`. `discoverUnits` and `discoverRegisters` say where to look.
        ask: With a short timeout, see `probe_timeout_s`.

    Raises:
        ConfigError: A range is wrong.
        DeviceUnreachable: The line or the network is lost, or no unit answers.
    """
    spans = parse_ranges("discoverRegisters", config.discover_registers, ADDRESSES - 1)
    units, why = await _units(config, ask)
    found = False
    for unit in units:
        if not await _answers(ask, unit):
            continue
        found = True
        yield await _device(config, _Search(ask, unit), spans, why)
    if not found:
        where = config.serial_name if config.mode in SERIAL else "{}:{}".format(*config.endpoint)
        raise DeviceUnreachable(DISCOVERY, f"no unit answers at {where}, of {_shown(units)}")


def probe_timeout_s(config: ModbusConfig) -> float:
    """Seconds to wait for a reply: the config's, but where a whole range is scanned not more than 0.3."""
    full = config.timeout / 1000
    return full if config.discover_units or config.slave_id else min(full, _PROBE_TIMEOUT_S)


def parse_ranges(key: str, text: str, last: int) -> tuple[range, ...]:
    """`1-10,20` → ranges from 0 to `last`, in order and apart.

    Raises:
        ConfigError: It is not of that form; `path` is the key.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high <= last:
            raise ConfigError(key, f"{text[:64]!r} is not of the form 1-10,20 with numbers from 0 to {last}")
        numbers.update(range(low, high + 1))
    spans: list[range] = []
    for number in sorted(numbers):
        if spans and spans[-1].stop == number:
            spans[-1] = range(spans[-1].start, number + 1)
        else:
            spans.append(range(number, number + 1))
    return tuple(spans)


async def _units(config: ModbusConfig, ask: Ask) -> tuple[Sequence[int], str]:
    """Which units to look for, and a remark about them for the descriptions."""
    if config.discover_units.strip():
        spans = parse_ranges("discoverUnits", config.discover_units, 255)
        return [unit for span in spans for unit in span], ""
    if config.slave_id:
        return [config.slave_id], ""
    if config.mode not in SERIAL:
        for unit in _UNLIKELY:
            if not await _answers(ask, unit):
                break
        else:
            return [1], "it answers every unit"
    return _UNITS, ""


async def _answers(ask: Ask, unit: int) -> bool:
    """Whether anybody answers as this unit; a refusal is an answer too."""
    try:
        reply = await ask(unit, pdu.read(READ_CODES["HoldingRegister"], 0, 1))
        return pdu.exception_code(reply) not in _ABSENT
    except DeviceTimeout:
        return False
    except (DeviceProtocolError, pdu.BadReply):
        return True  # somebody makes a noise there: worth a look


async def _device(config: ModbusConfig, search: _Search, spans: Sequence[range], why: str) -> Found:
    identity = await search.identify()
    blocks = [block for register in READ_CODES for span in spans for block in await search.blocks(register, span)]
    properties = _properties(blocks)
    remarks = [", ".join(identity.values()) or "says nothing of itself", _summary(blocks)]
    if why:
        remarks.append(why)
    if len(properties) > MAX_PROPERTIES:
        remarks.append(f"{len(properties)} could be properties, the first {MAX_PROPERTIES} are proposed")
    if search.cut_short:
        remarks.append(f"not all addresses were looked at: {search.cut_short}")
    return Found(
        name=_name(identity, config, search.unit),
        config=_config(config, search.unit),
        properties=tuple(properties[:MAX_PROPERTIES]),
        description="; ".join(remarks),
    )


class _Search:
    """One unit."""

    def __init__(self, ask: Ask, unit: int) -> None:
        self.unit = unit
        self.cut_short = ""
        """Why the search ended early; empty: it did not."""
        self._ask = ask
        self._left = _REQUESTS_A_DEVICE

    async def identify(self) -> Mapping[int, str]:
        """Object id → text: 0 vendor, 1 product, 2 revision; empty where the unit does not know function 43 (6.21)."""
        texts: dict[int, str] = {}
        following = 0
        for _ in range(4):  # the three objects fit one reply; more only where texts are long
            try:
                reply = await self._ask(self.unit, struct.pack(">BBBB", 43, 14, 1, following))
                if pdu.exception_code(reply):
                    break
                more, following, objects = _identity(reply)
            except (DeviceTimeout, DeviceProtocolError, pdu.BadReply):
                break
            texts |= objects
            if not more:
                break
        return {i: text for i, text in sorted(texts.items()) if text}

    async def blocks(self, register: Register, span: range) -> list[_Block]:
        """What can be read of a span, by halving what is refused."""
        blocks: list[_Block] = []
        waiting = [
            range(start, min(start + self._limit(register), span.stop))
            for start in range(span.start, span.stop, self._limit(register))
        ][::-1]
        while waiting and not self.cut_short:
            part = waiting.pop()
            code, cells = await self._read(register, part)
            if cells:
                _append(blocks, _Block(register, part.start, cells))
            elif code == 1:  # no such kind of register at all
                break
            elif code and len(part) > 1:
                size = len(part) // 2 if len(part) > _ONE_BY_ONE else 1
                waiting += [part[at : at + size] for at in range(0, len(part), size)][::-1]
        return blocks

    def _limit(self, register: Register) -> int:
        return MAX_BITS if register in BITS else 125

    async def _read(self, register: Register, part: range) -> tuple[int, tuple[int, ...]]:
        """(exception code or 0, cells)."""
        problem = ""
        for _ in range(2):
            if self._left == 0:
                problem = f"{_REQUESTS_A_DEVICE} requests were made"
                break
            self._left -= 1
            try:
                reply = await self._ask(self.unit, pdu.read(READ_CODES[register], part.start, len(part)))
                if code := pdu.exception_code(reply):
                    return code, ()
                parse = pdu.parse_bits if register in BITS else pdu.parse_registers
                return 0, tuple(int(cell) for cell in parse(reply, len(part)))
            except (DeviceTimeout, DeviceProtocolError) as error:
                problem = f"{register} {part.start}: {error.problem}"
            except pdu.BadReply as error:
                problem = f"{register} {part.start}: {error}"
        self.cut_short = problem
        return 0, ()


def _append(blocks: list[_Block], block: _Block) -> None:
    last = blocks[-1] if blocks else None
    if last is not None and last.start + len(last.cells) == block.start:
        blocks[-1] = _Block(block.register, last.start, last.cells + block.cells)
    else:
        blocks.append(block)


def _identity(reply: bytes) -> tuple[bool, int, dict[int, str]]:
    """Whether more follows, from which object, and the objects of a reply to 43/14.

    Raises:
        BadReply: It is cut off, or another reply.
    """
    if len(reply) < 7 or reply[:2] != b"\x2b\x0e":
        raise pdu.BadReply("no device identification")
    texts: dict[int, str] = {}
    at = 7
    for _ in range(reply[6]):
        if len(reply) < at + 2 or len(reply) < at + 2 + reply[at + 1]:
            raise pdu.BadReply("a device identification that is cut off")
        text = reply[at + 2 : at + 2 + reply[at + 1]].decode("latin-1")
        texts[reply[at]] = "".join(c if c.isprintable() else " " for c in text).strip()[:64]
        at += 2 + reply[at + 1]
    return bool(reply[4]), reply[5], texts


def _properties(blocks: Iterable[_Block]) -> list[FoundProperty]:
    """What to propose, of each kind of register alike until there are enough; all of them if it is few."""
    kinds: dict[Register, list[FoundProperty]] = {register: [] for register in READ_CODES}
    for block in blocks:
        kinds[block.register] += _of_block(block)
    total = [p for each in kinds.values() for p in each]
    quota: dict[Register, int] = dict.fromkeys(kinds, 0)
    while sum(quota.values()) < min(MAX_PROPERTIES, len(total)):
        for register, each in kinds.items():
            if quota[register] < len(each) and sum(quota.values()) < MAX_PROPERTIES:
                quota[register] += 1
    first = [p for register, each in kinds.items() for p in each[: quota[register]]]
    return first + [p for register, each in kinds.items() for p in each[quota[register] :]]


def _of_block(block: _Block) -> Iterator[FoundProperty]:
    prefix = {"CoilRegister": "coil", "DiscreteInputRegister": "contact", "HoldingRegister": "holding",
              "InputRegister": "input"}[block.register]  # fmt: skip
    index = 0
    while index < len(block.cells):
        address, cell = block.start + index, block.cells[index]
        visitor: dict[str, Scalar] = {"register": block.register, "offset": address}
        words = _text_length(block.cells[index:]) if block.register not in BITS else 0
        if words:
            text = struct.pack(f">{words}H", *block.cells[index : index + words]).decode("ascii").rstrip("\0")
            visitor |= {"limit": words, "dataType": "string"}
            yield FoundProperty(f"{prefix}-{address}", "STRING", visitor, description=f"was {text!r}")
        elif block.register in BITS:
            yield FoundProperty(f"{prefix}-{address}", "BOOLEAN", visitor, description=f"was {cell}")
        else:
            visitor |= {"dataType": "uint16"}
            yield FoundProperty(f"{prefix}-{address}", "INT", visitor, description=f"was {cell} (0x{cell:04x})")
        index += words or 1


def _text_length(cells: Sequence[int]) -> int:
    """How many registers from here on look like text; 0: it does not."""
    words = 0
    for cell in cells:
        high, low = cell >> 8, cell & 0xFF
        if not 0x20 <= high < 0x7F or not (0x20 <= low < 0x7F or low == 0):
            break
        words += 1
        if low == 0:
            break
    return words if words >= _TEXT_WORDS else 0


def _summary(blocks: Iterable[_Block]) -> str:
    spans = [f"{b.register} {b.start}-{b.start + len(b.cells) - 1}" for b in blocks]
    shown = ", ".join(spans[:_SPANS_SHOWN]) + (f" and {len(spans) - _SPANS_SHOWN} more" if spans[_SPANS_SHOWN:] else "")
    return f"can be read: {shown}" if spans else "nothing can be read where it was looked"


def _name(identity: Mapping[int, str], config: ModbusConfig, unit: int) -> str:
    product = re.sub(r"[^a-z0-9]+", "-", identity.get(1, "").lower()).strip("-")
    where = "" if config.mode in SERIAL else "-" + re.sub(r"[^a-z0-9]+", "-", config.ip.lower()).strip("-")
    return f"{product[:30].strip('-') or 'modbus'}{where}-{unit}"


def _config(config: ModbusConfig, unit: int) -> dict[str, Scalar]:
    """The config as in the YAML, for this unit."""
    given: dict[str, Scalar] = {}
    for field in msgspec.structs.fields(ModbusConfig):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("slave_id", "parity", *_OURS):
            given[field.encode_name] = value
    if config.parity in _PARITY:
        given["parity"] = _PARITY[config.parity]
    return {**given, "slaveID": unit}


def _shown(units: Sequence[int]) -> str:
    return f"units {units[0]} to {units[-1]}" if len(units) > 1 else f"unit {units[0]}"
