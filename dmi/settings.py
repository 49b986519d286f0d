"""Settings that people write: YAML → frozen structs; wrong values are refused with their path, unknown keys named."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from dmi.errors import ConfigError

__all__ = ["load_settings", "read_settings", "unknown_keys"]

_T = TypeVar("_T", bound=msgspec.Struct)


def load_settings(file: Path, type_: type[_T], *, strict: bool = True) -> tuple[_T, list[str]]:
    """Read a YAML file into a struct; also returns the paths of the keys that the struct does not have.

    Not `strict`: numbers and flags may be written as texts.

    Raises:
        ConfigError: The file cannot be read or is no YAML mapping, or a value has the wrong type.
    """
    try:
        data = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(file), f"cannot be read: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ConfigError(str(file), "is not a mapping of keys to values")
    return read_settings(data, type_, where=str(file), strict=strict), list(unknown_keys(data, type_))


def read_settings(data: Mapping[str, Any], type_: type[_T], *, where: str = "", strict: bool = True) -> _T:
    """A mapping → struct; keys that the struct does not have are left out.

    Raises:
        ConfigError: A value has the wrong type; the path is `where` and the key's own.
    """
    try:
        return msgspec.convert(_without_nulls(data), type_, strict=strict)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        raise ConfigError(": ".join(filter(None, (where, path))), problem) from error


def unknown_keys(data: Mapping[str, Any], type_: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """The dotted paths of keys that a struct, or one nested in it, does not have."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    for key, value in data.items():
        here = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            yield here
            continue
        nested = _struct_in(field.type)
        if nested is not None and isinstance(value, Mapping):
            yield from unknown_keys(value, nested, here)


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """The struct of `S` or `S | None`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((s for s in map(_struct_in, typing.get_args(annotation)) if s), None)
    return None


def _without_nulls(value: Any) -> Any:
    """An empty YAML value (`key:`) means the default, as it does upstream."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value
