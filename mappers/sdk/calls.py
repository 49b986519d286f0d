"""A deadline around calls of a driver, and a fence: what comes out is an `Exception`, the call's end, or our own
cancellation, and nothing else.

`asyncio.timeout` would arm and cancel a timer for every read of every device. Here a timer stays armed over many calls
and looks at the clock when it fires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Token
from types import TracebackType
from typing import Any, Final, Literal

from mappers.sdk.context import CallClock, LinkScope, current_call, current_link, detached

__all__ = ["CallClosed", "Lane"]

STUCK_S: Final = 1.0
"""A call that goes on for this long after it was cancelled is given up, with the task it runs in."""


class CallClosed(Exception):
    """The link was closed while the call was under way."""


class Lane:
    """For one call at a time: `lock` orders those who want to make one, `with lane.within(…)` is around it. Waiting for
    the turn on a shared line does not count towards the deadline (`waiting_turn`).

    A library can swallow the cancellation, as `asyncio.wait_for` of Python 3.11 does when the reply comes at that
    moment (CPython gh-86296); the task's own is raised again here. `on_stuck` is told of a call that does not end
    although it was cancelled.
    """

    __slots__ = (
        "_before",
        "_clock",
        "_cut",
        "_deadline_s",
        "_ends_at",
        "_given_up",
        "_on_stuck",
        "_scope",
        "_task",
        "_timer",
        "_tokens",
        "lock",
    )

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        self.lock = asyncio.Lock()
        self._on_stuck = on_stuck
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tokens: tuple[Token[LinkScope | None], Token[CallClock | None]] | None = None
        self._scope: LinkScope | None = None
        self._clock = CallClock()
        self._cut: Literal["", "late", "closed"] = ""
        self._before = 0
        self._deadline_s = 0.0
        self._ends_at = 0.0
        self._given_up = False

    def within(self, deadline_s: float, scope: LinkScope | None) -> Lane:
        self._deadline_s = deadline_s
        self._ends_at = asyncio.get_running_loop().time() + deadline_s
        self._scope = scope
        return self

    def __enter__(self) -> None:
        """
        Raises:
            CallClosed: The lane was given up.
        """
        if self._given_up:
            raise CallClosed
        task = asyncio.current_task()
        if task is None or self._task is not None:
            raise RuntimeError("a lane takes one call at a time, made in a task")
        self._task, self._before, self._cut = task, task.cancelling(), ""
        if self._timer is None or self._timer.when() > self._ends_at:
            self._arm(self._ends_at)
        self._tokens, self._scope = (current_link.set(self._scope), current_call.set(self._clock)), None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Raises:
            TimeoutError: The call did not end by the deadline.
            CallClosed: `abort` cut it off.
            RuntimeError: The driver raised what would end the task or the process.
        """
        task = asyncio.current_task()
        if task is None or task is not self._task:
            raise asyncio.CancelledError  # given up long ago
        self._task = None
        if self._tokens is not None:
            current_link.reset(self._tokens[0])
            current_call.reset(self._tokens[1])
            self._tokens = None
        if self._cut:
            task.uncancel()
        if task.cancelling() > self._before:
            raise asyncio.CancelledError
        if kind is None or issubclass(kind, Exception):
            return
        if kind is asyncio.CancelledError and self._cut == "closed":
            raise CallClosed from None
        if kind is asyncio.CancelledError and self._cut == "late":
            raise TimeoutError from error
        if kind not in (KeyboardInterrupt, GeneratorExit):
            raise RuntimeError(f"{kind.__name__} raised") from error

    def abort(self) -> None:
        """Cut the call under way off, if there is one: its link is closed."""
        if self._task is not None and not self._cut:
            self._cut_off(self._task, "closed")

    def close(self) -> None:
        """No call comes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def give_up(self) -> None:
        """The task of the call under way is left to itself, and no other call is made here any more."""
        self._given_up = True
        self._task = None
        self.close()

    def _arm(self, at: float) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_at(at, self._look, context=detached())

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return  # the next call arms it
        now = asyncio.get_running_loop().time()
        if not self._cut:
            since = now if self._clock.waiting else self._clock.resumed_at
            self._ends_at = max(self._ends_at, since + self._deadline_s)
        if now < self._ends_at:
            self._arm(self._ends_at)
        elif self._cut:
            self._on_stuck()
        else:
            self._cut_off(self._task, "late")

    def _cut_off(self, task: asyncio.Task[Any], cut: Literal["late", "closed"]) -> None:
        self._cut = cut
        task.cancel()
        self._ends_at = asyncio.get_running_loop().time() + STUCK_S
        self._arm(self._ends_at)
