"""What a closed thing must not leave behind: tasks, threads, file descriptors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

__all__ = ["no_leaks"]

_FDS: Final = Path("/proc/self/fd")
_GRPC: Final = "(_poll_wrapper)"
"""The thread that gRPC keeps for as long as the process lives."""


@asynccontextmanager
async def no_leaks(*, grace_s: float = 0.5, fds: bool = True) -> AsyncIterator[None]:
    """Fail when the block leaves a task, a thread or a file descriptor that was not there before.

    What ends by itself within `grace_s` is no leak. The loop's default thread pool is nobody's, and neither is gRPC's
    own thread. gRPC keeps descriptors too: where the block is the first to use it, say `fds=False`.

    Raises:
        AssertionError: Names what is left.
    """
    tasks, threads, open_fds = asyncio.all_tasks(), set(threading.enumerate()), _open_fds()
    yield
    left: list[str] = []
    deadline = asyncio.get_running_loop().time() + grace_s
    while True:
        left = [*_tasks(tasks), *_threads(threads), *(_fds(open_fds) if fds else ())]
        if not left or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.01)
    if left:
        raise AssertionError(f"left behind: {'; '.join(left)}")


def _tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    here = asyncio.current_task()
    return [f"task {t.get_name()}" for t in asyncio.all_tasks() - before if t is not here and not t.done()]


def _threads(before: set[threading.Thread]) -> list[str]:
    return [
        f"thread {t.name}"
        for t in set(threading.enumerate()) - before
        if t.is_alive() and not t.name.startswith("asyncio_") and _GRPC not in t.name
    ]


def _open_fds() -> dict[int, str]:
    """Number → what it is open on. Not for ever the same thing: a number is used again once it is closed."""
    found: dict[int, str] = {}
    for entry in list(_FDS.iterdir()) if _FDS.is_dir() else ():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:  # the one this very listing was read through
            continue
    return found


def _fds(before: dict[int, str]) -> list[str]:
    return [f"file descriptor {n} on {target}" for n, target in _open_fds().items() if before.get(n) != target]
