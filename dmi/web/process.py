"""The figures every Prometheus client gives of its process, under their usual names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmi.web.exposition import Family

__all__ = ["process_figures", "start_time_s"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def start_time_s() -> float:
    """When this process was started, epoch seconds.

    Raises:
        OSError, ValueError, IndexError: There is no Linux `/proc`.
    """
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): (22) starttime
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS


def process_figures() -> Iterator[tuple[Family, float]]:
    yield Family("process_cpu_seconds_total", "counter", "Processor time, user and system."), time.process_time()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone, there may be thousands
        started = start_time_s()
    except (OSError, ValueError, IndexError):
        return
    yield Family("process_resident_memory_bytes", "gauge", "Resident memory."), pages * _PAGE
    yield Family("process_start_time_seconds", "gauge", "Start, epoch seconds."), started
    yield Family("process_open_fds", "gauge", "Open file descriptors."), descriptors
