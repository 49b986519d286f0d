"""Keeps out of memory what picows imports and nothing here uses: its client for SOCKS and HTTP proxies, 0.5 MB."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

__all__ = ["postponed_proxies"]

_PROXIES: Final = "python_socks.async_.asyncio"


class _Proxy:
    """In the place of the class of that name, which it loads when it is asked for a proxy."""

    @staticmethod
    def from_url(*arguments: Any, **options: Any) -> Any:
        return importlib.import_module(_PROXIES).Proxy.from_url(*arguments, **options)


@contextlib.contextmanager
def postponed_proxies() -> Iterator[None]:
    """What is imported in the block takes the stand-in; whoever imports the package after it gets the real one."""
    if _PROXIES in sys.modules:
        yield
        return
    stand_in = ModuleType(_PROXIES)
    stand_in.Proxy = _Proxy  # type: ignore[attr-defined]  # that is what makes it one
    sys.modules[_PROXIES] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_PROXIES) is stand_in:
            del sys.modules[_PROXIES]
