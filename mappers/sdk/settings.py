"""Flat settings of a manifest (`configData`) → a driver's typed struct.

Manifests in use vary: a key's case, numbers and flags written as texts, and keys that no driver reads. The first two
are accepted, the third is returned to be warned about.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from dmi.errors import ConfigError
from dmi.types import Scalar
from mappers.sdk.words import expected

__all__ = ["decode_settings", "setting_names", "setting_problems"]

S = TypeVar("S", bound=Struct)


def decode_settings(config: Mapping[str, Scalar], type_: type[S]) -> tuple[S, tuple[str, ...]]:
    """Settings → (struct, keys it has no field for).

    Raises:
        ConfigError: `path` is the key; a key is missing, or its value is of the wrong type, out of range or not one of
            the allowed texts.
    """
    values, unknown, problems = _decode(config, type_)
    if problems:
        raise problems[0]
    return type_(**values), unknown


def setting_problems(config: Mapping[str, Scalar], type_: type[Struct]) -> tuple[list[ConfigError], tuple[str, ...]]:
    """Everything for which `decode_settings` would refuse them, and the keys the struct has no field for."""
    _, unknown, problems = _decode(config, type_)
    return problems, unknown


def _decode(
    config: Mapping[str, Scalar], type_: type[Struct]
) -> tuple[dict[str, Any], tuple[str, ...], list[ConfigError]]:
    fields, hints = _fields(type_)
    given: dict[str, Scalar] = {}
    unknown: list[str] = []
    for key, value in config.items():
        field = fields.get(key.lower())
        if field is None:
            unknown.append(key)
        elif field.encode_name not in given or key == field.encode_name:  # the exact spelling wins over another one
            given[field.encode_name] = value
    values: dict[str, Any] = {}
    problems: list[ConfigError] = []
    for field in fields.values():
        name = field.encode_name
        try:
            if name in given:
                values[field.name] = _convert(name, given[name], hints[field.name])
            elif _required(field):
                raise ConfigError(name, "is missing")
        except ConfigError as error:
            problems.append(error)
    return values, tuple(unknown), problems


def setting_names(type_: type[Struct]) -> frozenset[str]:
    """The keys a struct reads, in lower case: manifests may write them in any."""
    return frozenset(_fields(type_)[0])


@cache
def _fields(type_: type[Struct]) -> tuple[Mapping[str, FieldInfo], Mapping[str, Any]]:
    """By key in lower case, and the types by field name; the same for every property of a fleet."""
    fields = {f.encode_name.lower(): f for f in msgspec.structs.fields(type_)}
    return fields, get_type_hints(type_, include_extras=True)


def _required(field: FieldInfo) -> bool:
    return field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT


def _convert(key: str, value: Scalar, type_: Any) -> Any:
    if choices := _choices(type_):
        for choice in choices:
            if str(value).strip().lower() == choice.lower():
                return choice
        raise ConfigError(key, f"{_shown(value)} is not one of {', '.join(c for c in choices if c)}")
    if type_ is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    try:
        return msgspec.convert(value.strip() if isinstance(value, str) else value, type_, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(key, f"{_shown(value)} is not accepted: expected {expected(type_)}") from None


def _choices(type_: Any) -> tuple[str, ...]:
    """The texts of a `Literal`, also inside a union with None."""
    if get_origin(type_) is Literal:
        return tuple(str(c) for c in get_args(type_))
    if get_origin(type_) in (Union, types.UnionType):
        return tuple(c for arg in get_args(type_) for c in _choices(arg))
    return ()


def _shown(value: Scalar) -> str:
    return repr(value[:64]) if isinstance(value, str) else repr(value)
