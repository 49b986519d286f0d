"""A wall clock that can be set, for one process or several: who asks the C library for the time gets another one.

Debian's libfaketime would also bend `clock_nanosleep`, which Python's `time.sleep` of the monotonic clock ends in, so
that it sleeps an hour or fails; here the monotonic clock, and with it every sleep, is left alone, as when somebody sets
a machine's clock.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["NoCompiler", "SetClock"]

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("KUBETWIN_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(0, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) offset_s = page;
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (!result && offset_s && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset_s;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *also) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (also) *also = exact.tv_sec;
    return exact.tv_sec;
}
"""


class NoCompiler(Exception):
    """There is nothing to make the library with; says so."""


class SetClock:
    """Files are made in `directory`. `environment` is for the processes that are to have this clock.

    Raises:
        NoCompiler: See there.
    """

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise NoCompiler("needs a C compiler, for a clock that can be set")
        self._file = directory / "clock"
        library = directory / "clock.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=_SOURCE, text=True, check=True, capture_output=True, timeout=60)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "KUBETWIN_TEST_CLOCK": str(self._file)}

    def set(self, offset_s: int) -> None:
        """So many seconds from the machine's clock, at once."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(offset_s.to_bytes(8, "little", signed=True))
