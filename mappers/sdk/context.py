"""Which device, and which of its links, the running code works for.

Every task of a device's runner carries its id, and so do the tasks started from it. While the runtime is inside a call
of a driver the context names the link too: that is how tasks are found which outlive it. What is opened once for
several devices (a shared line, a bus connection of a library) belongs to none of them: run it in `detached()`.
"""

from __future__ import annotations

from contextvars import Context, ContextVar

__all__ = ["LinkScope", "current_device", "current_link", "detached"]


class LinkScope:
    """Stands for one link from the first call of `connect` until it is closed. Compared by identity."""

    __slots__ = ("__weakref__",)


current_device: ContextVar[str] = ContextVar("current_device", default="")
"""`namespace/name`; empty outside a device."""

current_link: ContextVar[LinkScope | None] = ContextVar("current_link", default=None)
"""Set inside calls of a driver only."""


def detached() -> Context:
    """A context of no device, for `create_task(…, context=…)` or `.run(…)`: a task started in it is not ended with the
    link of the device that happened to need it first."""
    return Context()
