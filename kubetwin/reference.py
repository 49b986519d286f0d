"""What a driver's manifests may say, read from its config structs: the driver reference, for terminal and docs.

`python -m kubetwin.reference > docs/drivers.md` writes the page of the drivers that come with kubetwin.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Final

import msgspec
from msgspec import Struct

from mappers.sdk.driver import AnyDriver
from mappers.sdk.keys import ReportKeys
from mappers.sdk.options import find_driver
from mappers.sdk.words import type_words

__all__ = ["SHIPPED", "Key", "driver_page", "driver_text", "keys_of"]

SHIPPED: Final = ("modbus", "virtual")
"""Protocols of the drivers that come with kubetwin."""
_CONFIG: Final = "spec.protocol.configData"
_VISITOR: Final = "spec.properties[].visitors.configData"
_BY_RUNTIME: Final = "read by the runtime, for every protocol"

_IN_WORDS: Final = ("not set", "required")
_PREAMBLE: Final = """\
Generated from the config structs by `python -m kubetwin.reference`; `kubetwin mapper explain PROTOCOL` prints the same
for any installed driver. Durations are in milliseconds. Keys are accepted in any case, and numbers and flags also as
texts. A key that no one reads is warned about."""


class Key(Struct, frozen=True):
    """One key of `configData`."""

    name: str
    type: str
    """In words, with the range: `whole number, 1 to 65535`."""
    default: str
    """As it would be written; `not set` where it follows from other keys, `required` when there is none."""
    text: str
    """The docstring below the field."""


def keys_of(struct: type[Struct]) -> list[Key]:
    """The keys of a settings struct, in the order of its fields."""
    texts = {name: text for base in reversed(struct.__mro__) for name, text in _field_texts(base).items()}
    (info,) = msgspec.inspect.multi_type_info([struct])
    fields = info.fields if isinstance(info, msgspec.inspect.StructType) else ()
    return [
        Key(f.encode_name, type_words(f.type), _default(f), " ".join(texts.get(f.name, "").split())) for f in fields
    ]


def driver_text(driver: AnyDriver, *, width: int = 100) -> str:
    """The reference of one driver, for a terminal."""
    lines = [driver.protocol, *_wrapped(_summary(driver), width, "")]
    for title, struct in _sections(driver):
        lines += ["", title]
        for key in keys_of(struct):
            lines += ["", *_wrapped(f"{key.name}: {key.type}; {_said(key.default)}", width, "  ")]
            lines += _wrapped(key.text, width, "      ")
    return "\n".join(lines) + "\n"


def driver_page(drivers: Iterable[AnyDriver]) -> str:
    """The reference of several drivers, as Markdown."""
    parts = ["# Driver reference", _PREAMBLE]
    for driver in drivers:
        parts += [f"## {driver.protocol}", _summary(driver)]
        parts += [
            part for title, struct in _sections(driver, common=False) for part in (f"### `{title}`", _table(struct))
        ]
    parts += ["## Every protocol", f"Keys of `{_VISITOR}` that are {_BY_RUNTIME}.", _table(ReportKeys)]
    return "\n\n".join(parts) + "\n"


def _sections(driver: AnyDriver, *, common: bool = True) -> Iterator[tuple[str, type[Struct]]]:
    yield _CONFIG, driver.protocol_config
    yield _VISITOR, driver.visitor_config
    if common:
        yield f"{_VISITOR}, {_BY_RUNTIME}", ReportKeys


def _summary(driver: AnyDriver) -> str:
    """The class's own docstring; `Driver`'s says nothing about it."""
    return " ".join((type(driver).__doc__ or "").split())


def _table(struct: type[Struct]) -> str:
    rows = [("key", "type", "default", "meaning"), ("---", "---", "---", "---")]
    for key in keys_of(struct):
        default = key.default if key.default in _IN_WORDS else f"`{key.default}`"
        rows.append((f"`{key.name}`", key.type, default, key.text.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _said(default: str) -> str:
    return default if default in _IN_WORDS else f"default {default}"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _default(field: msgspec.inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "not set"
    return '""' if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _source(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _field_texts(class_: type) -> dict[str, str]:
    """The docstring below each field. Python does not keep them, so they are read from the source."""
    module = sys.modules.get(class_.__module__)
    if module is None or not getattr(module, "__file__", "") or class_.__module__.startswith(("msgspec", "builtins")):
        return {}
    try:
        tree = _source(module)
    except (OSError, TypeError):
        return {}  # installed without sources
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == class_.__name__:
            return dict(_texts_in(node.body))
    return {}


def _texts_in(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield field.target.id, below.value.value


if __name__ == "__main__":
    sys.stdout.write(driver_page(find_driver(name) for name in SHIPPED))
