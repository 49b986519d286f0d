"""Properties of a simulated unit: what each holds or how it moves, in a manifest's own terms, and where. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from dmi.errors import ConfigError, ConversionError
from dmi.values import Value
from mappers.drivers.modbus.codec import encode_bits, encode_registers, merge_bits
from mappers.drivers.modbus.plant import Image
from mappers.drivers.modbus.settings import ModbusVisitor, Register
from mappers.drivers.modbus.simulator.memory import Memory
from mappers.drivers.modbus.simulator.waves import Wave, value_at

__all__ = ["Cell", "CellMotion", "encode", "image_of", "repeated"]


class Cell(Struct, frozen=True):
    """One property. Either `wave` moves it, or it holds `value` until it is written to."""

    path: str
    """Where it is declared, for errors."""
    visitor: ModbusVisitor
    value: Value = 0
    wave: Wave | None = None


def encode(value: Value, visitor: ModbusVisitor) -> list[int]:
    """Value → what its registers, or its coils, hold.

    Raises:
        ConversionError: They cannot hold it.
    """
    if visitor.is_bits:
        return [int(bit) for bit in encode_bits(value, visitor)]
    return encode_registers(value, visitor)


def image_of(cells: Iterable[Cell], identity: Mapping[int, str], seed: int) -> tuple[Image, list[_Moving]]:
    """What a unit holds at the start, and those of its cells that move.

    Raises:
        ConfigError: Two cells are at the same address, or one cannot hold what it is to; `path` is the cell's.
    """
    held: dict[Register, dict[int, int]] = {
        "CoilRegister": {},
        "DiscreteInputRegister": {},
        "HoldingRegister": {},
        "InputRegister": {},
    }
    taken: dict[tuple[Register, int], Cell] = {}
    moving: list[_Moving] = []
    for index, cell in enumerate(cells):
        visitor = cell.visitor
        for address in range(visitor.offset, visitor.end):
            other = taken.setdefault((visitor.register, address), cell)
            if other is not cell and (visitor.bit is None or other.visitor.bit is None):
                raise ConfigError(cell.path, f"{visitor.register} {address} is taken by {other.path}")
        block = held[visitor.register]
        if cell.wave is None:
            value = cell.value
        else:
            mover = _Moving(cell, random.Random(f"{seed} {index}"))  # noqa: S311  # values to look at
            value = mover.next(0.0)
            moving.append(mover)
        try:
            if cell.wave is not None:
                for end in (cell.wave.low, cell.wave.high):
                    encode(_typed(end, cell), visitor)
            _store(block, cell, value)
        except ConversionError as error:
            raise ConfigError(cell.path, str(error)) from None
    image = Image(
        coils={a: bool(v) for a, v in held["CoilRegister"].items()},
        discrete_inputs={a: bool(v) for a, v in held["DiscreteInputRegister"].items()},
        holding_registers=held["HoldingRegister"],
        input_registers=held["InputRegister"],
        identity=dict(identity),
    )
    return image, moving


class CellMotion:
    """Moves the cells of every unit that have a wave."""

    def __init__(self, every_s: float, moving: Mapping[int, Sequence[_Moving]]) -> None:
        self.every_s = every_s
        self._moving = moving

    def move(self, memory: Memory, elapsed_s: float) -> None:
        for unit, movers in self._moving.items():
            for mover in movers:
                visitor, value = mover.cell.visitor, mover.next(elapsed_s)
                if visitor.bit is None:
                    words = encode(value, visitor)
                else:
                    words = [merge_bits(memory.read(unit, visitor.register, visitor.offset)[0], value, visitor)]
                memory.write(unit, visitor.register, visitor.offset, words)


class _Moving:
    def __init__(self, cell: Cell, rng: random.Random) -> None:
        self.cell = cell
        self._rng = rng
        self._last: float | None = None

    def next(self, elapsed_s: float) -> Value:
        wave = self.cell.wave
        assert wave is not None  # noqa: S101  # for mypy
        self._last = value_at(wave, elapsed_s, self._last, self._rng)
        return _typed(self._last, self.cell)


def _typed(number: float, cell: Cell) -> Value:
    if cell.visitor.data_type == "boolean":
        wave = cell.wave or Wave("square")
        return number > (wave.low + wave.high) / 2
    return number


def _store(block: dict[int, int], cell: Cell, value: Value) -> None:
    visitor = cell.visitor
    if visitor.bit is None:
        block.update(enumerate(encode(value, visitor), visitor.offset))
    else:
        block[visitor.offset] = merge_bits(block.get(visitor.offset, 0), value, visitor)


def repeated(cell: Cell, index: int) -> Cell:
    """The cell as many places further on as it is wide, `index` times.

    Raises:
        ConfigError: That is past the last address.
    """
    visitor = cell.visitor
    offset = visitor.offset + index * visitor.limit
    if offset + visitor.limit > 65_536:
        raise ConfigError(cell.path, "goes past the last address, 65535")
    return msgspec.structs.replace(cell, visitor=msgspec.structs.replace(visitor, offset=offset))
