"""What can be wrong with a device's declaration, a value, or a call between mapper and edge core.

Shaped by what the caller does next: a `ConfigError` or `ConversionError` is shown and never retried, a
`PeerUnavailable` is retried with back-off, a `PeerRefused` is logged with the peer's own words.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConversionError",
    "DmiError",
    "Overloaded",
    "PeerRefused",
    "PeerTimeout",
    "PeerUnavailable",
    "UnknownDevice",
    "UnknownModel",
    "UnknownProperty",
]


class DmiError(Exception):
    """Base of everything the device contract raises."""


class ConfigError(DmiError):
    """A declaration that cannot work as it is written.

    `path` names the place as a path in the YAML, such as `spec.properties[2].visitors.configData.offset`.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class ConversionError(DmiError):
    """A value that its declared type or range cannot hold."""


class UnknownDevice(DmiError):
    """No device of that `namespace/name` here."""


class UnknownModel(DmiError):
    """No device model of that `namespace/name` here."""


class UnknownProperty(DmiError):
    """The device has no property, or no method, of that name."""


class PeerUnavailable(DmiError):
    """The other end could not be reached, or did not answer before the deadline."""


class PeerTimeout(PeerUnavailable):
    """It is connected and did not answer before the deadline: it may have done what it was asked, or may do it yet."""


class Overloaded(DmiError):
    """More calls than are taken at the moment; nothing was done, and the same call may work in a moment."""


class PeerRefused(DmiError):
    """The other end answered with an error. `code` is the gRPC status name, such as `INVALID_ARGUMENT`."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
