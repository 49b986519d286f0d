"""What a manifest says about a virtual device and its properties. Durations are milliseconds, as in any manifest."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from dmi.values import parse_value
from mappers.sdk import ConfigError, ConversionError, ModelProperty, Scalar, Value

__all__ = ["MAX_BLOCK_MS", "Fault", "VirtualConfig", "VirtualVisitor", "Waveform", "resolve_visitor", "start_value"]

Waveform = Literal["", "constant", "sine", "ramp", "triangle", "square", "randomWalk", "counter", "replay"]
Fault = Literal["", "latency", "jitter", "failRate", "failEvery", "garbage", "hang", "offline", "block"]

MAX_BLOCK_MS: Final = 10_000
_DAY_MS: Final = 24 * 3600 * 1000
_NUMBERS: Final = frozenset({"INT", "FLOAT", "DOUBLE", "BOOLEAN"})
_PERIODS_MS: Final[dict[str, int]] = {"counter": 1000, "randomWalk": 1000, "replay": 1000}
"""How long one step takes, where nothing is said; a whole swing of the other waveforms takes a minute."""
_MOST: Final[dict[str, float]] = {"INT": 2.0**63 - 1024, "FLOAT": 3.4e38, "DOUBLE": 2.0**1022}
"""Magnitude of a bound: the largest float below 2^63, about the largest of 32 bits, and what may be added to itself."""
_FAULT_TYPES: Final[dict[str, frozenset[str]]] = {
    "garbage": frozenset({"BOOLEAN"}),
    "hang": frozenset({"BOOLEAN"}),
    "offline": frozenset({"BOOLEAN"}),
    "failRate": frozenset({"FLOAT", "DOUBLE"}),
    "latency": frozenset({"INT"}),
    "jitter": frozenset({"INT"}),
    "failEvery": frozenset({"INT"}),
    "block": frozenset({"INT"}),
}


class VirtualConfig(Struct, frozen=True):
    """How the device behaves as a whole: `spec.protocol.configData`. Everything may be left out."""

    latency: Annotated[int, Meta(ge=0, le=600_000)] = 0
    """How long each request takes."""
    jitter: Annotated[int, Meta(ge=0, le=600_000)] = 0
    """Up to this much more, at random."""
    fail_rate: Annotated[float, Meta(ge=0, le=1)] = msgspec.field(default=0.0, name="failRate")
    """Share of the requests that get no reply: 0 none, 1 all."""
    fail_every: Annotated[int, Meta(ge=0, le=1_000_000)] = msgspec.field(default=0, name="failEvery")
    """Every so-manieth request gets no reply; 0: none."""
    garbage: bool = False
    """Every reply holds values that are none of their type."""
    hang: bool = False
    """Requests are never answered, and never time out."""
    offline: bool = False
    """The device cannot be reached."""
    block: Annotated[int, Meta(ge=0, le=MAX_BLOCK_MS)] = 0
    """Each request stops the whole mapper for so long, as a badly written driver does."""
    timeout: Annotated[int, Meta(ge=1, le=600_000)] = 2000
    """How long a request that gets no reply waits."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Of everything random, together with the names of device and property: the same seed, the same values."""


class VirtualVisitor(Struct, frozen=True):
    """What one property shows: `spec.properties[].visitors.configData`. Everything may be left out.

    Without a `waveform`, a read-only number swings as a `sine`, and anything else is a `constant`.
    """

    waveform: Waveform = ""
    """How the value moves with time. Times count from the epoch, those of `counter` and `replay` from the device's
    first connect. Whatever it is, a value that is written stays."""
    value: Scalar = ""
    """Of `constant`: the value, as it is reported. Empty: the minimum, false, or an empty text."""
    minimum: float | None = None
    """Lowest value; left out: the model's minimum, or 0."""
    maximum: float | None = None
    """Highest value, and where `counter` starts over; left out: the model's, or `minimum` + 100 (`counter`: none)."""
    period: Annotated[int, Meta(ge=0, le=366 * _DAY_MS)] = 0
    """Length of a swing, or of a step of `randomWalk`, `counter` and `replay`. 0: a minute, or a second for a step."""
    phase: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Where in its period the waveform is at the epoch: 0.25 is a quarter on."""
    step: float = 1.0
    """What `counter` adds each period."""
    decimals: Annotated[int, Meta(ge=0, le=12)] = 3
    """Digits after the point of FLOAT and DOUBLE."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Added to the device's."""
    file: str = ""
    """Of `replay`: a CSV file with a header line, relative to the mapper's replay folder, up to 4 MiB."""
    column: str = ""
    """Of `replay`: the column with the values."""
    time_column: str = msgspec.field(default="", name="timeColumn")
    """Of `replay`: the column with seconds, rising; left out: a row each `period`. After the last it starts over."""
    follows: str = ""
    """Name of a property of the same device whose number this one goes after, with a lag of `period`."""
    push: bool = False
    """The device sends the value by itself each `pushEvery`, instead of being asked."""
    push_every: Annotated[int, Meta(ge=10, le=_DAY_MS)] = msgspec.field(default=1000, name="pushEvery")
    fault: Fault = ""
    """This property is a switch: what is written to it becomes this fault of the device, until something else is."""
    device: str = ""
    """Of `fault`: the device it is done to, by name, in the same namespace and mapper; left out: the own one."""


def resolve_visitor(visitor: VirtualVisitor, model: ModelProperty) -> VirtualVisitor:
    """Fill in `waveform`, `minimum`, `maximum` and `period`, and refuse what makes no sense for the type.

    Raises:
        ConfigError: `path` is the key.
    """
    if visitor.fault:
        return _resolve_fault(visitor, model)
    if visitor.device:
        raise ConfigError("device", "goes with fault only")
    waveform = visitor.waveform or ("constant" if model.writable or model.type not in _NUMBERS else "sine")
    if visitor.follows:
        if visitor.waveform not in ("", "constant"):
            raise ConfigError("follows", f"cannot go with waveform {visitor.waveform}: leave one of them out")
        if model.type not in _NUMBERS - {"BOOLEAN"}:
            raise ConfigError("follows", f"a {model.type} cannot follow: only numbers can")
        waveform = "constant"
    if waveform not in ("constant", "replay") and model.type not in _NUMBERS:
        raise ConfigError("waveform", f"a {model.type} has no {waveform}: constant or replay are possible")
    if waveform == "replay":
        _check_replay(visitor)
    elif visitor.file or visitor.column or visitor.time_column:
        raise ConfigError("file", "file, column and timeColumn go with waveform replay only")
    minimum, maximum = _bounds(visitor, waveform, model)
    resolved = msgspec.structs.replace(
        visitor,
        waveform=waveform,
        minimum=minimum,
        maximum=maximum,
        period=visitor.period or _PERIODS_MS.get(waveform, 60_000),
    )
    start_value(resolved, model)
    return resolved


def start_value(visitor: VirtualVisitor, model: ModelProperty) -> Value:
    """What a `constant` shows until something is written.

    Raises:
        ConfigError: `value` is none of the property's type.
    """
    text = str(visitor.value).lower() if isinstance(visitor.value, bool) else str(visitor.value)
    if not text:
        match model.type:
            case "INT":
                return math.ceil(visitor.minimum or 0)
            case "FLOAT" | "DOUBLE":
                return float(visitor.minimum or 0)
            case "BOOLEAN":
                return False
            case "BYTES":
                return b""
            case _:
                return ""
    try:
        return parse_value(text, model.type)
    except ConversionError as error:
        raise ConfigError("value", str(error)) from None


def _resolve_fault(visitor: VirtualVisitor, model: ModelProperty) -> VirtualVisitor:
    types = _FAULT_TYPES[visitor.fault]
    if model.type not in types:
        raise ConfigError("fault", f"{visitor.fault} is switched by a {' or '.join(sorted(types))}, not a {model.type}")
    if not model.writable:
        raise ConfigError("fault", "the model says accessMode ReadOnly, and a switch is written")
    if visitor.push:
        raise ConfigError("push", "a fault is not pushed")
    if visitor.fault == "offline" and not visitor.device:
        raise ConfigError(
            "device", "is missing: a device that put itself offline could not be told to come back, so name another one"
        )
    if "/" in visitor.device:
        raise ConfigError("device", f"{visitor.device!r} is not a bare name: the namespace is the own one")
    return msgspec.structs.replace(visitor, waveform="constant")


def _check_replay(visitor: VirtualVisitor) -> None:
    for key, given in (("file", visitor.file), ("column", visitor.column)):
        if not given:
            raise ConfigError(key, "is missing: replay needs it")
    path = PurePosixPath(visitor.file)
    if path.is_absolute() or ".." in path.parts or "\0" in visitor.file:
        raise ConfigError("file", f"{visitor.file[:128]!r} leads out of the mapper's replay folder")


def _check_holds(key: str, number: float, model: ModelProperty) -> None:
    """Refuse what no value of the type comes near: the waveforms would leave its range, or the floats'."""
    if not math.isfinite(number):
        raise ConfigError(key, f"{number} is not a finite number")
    if abs(number) > _MOST.get(model.type, _MOST["DOUBLE"]):
        raise ConfigError(key, f"{number:g} is more than a {model.type} holds")


def _bounds(visitor: VirtualVisitor, waveform: str, model: ModelProperty) -> tuple[float | None, float | None]:
    def given(key: str, own: float | None, declared: str) -> float | None:
        try:
            bound = own if own is not None else float(declared) if declared.strip() else None
        except ValueError:
            return None  # the model is wrong, which is told elsewhere
        if bound is not None:
            _check_holds(key, bound, model)
        return bound

    _check_holds("step", visitor.step, model)
    minimum = given("minimum", visitor.minimum, model.minimum)
    maximum = given("maximum", visitor.maximum, model.maximum)
    if waveform == "counter":
        minimum = minimum or 0.0
    elif model.type == "BOOLEAN":
        minimum, maximum = 0.0, 1.0
    else:
        if minimum is None:
            minimum = 0.0 if maximum is None or maximum > 0 else maximum - 100
        maximum = minimum + 100 if maximum is None else maximum
    if maximum is not None and minimum is not None and maximum < minimum:
        raise ConfigError("maximum", f"{maximum:g} is below the minimum, {minimum:g}")
    if waveform == "counter" and maximum is not None and maximum == minimum:
        raise ConfigError("maximum", "leaves the counter nothing to count")
    return minimum, maximum
