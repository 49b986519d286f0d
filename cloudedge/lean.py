"""Keeps out of memory what picows and its transport import and nothing here uses, 0.8 MB together: a client for SOCKS
and HTTP proxies, and the two compressions that come with temporary files.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

__all__ = ["postponed_imports"]

_PROXIES: Final = "python_socks.async_.asyncio"
_COMPRESSIONS: Final = ("bz2", "lzma")
"""`shutil` only looks whether they are there."""


class _Proxy:
    """In the place of the class of that name, which it loads when it is asked for a proxy."""

    @staticmethod
    def from_url(*arguments: Any, **options: Any) -> Any:
        return importlib.import_module(_PROXIES).Proxy.from_url(*arguments, **options)


@contextlib.contextmanager
def postponed_imports() -> Iterator[None]:
    """What is imported in the block takes the stand-ins; whoever imports the modules after it gets the real ones."""
    stand_ins = {name: ModuleType(name) for name in (_PROXIES, *_COMPRESSIONS) if name not in sys.modules}
    if _PROXIES in stand_ins:
        stand_ins[_PROXIES].Proxy = _Proxy  # type: ignore[attr-defined]  # that is what makes it one
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("tempfile")  # the transport does at the first connection, too late for the stand-ins
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
