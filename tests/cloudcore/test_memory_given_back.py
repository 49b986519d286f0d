"""What connections held goes back to the system when they are closed, whatever was allocated meanwhile."""

import platform
import subprocess
import sys

import pytest

from cloudcore import heap

LARGE = """
import sys
from cloudcore import heap

heap.set_up()
buffers = [bytearray(256 * 1024)]
buffers.clear()  # from here on the C library would have such blocks in its heap
before, kept = heap.resident_bytes(), []
for _ in range(200):
    buffers.append(bytearray(256 * 1024))
    kept.append(bytes(2000))  # what lives longer
held = heap.resident_bytes() - before
buffers.clear()
print(held, heap.resident_bytes() - before)
"""
MANY = """
import asyncio
from cloudcore import heap

async def main():
    heap.LOOK_S = 0.01
    task = asyncio.create_task(heap.keep_small())
    await asyncio.sleep(0)
    before, buffers, kept = heap.resident_bytes(), [], []
    for _ in range(500):
        buffers.append(bytearray(100_000))
        kept.append(bytes(2000))
    held = heap.resident_bytes() - before
    buffers.clear()
    async with asyncio.timeout(20):
        while heap.resident_bytes() - before > 10_000_000:
            await asyncio.sleep(0.01)
    print(held, heap.resident_bytes() - before)
    task.cancel()

heap.set_up()
asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is this C library that needs to be told")
@pytest.mark.parametrize("program", (LARGE, MANY), ids=("large ones at once", "many smaller ones when it is looked"))
def test_buffers_are_given_back(program: str) -> None:
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    held, left = map(int, answer.stdout.split())
    assert held > 40_000_000
    assert left < 10_000_000


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.set_up()
    heap.trim()
    await heap.keep_small()  # which ends
