"""What is simulated: what each unit holds at the start, and what moves it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from mappers.drivers.modbus.plant import Boiler, Image, boiler_image
from mappers.drivers.modbus.simulator.memory import ANY_UNIT, Memory

__all__ = ["Motion", "Scene", "boiler_scene"]


class Motion(Protocol):
    """Moves what the units hold."""

    every_s: float
    """Seconds between two moves."""

    def move(self, memory: Memory, elapsed_s: float) -> None:
        """One move, that long after the start. Never waits."""
        ...


class Scene(Struct, frozen=True):
    """Units by id, and their movement; without one they stand still until written to."""

    units: Mapping[int, Image]
    motion: Motion | None = None


def boiler_scene(seed: int = 0, *, units: Sequence[int] = ()) -> Scene:
    """A boiler of `plant` on each unit, moving once a second, the same way for the same seed.

    Args:
        units: None: one boiler, on every unit.
    """
    boilers = {unit: Boiler() for unit in units or (ANY_UNIT,)}
    return Scene({unit: boiler_image(boiler) for unit, boiler in boilers.items()}, _BoilerMotion(boilers, seed))


class _BoilerMotion:
    every_s = 1.0

    def __init__(self, boilers: dict[int, Boiler], seed: int) -> None:
        self._boilers = boilers
        self._rng = random.Random(seed)  # noqa: S311  # a wandering temperature

    def move(self, memory: Memory, elapsed_s: float) -> None:  # noqa: ARG002  # a boiler goes by the second
        for unit, boiler in self._boilers.items():
            (set_point,) = memory.read(unit, "HoldingRegister", 0)
            (pump,) = memory.read(unit, "CoilRegister", 0)
            boiler = boiler.step(set_point_c=set_point / 10, pump=bool(pump), rng=self._rng)
            self._boilers[unit] = boiler
            memory.write(unit, "InputRegister", 0, boiler.input_registers())
            memory.write(unit, "DiscreteInputRegister", 0, [boiler.door_open])
