"""What can go wrong between a mapper and its devices, shaped by what the runtime does next.

Of `dmi.errors`, `ConfigError` and `ConversionError` complete the set (a declaration or a value that cannot work), and
`UnknownProperty` for who asks for one that is not there.
"""

from __future__ import annotations

from typing import Final

from dmi.errors import ConfigError, ConversionError, UnknownProperty
from dmi.types import DeviceId

__all__ = [
    "ConfigError",
    "ConversionError",
    "DeviceError",
    "DeviceProtocolError",
    "DeviceRejected",
    "DeviceTimeout",
    "DeviceUnreachable",
    "DeviceUnsupported",
    "MapperError",
    "UnknownProperty",
    "plain_reason",
]

MAX_REASON: Final = 512


class MapperError(Exception):
    """Base of what the SDK and drivers raise beyond the device contract's own errors."""


class DeviceError(MapperError):
    """A device did not do what it was asked. `problem` is the sentence shown to people, without the device's id."""

    def __init__(self, device_id: DeviceId, problem: str) -> None:
        super().__init__(device_id, problem)
        self.device_id = device_id
        self.problem = problem

    def __str__(self) -> str:
        return f"device {self.device_id}: {self.problem}"


class DeviceUnreachable(DeviceError):
    """The link is gone: the runtime closes it and connects again, with back-off."""


class DeviceTimeout(DeviceError, TimeoutError):
    """No reply in time; the link stays usable and the next cycle tries again. A device that answers none of three reads
    in a row, and has no good value left, is shown as offline."""


class DeviceRejected(DeviceError):
    """The device answered, and refused. `code` is the protocol's own, such as a Modbus exception code."""

    def __init__(self, device_id: DeviceId, problem: str, code: int) -> None:
        super().__init__(device_id, problem)
        self.code = code


class DeviceProtocolError(DeviceError):
    """The answer makes no sense in the device's protocol, or the driver failed on it."""


class DeviceUnsupported(DeviceError):
    """The driver or the device has no such ability: not tried again before the next connect."""


def plain_reason(reason: str, most: int = MAX_REASON) -> str:
    """A reason as every wire takes it: no longer than `most` characters, and without halves of characters, which
    drivers get from decoding a device's text carelessly."""
    reason = reason[:most]
    return reason if reason.isascii() else reason.encode(errors="backslashreplace").decode()[:most]
