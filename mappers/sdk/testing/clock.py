"""Time that jumps: whenever nothing is left to do, the loop's clock goes on to the next timer at once.

An hour of a mapper takes as long as its work does. This holds while the loop has no sockets: a real one has to be
waited for, so while any is registered with the loop, time passes as it does outside. In-process drivers, and mappers on
a `FakeEdgeCore` without a socket, have none. While a call runs in a thread of the loop's executor, it is waited for.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple

from mappers.sdk import schedule

__all__ = ["VirtualClock", "virtual_time"]

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)
_RESOLUTION_S: Final = 1e-6
"""A timer that close counts as due, so that rounding cannot keep time from going on."""
_OWN_FDS: Final = 1
"""What every loop has registered: the end of the pipe that wakes it up."""


class VirtualClock:
    """Runs coroutines on loops of its own, on which `loop.time()` and `mappers.sdk.epoch_ms()` jump.

    Only one runs at a time in a process: the wall clock of the SDK is one.
    """

    def __init__(self, start: datetime = _START) -> None:
        self.now_s = 0.0
        """The loop's clock: seconds since the start."""
        self._start_ns = int(start.timestamp() * 1e9)

    def epoch_ns(self) -> int:
        return self._start_ns + int(self.now_s * 1e9)

    def run(self, main: Coroutine[Any, Any, R]) -> R:
        """As `asyncio.run`."""
        outside = schedule.wall_clock_ns
        schedule.wall_clock_ns = self.epoch_ns
        try:
            with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
                return runner.run(main)
        finally:
            schedule.wall_clock_ns = outside


def virtual_time(test: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Run an `async def` test on a `VirtualClock`. Sleep to let time pass: `asyncio.sleep(3600)` takes moments."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return VirtualClock().run(test(*args, **kwargs))

    return run


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        self.in_threads = 0
        super().__init__(_Selector(clock, self))
        self._clock_resolution = _RESOLUTION_S

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(  # type: ignore[override]  # typeshed's is generic over a type variable tuple
        self, executor: Executor | None, func: Callable[..., R], *args: Any
    ) -> asyncio.Future[R]:
        future: asyncio.Future[R] = super().run_in_executor(executor, func, *args)
        self.in_threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self.in_threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: VirtualClock, loop: _Loop) -> None:
        super().__init__()
        self._virtual = clock
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self._loop.in_threads or len(self.get_map()) > _OWN_FDS:
            before = time.monotonic()
            ready = super().select(timeout)
            self._virtual.now_s += time.monotonic() - before
            return ready
        self._virtual.now_s += timeout
        return []
