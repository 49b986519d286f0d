"""Runs a job in a child process and waits for its outcome: without `asyncio.subprocess`, which starts a thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Final

import msgspec

from edgecore.joining.job import Job, Outcome

__all__ = ["run_job"]

DEADLINE_S: Final = 180.0
_MAX_BYTES: Final = 64 * 1024


async def run_job(job: Job) -> Outcome:
    """Cancelled, the child is ended; what it was writing is whole.

    Raises:
        OSError: There is no starting a process.
    """
    child = subprocess.Popen(  # noqa: ASYNC220 - ourselves, no shell; it returns when the child is there
        # -P: what lies in the working directory is not ours to import, unless we came from there ourselves.
        [sys.executable, "-P", "-m", "edgecore.joining.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert child.stdin is not None  # noqa: S101 - pipes, both
    assert child.stdout is not None  # noqa: S101
    try:
        # Left open: that it closes tells the child that we are gone. A pipe holds more than a job.
        os.write(child.stdin.fileno(), msgspec.json.encode(job) + b"\n")
        async with asyncio.timeout(DEADLINE_S):
            answer = await _read(child.stdout.fileno())
        return msgspec.json.decode(answer, type=Outcome)
    except TimeoutError:
        return Outcome(f"no answer within {DEADLINE_S:g} s")
    except (BrokenPipeError, msgspec.MsgspecError):
        return Outcome("the process that asks ended without a word; see the log above")
    finally:
        child.kill()  # it has said all, or is to say no more
        child.wait()
        child.stdin.close()
        child.stdout.close()


async def _read(descriptor: int) -> bytes:
    """Until the other end closes."""
    loop = asyncio.get_running_loop()
    content = bytearray()
    done: asyncio.Future[None] = loop.create_future()

    def take() -> None:
        piece = os.read(descriptor, 4096)
        content.extend(piece[: _MAX_BYTES - len(content)])
        if not piece and not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, take)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
    return bytes(content)
