"""Keeps modules that libraries import and hardly use out of a process that runs for years, 0.5 MB together."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

__all__ = ["lean_imports"]

_STAND_INS: Final[Mapping[str, Mapping[str, Any]]] = {
    "typing_extensions": vars(typing),
    "platform": {
        "system": lambda: os.uname().sysname,
        "python_implementation": lambda: {"cpython": "CPython", "pypy": "PyPy"}.get(sys.implementation.name, ""),
    },
    "ipaddress": {},  # `urllib.parse` wants it for addresses in brackets
}
"""By module, what is had without it."""


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """What is imported in the block takes the stand-ins, which load the real module when they are asked for more.
    After the block everybody gets the real one.
    """
    made = {name: _stand_in(name, given) for name, given in _STAND_INS.items() if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in made.items():
            _take_out(name, module)


def _stand_in(name: str, given: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__getattr__ = _finder(module, given)  # type: ignore[method-assign]  # as a module's own function
    return module


def _finder(module: ModuleType, given: Mapping[str, Any]) -> Callable[[str], Any]:
    def find(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if attribute in given:
            return given[attribute]
        _take_out(module.__name__, module)
        return getattr(importlib.import_module(module.__name__), attribute)

    return find


def _take_out(name: str, module: ModuleType) -> None:
    if sys.modules.get(name) is module:
        del sys.modules[name]
