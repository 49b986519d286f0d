"""Which device, and which of its links, the running code works for.

Every task of a device's runner carries its id, and so do the tasks started from it. While the runtime is inside a call
of a driver the context names the link too: that is how tasks are found which outlive it. What is opened once for
several devices (a shared line, a bus connection of a library) belongs to none of them: run it in `detached()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar

__all__ = ["CallClock", "LinkScope", "current_call", "current_device", "current_link", "detached", "waiting_turn"]


class LinkScope:
    """Stands for one link from the first call of `connect` until it is closed. Compared by identity."""

    __slots__ = ("__weakref__",)


current_device: ContextVar[str] = ContextVar("current_device", default="")
"""`namespace/name`; empty outside a device."""

current_link: ContextVar[LinkScope | None] = ContextVar("current_link", default=None)
"""Set inside calls of a driver only."""


class CallClock:
    """What the deadline of one call goes by: time spent waiting for others who use the same line does not count."""

    __slots__ = ("resumed_at", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        """Turns that are waited for."""
        self.resumed_at = 0.0
        """Loop time of the last turn that came."""


current_call: ContextVar[CallClock | None] = ContextVar("current_call", default=None)
"""Set as `current_link` is."""


@contextmanager
def waiting_turn(loop_time: Callable[[], float]) -> Iterator[None]:
    """Around the wait for a shared line: what others do there is not the fault of the driver that waits."""
    clock = current_call.get()
    if clock is None:
        yield
        return
    clock.waiting += 1
    try:
        yield
    finally:
        clock.waiting -= 1
        clock.resumed_at = loop_time()


def detached() -> Context:
    """A context of no device, for `create_task(…, context=…)` or `.run(…)`: a task started in it is not ended with the
    link of the device that happened to need it first."""
    return Context()
