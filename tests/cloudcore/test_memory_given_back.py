"""What connections to the API held goes back to the system when they are closed, whatever was allocated meanwhile."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from cloudcore.__main__ import _give_memory_back

def rss_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))

_give_memory_back()
buffers = [bytearray(256 * 1024)]
buffers.clear()  # from here on the C library would have such blocks in its heap
before, kept = rss_kib(), []
for _ in range(200):
    buffers.append(bytearray(256 * 1024))
    kept.append(bytes(2000))  # what lives longer
held = rss_kib() - before
buffers.clear()
print(held, rss_kib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is this C library that needs to be told")
def test_large_buffers_are_given_back() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    held_kib, left_kib = map(int, answer.stdout.split())
    assert held_kib > 40_000
    assert left_kib < 10_000
