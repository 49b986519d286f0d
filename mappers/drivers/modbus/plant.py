"""A believable little plant for the simulator: a boiler that follows its set point. Pure.

| kind | address | what |
|---|---|---|
| input register | 0 | temperature, 0.1 Celsius |
| | 1–2 | pressure, bar, 32-bit float |
| | 3–4 | heating cycles since start, 32-bit unsigned |
| holding register | 0 | set point, 0.1 Celsius, writable |
| | 10–17 | label, 16 bytes of text, writable |
| coil | 0 | pump running, writable |
| discrete input | 0 | door open |

With the pump off the boiler cools down to the room.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import msgspec
from msgspec import Struct

__all__ = ["Boiler", "Image", "boiler_image", "text_words"]

ROOM_C = 21.0
LABEL = "Boiler 1"
LABEL_REGISTERS = 8


class Image(Struct, frozen=True):
    """What a simulated unit holds at the start: address → value, per kind. Other addresses answer exception 2."""

    coils: dict[int, bool] = {}
    discrete_inputs: dict[int, bool] = {}
    holding_registers: dict[int, int] = {}
    input_registers: dict[int, int] = {}
    identity: dict[int, str] = {}
    """What it says of itself: object id → text (V1.1b3, 6.21): 0 vendor, 1 product, 2 revision, 4 product name. Empty:
    it does not know function 43."""


class Boiler(Struct, frozen=True):
    """The plant's state, one second at a time."""

    temperature_c: float = 58.0
    pressure_bar: float = 1.45
    cycles: int = 0
    door_open: bool = False

    def step(self, *, set_point_c: float, pump: bool, rng: random.Random) -> Boiler:
        """One second later."""
        goal = set_point_c if pump else ROOM_C
        temperature = self.temperature_c + (goal - self.temperature_c) * (0.08 if pump else 0.02) + rng.gauss(0, 0.12)
        temperature = min(max(temperature, 0.0), 150.0)
        return msgspec.structs.replace(
            self,
            temperature_c=temperature,
            pressure_bar=round(1.0 + temperature / 130.0 + rng.gauss(0, 0.004), 3),
            cycles=(self.cycles + (1 if pump else 0)) % 2**32,
            door_open=not self.door_open if rng.random() < 0.05 else self.door_open,
        )

    def input_registers(self) -> list[int]:
        """Input registers 0 to 4."""
        tail = struct.pack(">fI", self.pressure_bar, self.cycles)
        return [round(self.temperature_c * 10), *struct.unpack(">4H", tail)]


def boiler_image(boiler: Boiler) -> Image:
    return Image(
        coils={0: True},
        discrete_inputs={0: boiler.door_open},
        holding_registers={0: 600, **dict(enumerate(text_words(LABEL, LABEL_REGISTERS), start=10))},
        input_registers=dict(enumerate(boiler.input_registers())),
        identity={0: "kubetwin", 1: "boiler", 2: "1"},
    )


def text_words(text: str, registers: int) -> Sequence[int]:
    data = text.encode()[: 2 * registers].ljust(2 * registers, b"\0")
    return struct.unpack(f">{registers}H", data)
