"""Shared by all tests: hypothesis without deadlines, and a guard that no test leaves a task, thread or child behind."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Machines that run tests are shared and slow; what must be quick is asserted in benchmarks.
settings.register_profile("kubetwin", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kubetwin")


TASK_GRACE_S = 1.0
"""The tasks in which gRPC ends a call end by themselves, a moment after the server has stopped."""


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    """Fails a test that leaves an asyncio task running."""
    before = asyncio.all_tasks()
    yield
    before |= {task for task in (asyncio.current_task(),) if task is not None}
    deadline = asyncio.get_running_loop().time() + TASK_GRACE_S
    while left := {task for task in asyncio.all_tasks() - before if not task.done()}:
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.005)
    assert not left, f"tasks left running: {[task.get_name() for task in left]}"


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    """Fails a test that leaves a child process or a thread of its own behind."""
    here = psutil.Process()
    children, threads = set(here.children(recursive=True)), set(threading.enumerate())
    yield
    left = [p for p in here.children(recursive=True) if p not in children and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"processes left running: {left}"
    # grpc and asyncio's default executor keep pools of their own for the life of the process or loop.
    mine = [
        t
        for t in set(threading.enumerate()) - threads
        if t.is_alive() and not t.daemon and not t.name.startswith("asyncio_")
    ]
    assert not mine, f"threads left running: {mine}"
