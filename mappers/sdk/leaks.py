"""Tasks that a driver started for a link and left running when the link was closed: found by the context they carry.

It costs nothing while nothing leaks: a link's scope lives as long as some task or callback carries it, so once the
scope is gone there is nothing to look for.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from mappers.sdk.context import LinkScope, current_link, detached

__all__ = ["end_leaked"]

GRACE_S: Final = 0.2
"""What a driver cancelled when it closed has this long to end."""


def end_leaked(scope: weakref.ref[LinkScope], found: Callable[[Sequence[asyncio.Task[Any]]], None]) -> None:
    """A moment from now, cancel the tasks that still carry the scope of a closed link, and tell `found` of them."""
    asyncio.get_running_loop().call_later(GRACE_S, _look, scope, found, context=detached())


def _look(scope: weakref.ref[LinkScope], found: Callable[[Sequence[asyncio.Task[Any]]], None]) -> None:
    if (link := scope()) is None:
        return
    if tasks := [task for task in asyncio.all_tasks() if _link_of(task) is link]:
        for task in tasks:
            task.cancel()
        found(tasks)


def _link_of(task: asyncio.Task[Any]) -> LinkScope | None:
    if hasattr(task, "get_context"):  # Python 3.12
        context = task.get_context()
    else:
        context = next((r for r in gc.get_referents(task) if isinstance(r, Context)), None)
    return context.get(current_link) if context is not None else None
