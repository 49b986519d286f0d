"""A setting's type in the words of people who write YAML, for error messages and the driver reference."""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect

__all__ = ["expected", "type_words"]


def expected(type_: Any) -> str:
    """What a value of an annotation looks like, to follow "expected": `a whole number, 1 to 65535`."""
    words = type_words(msgspec.inspect.type_info(type_))
    return words if words.startswith(("one of ", "true or ")) else f"a {words}"


def type_words(type_: msgspec.inspect.Type) -> str:
    """`whole number, 1 to 65535`, `true or false`, ``one of `a`, `b` ``."""
    kinds = msgspec.inspect
    match type_:
        case kinds.Metadata(type=inner):
            return type_words(inner)
        case kinds.BoolType():
            return "true or false"
        case kinds.IntType():
            return "whole number" + _range(type_)
        case kinds.FloatType():
            return "number" + _range(type_)
        case kinds.DecimalType():
            return "number"
        case kinds.StrType():
            return "text" + _length(type_) + (f" like `{type_.pattern}`" if type_.pattern else "")
        case kinds.LiteralType(values=values):
            return "one of " + ", ".join(f"`{v}`" for v in values if v != "")
        case kinds.EnumType(cls=cls):
            return "one of " + ", ".join(f"`{member.value}`" for member in cls)
        case kinds.UnionType(types=types):
            return " or ".join(type_words(t) for t in types if not isinstance(t, kinds.NoneType))
    return "value"


def _range(type_: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    low, high, over, under = type_.ge, type_.le, type_.gt, type_.lt
    parts = []
    if low is not None and high is not None:
        parts.append(f"{low} to {high}")
    elif low is not None:
        parts.append(f"{low} or more")
    elif high is not None:
        parts.append(f"up to {high}")
    parts += [f"over {over}"] if over is not None else []
    parts += [f"under {under}"] if under is not None else []
    return "".join(f", {part}" for part in parts)


def _length(type_: msgspec.inspect.StrType) -> str:
    least, most = type_.min_length, type_.max_length
    if most is not None:
        return f" of {least or 0} to {most} characters"
    if least == 1:
        return ", not empty"
    return f" of {least} characters or more" if least else ""
