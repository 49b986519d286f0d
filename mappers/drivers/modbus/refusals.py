"""Exception codes as errors that say what to do (MODBUS Application Protocol V1.1b3, 7)."""

from __future__ import annotations

from typing import Final

from dmi.types import DeviceId
from mappers.sdk import DeviceError, DeviceRejected, DeviceUnreachable

__all__ = ["DEVICE_FAILURE", "NO_ANSWER", "SPLITTABLE", "refusal"]

NO_ANSWER: Final = 11
"""A gateway's answer for a unit that does not answer it: a timeout on the other side."""
DEVICE_FAILURE: Final = 4
SPLITTABLE: Final = frozenset({2, 3, DEVICE_FAILURE})
"""Refusals that one register of several may be the cause of; devices differ in which they answer."""

_FUNCTIONS: Final = {
    1: "read coils",
    2: "read discrete inputs",
    3: "read holding registers",
    4: "read input registers",
    5: "write single coil",
    6: "write single register",
    15: "write multiple coils",
    16: "write multiple registers",
    22: "mask write register",
    23: "read/write multiple registers",
    43: "read device identification",
}
_REASONS: Final = {
    2: "illegal data address: the device has no such register; check register, offset and limit",
    3: "illegal data value: the device refuses the value or the length; check limit, or lower maxRegisters",
    4: "device failure: the device could not do it; look at its own diagnostics",
    5: "acknowledged, but it takes the device long; it is tried again",
    6: "device busy with something long; it is tried again",
    7: "negative acknowledge: the device cannot do it in its present state",
    8: "memory parity error: the device's memory is damaged; it wants service",
    9: "refused for a reason of its own; see the device's manual",
    NO_ANSWER: "the gateway got no reply from the unit; check slaveID, and the unit's power and wiring",
}
_HINTS: Final = {
    5: "; writeFunction: multiple might work",
    6: "; writeFunction: multiple might work",
    15: "; writeFunction: single might work, one coil at a time",
    16: "; writeFunction: single might work, for one register",
    22: "; writeFunction: single reads, changes and writes the register instead",
    23: "; leave writeFunction out",
}
_NO_PATH: Final = 10


def refusal(device_id: DeviceId, function: int, code: int) -> DeviceError:
    """What an exception reply to `function` means. Only a missing way to the unit is not the unit's own refusal."""
    if code == _NO_PATH:
        return DeviceUnreachable(
            device_id, "the gateway has no path to the unit (exception 10); check slaveID and the gateway's settings"
        )
    if code == 1:
        reason = f"illegal function: the device cannot do {_FUNCTIONS.get(function, 'this')}{_HINTS.get(function, '')}"
        return DeviceRejected(device_id, f"{reason} (function {function}, exception 1)", code)
    reason = _REASONS.get(code, "refused; see the device's manual")
    return DeviceRejected(device_id, f"{reason} (exception {code})", code)
