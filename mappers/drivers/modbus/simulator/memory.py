"""What the units of a simulated device hold, in the shape pymodbus' servers ask for it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pymodbus.constants import ExcCodes

from mappers.drivers.modbus.plant import Image
from mappers.drivers.modbus.settings import Register

__all__ = ["ANY_UNIT", "KINDS", "Memory"]

ANY_UNIT: Final = 0
"""Unit 0 stands in for every unit that is not given."""

KINDS: Final[dict[int, Register]] = {
    1: "CoilRegister",
    2: "DiscreteInputRegister",
    3: "HoldingRegister",
    4: "InputRegister",
    5: "CoilRegister",
    6: "HoldingRegister",
    15: "CoilRegister",
    16: "HoldingRegister",
    22: "HoldingRegister",
    23: "HoldingRegister",
}
"""Function code → what it is about."""


class Memory:
    """Address → value, per unit and kind of register. Addresses that are not there answer exception 2.

    The two `async_` methods are the part of pymodbus' datastore that requests call.
    """

    def __init__(self, units: Mapping[int, Image]) -> None:
        self._units: dict[int, dict[Register, dict[int, int]]] = {
            unit: {
                "CoilRegister": {a: int(v) for a, v in image.coils.items()},
                "DiscreteInputRegister": {a: int(v) for a, v in image.discrete_inputs.items()},
                "HoldingRegister": dict(image.holding_registers),
                "InputRegister": dict(image.input_registers),
            }
            for unit, image in units.items()
        }
        self._identities = {unit: dict(image.identity) for unit, image in units.items()}

    def has(self, unit: int) -> bool:
        return unit in self._units or ANY_UNIT in self._units

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(self._units)

    def identity(self, unit: int) -> Mapping[int, str]:
        return self._identities.get(unit) or self._identities.get(ANY_UNIT, {})

    def read(self, unit: int, register: Register, address: int, count: int = 1) -> list[int]:
        """Raises: KeyError: No such unit, or no such address."""
        cells = self._cells(unit, register)
        return [cells[a] for a in range(address, address + count)]

    def write(self, unit: int, register: Register, address: int, values: Sequence[int]) -> None:
        """Raises: KeyError: No such unit, or no such address; nothing was changed."""
        cells = self._cells(unit, register)
        for a in range(address, address + len(values)):
            cells[a]
        cells.update(zip(range(address, address + len(values)), values, strict=True))

    async def async_getValues(  # noqa: N802  # pymodbus' name
        self, unit: int, function: int, address: int, count: int = 1
    ) -> list[int] | ExcCodes:
        try:
            return self.read(unit, KINDS[function], address, count)
        except KeyError:
            return ExcCodes.ILLEGAL_ADDRESS

    async def async_setValues(  # noqa: N802  # as above
        self, unit: int, function: int, address: int, values: Sequence[int]
    ) -> ExcCodes | None:
        try:
            self.write(unit, KINDS[function], address, [int(v) for v in values])
        except KeyError:
            return ExcCodes.ILLEGAL_ADDRESS
        return None

    def _cells(self, unit: int, register: Register) -> dict[int, int]:
        kinds = self._units.get(unit)
        return (self._units[ANY_UNIT] if kinds is None else kinds)[register]
