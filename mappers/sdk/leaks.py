"""Tasks that a driver started for a link and does not end: found by the context they carry.

What runs on behind a closed link is cancelled. It costs nothing while nothing leaks: a link's scope lives as long as
some task or callback carries it, so once the scope is gone there is nothing to look for. What piles up behind an open
link is found by a count once a minute. Either way all tasks of the loop are looked at once for all links, because a
thousand of them may close together.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from mappers.sdk.context import LinkScope, current_link, detached

__all__ = ["end_leaked", "watch_open"]

GRACE_S: Final = 0.2
"""What a driver cancelled when it closed has this long to end, and up to twice as long among many."""
EVERY_S: Final = 1.0
"""From look to look at least."""
COUNT_S: Final = 60.0
"""From count to count behind open links. Longer than any call may take: what a call started does not outlive it."""
MOST_TASKS: Final = 1000
"""Of one open link, that outlived a count. Some drivers have a task per property."""

Tasks = Sequence[asyncio.Task[Any]]


def end_leaked(scope: LinkScope, found: Callable[[Tasks], None]) -> None:
    """A moment from now, cancel the tasks that still carry the scope of a closed link, and tell `found` of them."""
    _search().closed(scope, found)


def watch_open(scope: LinkScope, piled_up: Callable[[int], None]) -> None:
    """Tell `piled_up` when more than `MOST_TASKS` tasks of an open link run on and on. Ends with the scope."""
    _search().opened(scope, piled_up)


class _Search:
    """Of one event loop."""

    def __init__(self) -> None:
        self._closed: list[tuple[float, weakref.ref[LinkScope], Callable[[Tasks], None]]] = []
        self._looks = False
        self._looked_at = float("-inf")
        self._open: WeakKeyDictionary[LinkScope, Callable[[int], None]] = WeakKeyDictionary()
        self._counts = False
        self._before: WeakSet[asyncio.Task[Any]] = WeakSet()
        """Tasks of links with too many of them, at the last count."""

    def closed(self, scope: LinkScope, found: Callable[[Tasks], None]) -> None:
        now = asyncio.get_running_loop().time()
        self._open.pop(scope, None)
        self._closed.append((now, weakref.ref(scope), found))
        if not self._looks:
            self._look_at(now + 2 * GRACE_S)

    def opened(self, scope: LinkScope, piled_up: Callable[[int], None]) -> None:
        self._open[scope] = piled_up
        if not self._counts:
            self._counts = True
            asyncio.get_running_loop().call_later(COUNT_S, self._count, context=detached())

    def _look_at(self, at: float) -> None:
        self._looks = True
        asyncio.get_running_loop().call_at(max(at, self._looked_at + EVERY_S), self._look, context=detached())

    def _look(self) -> None:
        self._looks, self._looked_at = False, asyncio.get_running_loop().time()
        latest = self._looked_at - GRACE_S
        ripe = [(ref(), found) for at, ref, found in self._closed if at <= latest]
        self._closed = [entry for entry in self._closed if entry[0] > latest]
        if self._closed:
            self._look_at(self._closed[0][0] + 2 * GRACE_S)
        suspects = {scope: found for scope, found in ripe if scope is not None}
        for scope, tasks in _tasks_by_link(suspects).items():
            for task in tasks:
                task.cancel()
            suspects[scope](tasks)

    def _count(self) -> None:
        self._counts = bool(self._open)
        if self._counts:
            asyncio.get_running_loop().call_later(COUNT_S, self._count, context=detached())
        before, self._before = self._before, WeakSet()
        for scope, tasks in _tasks_by_link(self._open).items():
            if len(tasks) > MOST_TASKS:
                self._before.update(tasks)
                if (lasting := sum(task in before for task in tasks)) > MOST_TASKS:
                    self._open[scope](lasting)


_searches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Search] = WeakKeyDictionary()


def _search() -> _Search:
    return _searches.setdefault(asyncio.get_running_loop(), _Search())


def _tasks_by_link(scopes: Mapping[LinkScope, object]) -> dict[LinkScope, list[asyncio.Task[Any]]]:
    """The running tasks that carry one of the scopes."""
    tasks: dict[LinkScope, list[asyncio.Task[Any]]] = {}
    if scopes:
        for task in asyncio.all_tasks():
            if (scope := _link_of(task)) is not None and scope in scopes:
                tasks.setdefault(scope, []).append(task)
    return tasks


def _link_of(task: asyncio.Task[Any]) -> LinkScope | None:
    if hasattr(task, "get_context"):  # Python 3.12
        context = task.get_context()
    else:
        context = next((r for r in gc.get_referents(task) if isinstance(r, Context)), None)
    return context.get(current_link) if context is not None else None
