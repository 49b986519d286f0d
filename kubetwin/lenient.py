"""Reading members of objects that anybody may have written: what is absent or of another type counts as empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["items", "mapping", "text"]

Json = Mapping[str, Any]


def text(parent: Json, *path: str) -> str:
    value = _at(parent, path)
    return value if isinstance(value, str) else ""


def mapping(parent: Json, *path: str) -> Json:
    value = _at(parent, path)
    return value if isinstance(value, Mapping) else {}


def items(parent: Json, *path: str) -> list[Json]:
    """The objects of a list."""
    value = _at(parent, path)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _at(parent: Json, path: tuple[str, ...]) -> object:
    value: object = parent
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
