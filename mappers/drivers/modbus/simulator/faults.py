"""What a simulated device does wrong, as switches that may be turned while it runs, and their text form. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, get_args

import msgspec
from msgspec import Struct

from dmi.errors import ConfigError
from mappers.drivers.modbus.settings import BITS, MAX_REGISTERS, Register

__all__ = ["FAULTS", "Faults", "parse_faults"]

_MAX_DELAY_S: Final = 3600.0


class Faults(Struct):
    """All off at first. Probabilities are from 0 to 1, for each reply.

    `drop`, `disconnect`, `garbage`, `short`, `wrong_unit` and `wrong_transaction` exclude one another in one reply, and
    are tried in that order.
    """

    delay_s: float = 0.0
    """Seconds before each reply."""
    drop: float = 0.0
    """No reply."""
    disconnect: float = 0.0
    """The connection is cut in place of a reply; on a serial line and over UDP there is none, so no reply."""
    garbage: float = 0.0
    """Random bytes, as many as the reply has."""
    short: float = 0.0
    """The first half of the reply."""
    wrong_unit: float = 0.0
    """The reply of another unit."""
    wrong_transaction: float = 0.0
    """A reply to another transaction; RTU and ASCII have no number for them and are not changed."""
    silent_units: set[int] = msgspec.field(default_factory=set)
    """Units that never reply."""
    exceptions: dict[tuple[Register | None, int | None], int] = msgspec.field(default_factory=dict)
    """(kind of register or None for any, PDU address or None for any) → exception code of a request that covers it."""
    ignored: set[tuple[Register | None, int]] = msgspec.field(default_factory=set)
    """(kind of register or None for any, PDU address): requests that cover it get no reply, where one should refuse."""
    refused_functions: set[int] = msgspec.field(default_factory=set)
    """Function codes that the device does not know: exception 1."""
    max_registers: int = MAX_REGISTERS
    """Requests for more registers, or 16 times as many bits, are refused with exception 3."""
    seen: Counter[str] = msgspec.field(default_factory=Counter)
    """How often each fault struck, by its name here."""

    def clear(self) -> None:
        """All off again; what was `seen` stays counted."""
        off = Faults()
        for field in msgspec.structs.fields(Faults):
            if field.name != "seen":
                setattr(self, field.name, getattr(off, field.name))

    def refusal(self, function: int, register: Register | None, address: int, count: int) -> int:
        """The exception code a request is answered with; 0: none."""
        if function in self.refused_functions:
            self.seen["refused_functions"] += 1
            return 1
        if register is None:
            return 0
        if count > self.max_registers * (16 if register in BITS else 1):
            self.seen["max_registers"] += 1
            return 3
        for (kind, at), code in self.exceptions.items():
            if kind in (None, register) and (at is None or address <= at < address + count):
                self.seen["exceptions"] += 1
                return code
        return 0

    def ignores(self, register: Register | None, address: int, count: int) -> bool:
        """Whether a request is one that the device does not answer where it should refuse."""
        if register is None or not any(
            kind in (None, register) and address <= at < address + count for kind, at in self.ignored
        ):
            return False
        self.seen["ignored"] += 1
        return True

    def strike(self, rng: random.Random) -> str:
        """Which of the faults that exclude one another strikes this reply; empty: none."""
        for name in ("drop", "disconnect", "garbage", "short", "wrong_unit", "wrong_transaction"):
            chance = getattr(self, name)
            if chance and rng.random() < chance:
                self.seen[name] += 1
                return name
        return ""


FAULTS: Final = (
    "delay=500ms, drop=0.1, disconnect=0.01, garbage=0.05, short=0.05, wrong-unit=0.05, wrong-transaction=0.05, "
    "silent-unit=3, exception=2@40, exception=4@HoldingRegister:7, ignore=50, refuse-function=22, max-registers=16"
)
"""One of each, for help texts."""


def parse_faults(texts: Iterable[str], onto: Faults | None = None) -> Faults:
    """Switch faults: `delay=500ms,drop=0.1,silent-unit=3`; a key may come again where more than one makes sense.

    Args:
        onto: Switched in place, and only if every text is right. None: a fresh one.

    Raises:
        ConfigError: `path` is the key.
    """
    trial = Faults()
    pairs = [pair.strip() for text in texts for pair in text.split(",") if pair.strip()]
    for faults in (trial, onto):
        for pair in pairs if faults is not None else ():
            key, _, value = (part.strip() for part in pair.partition("="))
            switch = _SWITCHES.get(key)
            if switch is None:
                raise ConfigError(key, f"there is no such fault: there are {', '.join(_SWITCHES)}")
            try:
                assert faults is not None  # noqa: S101  # for mypy
                switch(faults, value)
            except ValueError as error:
                raise ConfigError(key, f"{value!r} {error}") from None
    return trial if onto is None else onto


def _chance(name: str) -> Callable[[Faults, str], None]:
    def switch(faults: Faults, text: str) -> None:
        setattr(faults, name, _number(text, 0, 1, "is not a probability from 0 to 1"))

    return switch


def _delay(faults: Faults, text: str) -> None:
    factor = 0.001 if text.endswith("ms") else 1.0
    number = text.removesuffix("ms").removesuffix("s")
    faults.delay_s = factor * _number(number, 0, _MAX_DELAY_S / factor, "is not a time such as 500ms or 2s")


def _silent(faults: Faults, text: str) -> None:
    faults.silent_units.add(int(_number(text, 0, 255, "is not a unit from 0 to 255")))


def _exception(faults: Faults, text: str) -> None:
    hint = "is not CODE@ADDRESS, CODE@KIND:ADDRESS or CODE@*, such as 2@40 or 4@HoldingRegister:7"
    code_text, _, where = text.partition("@")
    code = int(_number(code_text, 1, 255, hint))
    faults.exceptions[_place(where, hint, any_address=True)] = code


def _ignore(faults: Faults, text: str) -> None:
    kind, address = _place(text, "is not ADDRESS or KIND:ADDRESS, such as 50 or HoldingRegister:7")
    if address is not None:
        faults.ignored.add((kind, address))


def _place(text: str, hint: str, *, any_address: bool = False) -> tuple[Register | None, int | None]:
    kind_text, colon, at = text.rpartition(":")
    kinds: dict[str, Register] = {str(kind).lower(): kind for kind in get_args(Register)}
    kind = kinds.get(kind_text.strip().lower()) if colon else None
    if colon and kind is None:
        raise ValueError(hint)
    if any_address and at.strip() == "*":
        return kind, None
    return kind, int(_number(at, 0, 65535, hint))


def _refuse(faults: Faults, text: str) -> None:
    faults.refused_functions.add(int(_number(text, 1, 127, "is not a function code from 1 to 127")))


def _most(faults: Faults, text: str) -> None:
    faults.max_registers = int(_number(text, 1, MAX_REGISTERS, f"is not a number from 1 to {MAX_REGISTERS}"))


def _number(text: str, least: float, most: float, problem: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(problem) from None
    if not least <= number <= most:
        raise ValueError(problem)
    return number


_SWITCHES: Final[dict[str, Callable[[Faults, str], None]]] = {
    "delay": _delay,
    "drop": _chance("drop"),
    "disconnect": _chance("disconnect"),
    "garbage": _chance("garbage"),
    "short": _chance("short"),
    "wrong-unit": _chance("wrong_unit"),
    "wrong-transaction": _chance("wrong_transaction"),
    "silent-unit": _silent,
    "exception": _exception,
    "ignore": _ignore,
    "refuse-function": _refuse,
    "max-registers": _most,
}
