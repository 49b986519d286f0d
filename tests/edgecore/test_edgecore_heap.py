"""The process has one heap, so that what is free in it serves every thread: others would only grow over the days."""

import asyncio
import itertools
import platform
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dmi import DeviceId
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

HEAP_BYTES = 64 * 1024 * 1024
"""What glibc reserves for each heap beyond the first, on a multiple of itself."""
DEVICE = DeviceId("default/boiler-1")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")
async def test_all_threads_share_one_heap(
    edge_process: Callable[[], EdgeProcess],
    cloud: FakeCloud,
    mapper: FakeMapper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    edge = edge_process()
    await edge.start()
    assert edge.process is not None
    pid = edge.process.pid
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        for turn in range(20):
            await asyncio.gather(*(mapper.report(DEVICE, temperature=f"{turn}.{n}") for n in range(16)))
        assert _more_heaps(pid) == []
    assert await edge.end(signal.SIGTERM) == 0, "the process that was started is the one that runs"


def _more_heaps(pid: int) -> list[str]:
    """A heap's used part, readable and writable, and the rest of its reservation right behind."""
    return [
        used
        for used, rest in itertools.pairwise(Path(f"/proc/{pid}/maps").read_text().splitlines())
        if _start(used) % HEAP_BYTES == 0 and " rw-p " in used
        if " ---p " in rest and _end(rest) == _start(used) + HEAP_BYTES
    ]


def _start(span: str) -> int:
    return int(span.split("-")[0], 16)


def _end(span: str) -> int:
    return int(span.split("-")[1].split()[0], 16)
