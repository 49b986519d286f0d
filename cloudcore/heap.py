"""Has the C library give memory back that nobody uses any more: by itself it keeps most of it for later.

Each TLS connection has buffers of 100 KB and more. A storm of connections that go, or an API that is away, would leave
their room with this process for good, with a few small blocks that are still in use scattered over it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from pathlib import Path
from typing import Final

__all__ = ["keep_small", "set_up", "trim"]

logger = logging.getLogger(__name__)

LOOK_S: Final = 30.0
GROWN_BYTES: Final = 8_000_000
"""So much more than after the last time is looked into."""
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Of mallopt(3), in glibc's malloc.h."""
_LARGE: Final = 128 * 1024


def set_up() -> None:
    """Have large blocks mapped and unmapped one by one, and one heap for all threads.

    Each TLS connection to the API has a buffer of 256 KiB. By itself the C library takes the first one that is freed
    as a reason to have the next ones in the heap, where what is allocated above them keeps them from being given back.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_ARENA_MAX, 1)


async def keep_small() -> None:
    """Look every half minute, until cancelled. Another C library is left alone."""
    if _glibc() is None:
        return
    least = resident_bytes()
    while True:
        await asyncio.sleep(LOOK_S)
        before = resident_bytes()
        least = min(least, before)
        if before - least >= GROWN_BYTES:
            trim()
            least = resident_bytes()
            logger.debug("%.1f MB given back to the system", (before - least) / 1e6)


def trim() -> None:
    """Give back every whole page that is free: some 10 ms for 100 MB."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def resident_bytes() -> int:
    """Of this process; on Linux."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
