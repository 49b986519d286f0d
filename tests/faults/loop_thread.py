"""An event loop in a thread of its own, for paths that are spoilt while a test looks on from outside."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

_T = TypeVar("_T")
_ANSWER_S = 20.0


class LoopThread:
    """Runs from entering to leaving; what is started in it must be stopped before."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="spoilt paths", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER_S)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for it, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    def call(self, function: Callable[[], _T]) -> _T:
        """In the loop's thread, between two of its steps."""

        async def once() -> _T:
            return function()

        return self.run(once())
