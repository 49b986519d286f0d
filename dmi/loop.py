"""Runs a program's event loop so that nothing in it but the program itself ends the program.

asyncio lets `SystemExit` out of a task or a callback through the running loop. In a process that hosts drivers, one of
them that calls `sys.exit()` somewhere would take the other devices, and inside an edge core the node's twins, with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_to_end"]

logger = logging.getLogger(__name__)

R = TypeVar("R")


def run_to_end(main: Coroutine[Any, Any, R]) -> R:
    """As `asyncio.run`, but a `sys.exit()` in a task or callback beside `main` is logged, and the loop goes on where it
    was. What awaits such a task gets the `SystemExit`.

    Raises:
        SystemExit: `main` itself ended so.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main, name="main")
        while True:
            try:
                return loop.run_until_complete(task)
            except SystemExit as stray:
                if task.done():
                    raise
                logger.error("sys.exit(%r) in the event loop does not end this process", stray.code, exc_info=stray)
