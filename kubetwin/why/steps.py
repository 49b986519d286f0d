"""The steps of the path of a value, in order, and what is said of each.

A step's number is its place on the path, and its exit code is 10 more: both stay as they are, for scripts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

from msgspec import Struct

__all__ = [
    "ALL_FINE",
    "FIRST_CODE",
    "NOTHING_ASKED",
    "TITLES",
    "Detail",
    "State",
    "Step",
    "StepNumber",
    "Verdict",
    "step",
]

ALL_FINE: Final = 0
NOTHING_ASKED: Final = 3
"""Neither end of the path could be asked. 2 is click's: wrong use of the command."""
FIRST_CODE: Final = 10

State = Literal["ok", "broken", "unknown", "skipped"]
"""`unknown`: could not be seen from where we are. `skipped`: says nothing now, because of a step before, or because
nothing of the kind is declared."""


class StepNumber(IntEnum):
    API = 1
    DEVICE = 2
    MODEL = 3
    DECLARATION = 4
    NODE = 5
    CLOUDCORE = 6
    LINK = 7
    STORE = 8
    KNOWN = 9
    MAPPER = 10
    ANSWERING = 11
    TAKEN = 12
    ONLINE = 13
    READ = 14
    REPORTED = 15
    CONFIRMED = 16
    VISIBLE = 17
    DESIRED = 18

    @property
    def exit_code(self) -> int:
        return FIRST_CODE + self


TITLES: Final[dict[StepNumber, str]] = {
    StepNumber.API: "Kubernetes API",
    StepNumber.DEVICE: "Device",
    StepNumber.MODEL: "DeviceModel",
    StepNumber.DECLARATION: "declaration",
    StepNumber.NODE: "node named",
    StepNumber.CLOUDCORE: "CloudCore",
    StepNumber.LINK: "node connected",
    StepNumber.STORE: "edge core's store",
    StepNumber.KNOWN: "known at the edge",
    StepNumber.MAPPER: "mapper registered",
    StepNumber.ANSWERING: "mapper answering",
    StepNumber.TAKEN: "mapper has it",
    StepNumber.ONLINE: "device online",
    StepNumber.READ: "read",
    StepNumber.REPORTED: "reported",
    StepNumber.CONFIRMED: "sent and confirmed",
    StepNumber.VISIBLE: "visible at the API",
    StepNumber.DESIRED: "desired applied",
}


class Detail(Struct, frozen=True, omit_defaults=True):
    """What is said of one property at one step."""

    property_name: str
    state: State
    message: str
    todo: str = ""
    at_ms: int = 0
    """Epoch milliseconds, by the clock of whoever noted it."""
    age_s: float | None = None
    passing: bool = False
    """May be over in a moment: worth a second look before it counts."""


class Step(Struct, frozen=True, omit_defaults=True):
    number: int
    name: str
    state: State
    message: str
    todo: str = ""
    """What to do about it, when broken."""
    at_ms: int = 0
    """Since when, or when last; epoch milliseconds by the clock of whoever noted it, 0: nobody did."""
    age_s: float | None = None
    passing: bool = False
    properties: tuple[Detail, ...] = ()


def step(
    number: StepNumber, state: State, message: str, todo: str = "", *, at_ms: int = 0, age_s: float | None = None,
    passing: bool = False,
) -> Step:  # fmt: skip
    """`todo` and `passing` are said of a broken step only."""
    return Step(
        number=number, name=TITLES[number], state=state, message=message, todo=todo if state == "broken" else "",
        at_ms=at_ms, age_s=age_s, passing=passing and state == "broken",
    )  # fmt: skip


class Verdict(Struct, frozen=True):
    """All that is to be said of one device."""

    device: str
    node: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    """What lies beside the path, and which half of it could not be seen."""
    first_broken: int
    """Number of the first broken step; 0: none is."""
    summary: str
    """One line."""
    todo: str
    exit_code: int
    clock_ahead_s: float | None = None
    """How far the edge's clock is ahead of the one here; None: not known."""
