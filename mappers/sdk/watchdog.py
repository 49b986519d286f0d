"""Finds the driver that blocks the event loop, and names it: the other devices of the process stand still meanwhile.

Four times a second a thread looks whether the loop waits for events. If it does not, it is asked for a sign of life,
and if none comes until the next look, what the loop's thread executes just then is what blocks, if it still does
some looks later. A loop that is merely busy with many short steps, as while a thousand devices start, is called that;
if most of the steps are one driver's, such as short blocking calls for fifty devices, it is named. All that costs less
than a thousandth of a core, because a loop that waits is not woken.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import PurePath
from types import FrameType
from typing import Any, Final

from msgspec import Struct

from mappers.sdk.context import current_device
from mappers.sdk.driver import AnyDriver
from mappers.sdk.stats import Histogram

__all__ = ["Culprit", "Watchdog", "driver_packages", "find_culprit", "watch_loop"]

logger = logging.getLogger(__name__)

THRESHOLD_S: Final = 0.25
"""From question to question. Shorter blocks show in the lag only; those 2.5 times as long are always told."""
LASTING_S: Final = 5.0
"""A block is told when it is over; one that lasts longer, after this time."""
MANY: Final = 4
"""Looks that found the same driver at work, before it is named for many short steps."""
BUSY_LOGGED_EVERY_S: Final = 60.0
OURS: Final = ("mappers.sdk", "dmi", "asyncio", "selectors", "contextlib", "runpy", "__main__", "kubetwin", "edgecore")
"""Packages that only lead to the code which blocks."""
_WAITING: Final = "selectors"
_LOOP: Final = "asyncio.base_events"
"""Modules of the innermost frame of a loop that waits for events, and of its caller."""
_TASK_DEVICE: Final = re.compile(r"(?:^|\s)([^\s/]+/[^\s/]+)$")


class Culprit(Struct, frozen=True):
    """What the loop's thread was executing."""

    protocol: str
    """Of the driver; empty: none of the drivers was on the stack."""
    device: str
    """`namespace/name`, if a task of a device was running."""
    place: str
    """`file:line function`, the innermost of the driver."""
    inner: str = ""
    """The same of the innermost frame, where that is another one."""

    def sentence(self, duration_s: float, *, over: bool) -> str:
        who = f"driver {self.protocol}" if self.protocol else "code outside the drivers"
        verb = "blocked the loop for" if over else "is blocking the loop, so far for"
        calling = f", calling {self.inner}" if self.inner else ""
        of = f" (device {self.device})" if self.device else ""
        return f"{who} {verb} {duration_s:.1f} s in {self.place}{calling}{of}"


def driver_packages(drivers: Iterable[AnyDriver]) -> dict[str, str]:
    """Package → protocol: where each driver's code lives. A driver that is a single module counts as that module."""
    packages: dict[str, str] = {}
    for driver in drivers:
        module = type(driver).__module__
        packages[module.rpartition(".")[0] or module] = driver.protocol
    return packages


def find_culprit(frame: FrameType, packages: Mapping[str, str], device: str) -> Culprit | None:
    """Name what a thread whose innermost frame this is executes; None: it waits for events, so nothing blocks."""
    frames = list(_outwards(frame))
    if _waits(frame):
        return None
    chosen, protocol = next(
        ((f, protocol) for f in frames if (protocol := _protocol_of(_module(f), packages))), (None, "")
    )
    if chosen is None:
        chosen = next((f for f in reversed(frames) if not _within(_module(f), OURS)), frames[0])
    inner = "" if chosen is frames[0] else _place(frames[0])
    return Culprit(protocol, device, _place(chosen), inner)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waits(frame: FrameType) -> bool:
    """Whether the loop waits for events: a driver that waits in `selectors`, as `subprocess.run` does, blocks."""
    caller = frame.f_back
    return _module(frame) == _WAITING and caller is not None and _module(caller) == _LOOP


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _protocol_of(module: str, packages: Mapping[str, str]) -> str:
    return next((protocol for package, protocol in packages.items() if _within(module, [package])), "")


def _place(frame: FrameType) -> str:
    """With as much of the path as the module's name has parts."""
    path = PurePath(frame.f_code.co_filename)
    depth = _module(frame).count(".") + (2 if path.name == "__init__.py" else 1)
    return f"{PurePath(*path.parts[-depth:])}:{frame.f_lineno} {frame.f_code.co_name}"


def _turn(frame: FrameType | None) -> FrameType | None:
    """The frame in which the loop runs one callback or one step of a task: the same object while that lasts."""
    return next((f for f in _outwards(frame) if f.f_code.co_name == "_run" and _module(f) == "asyncio.events"), None)


def _device_of(task: asyncio.Task[Any] | None) -> str:
    """The device a task works for: from its context, which Python shows from 3.12 on, or else from its name."""
    if task is None:
        return ""
    if get_context := getattr(task, "get_context", None):
        return str(get_context().get(current_device, ""))
    found = _TASK_DEVICE.search(task.get_name())
    return found[1] if found else ""


class Watchdog:
    """Watches the loop it was started on. The counters only grow."""

    def __init__(self, packages: Mapping[str, str], *, threshold_s: float = THRESHOLD_S) -> None:
        self._packages = packages
        self._threshold_s = threshold_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._running = threading.Lock()
        """Held until `stop`. Waiting for a lock costs a fraction of waiting for an `Event`."""
        self._running.acquire()
        self._asked_at = 0.0
        self._answered = True
        """Set by the loop, cleared by the thread."""
        self._answered_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="watchdog")
        self.blocks: Counter[str] = Counter()
        """Blocks by protocol; under the empty one those of no driver."""
        self.blocked_s: dict[str, float] = {}
        self.busy: Counter[str] = Counter({"": 0})
        """Times the loop did not answer in time for many short steps, by the protocol of most of them."""
        self._busy_logged = float("-inf")
        self.lag = Histogram()
        """How long the loop took to answer."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, within milliseconds."""
        self._running.release()
        self._thread.join()

    def _answer(self) -> None:
        self._answered_at = time.monotonic()
        self._answered = True
        self.lag.observe(self._answered_at - self._asked_at)

    # in the thread

    def _watch(self) -> None:
        cpu_clock = time.pthread_getcpuclockid(self._loop_thread)
        while True:
            cpu_at = time.clock_gettime(cpu_clock)
            self._ask()
            if self._stopped(self._threshold_s):
                return
            now, computed_s = time.monotonic(), time.clock_gettime(cpu_clock) - cpu_at
            overslept_s = now - self._asked_at - self._threshold_s
            try:
                if overslept_s < self._threshold_s / 2:
                    if not self._answered:
                        self._follow()
                elif overslept_s > self._threshold_s and computed_s > overslept_s / 10:
                    # This thread stood still too, and not with the whole machine: the loop's thread computed without
                    # letting go of the interpreter, and has only just done so.
                    self._note(self._look(), overslept_s)
            except Exception:
                logger.exception("the event loop was blocked, and whose fault it is could not be found out")

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        frame = self._frame()
        if frame is None or _waits(frame):
            self._answered = True
            self.lag.observe(0.0)
            return
        self._answered = False
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._answer)

    def _stopped(self, within_s: float) -> bool:
        stopped = self._running.acquire(timeout=within_s)
        if stopped:
            self._running.release()
        return stopped

    def _follow(self) -> None:
        """A block is under way: find out whose, wait for its end, and tell once."""
        culprit: Culprit | None = None
        looks: Counter[str] = Counter()
        latest: dict[str, Culprit] = {}
        turn, turn_at, told = _turn(self._frame()), time.monotonic(), False
        while not self._answered and not self._stopped(self._threshold_s / 8):
            now = time.monotonic()
            if culprit is None:
                found = self._look()
                if found is not None:
                    looks[found.protocol] += 1
                    latest[found.protocol] = found
                before, turn = turn, _turn(self._frame())
                if turn is None or turn is not before:
                    turn_at = now
                elif now - turn_at >= self._threshold_s / 4:
                    culprit = found
            elif not told and now - self._asked_at > LASTING_S:
                told = True
                self._tell(culprit, now - self._asked_at, over=False)
        turn = before = None  # a frame keeps what it works with alive
        ended_at = self._answered_at if self._answered else time.monotonic()
        if culprit is None:
            self._note_busy(looks, latest, ended_at - self._asked_at)
        self._note(culprit, ended_at - self._asked_at, told=told)

    def _note_busy(self, looks: Counter[str], latest: Mapping[str, Culprit], lasted_s: float) -> None:
        """`looks`: whose code was under way how often. A driver that was seen most of the time is named."""
        ((protocol, seen),) = looks.most_common(1) or [("", 0)]
        if seen < MANY or 2 * seen <= looks.total():
            protocol = ""
        self.busy[protocol] += 1
        now = time.monotonic()
        if not protocol or now - self._busy_logged < BUSY_LOGGED_EVERY_S:
            logger.debug("the loop was busy for %.1f s with many short steps", lasted_s)
            return
        self._busy_logged = now
        logger.warning(
            "the loop was busy for %.1f s with many short steps, most of them of driver %s, such as %s (device %s)",
            lasted_s, protocol, latest[protocol].place, latest[protocol].device or "unknown",
        )  # fmt: skip

    def _note(self, culprit: Culprit | None, lasted_s: float, *, told: bool = False) -> None:
        if culprit is None:
            return
        self.blocks[culprit.protocol] += 1
        self.blocked_s[culprit.protocol] = self.blocked_s.get(culprit.protocol, 0.0) + lasted_s
        if not told:
            self._tell(culprit, lasted_s, over=True)

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # documented; the only way there is

    def _look(self) -> Culprit | None:
        frame = self._frame()
        if frame is None:
            return None
        return find_culprit(frame, self._packages, _device_of(asyncio.current_task(self._loop)))

    def _tell(self, culprit: Culprit, duration_s: float, *, over: bool) -> None:
        token = current_device.set(culprit.device)
        try:
            logger.error("%s", culprit.sentence(duration_s, over=over))
        finally:
            current_device.reset(token)


@asynccontextmanager
async def watch_loop(drivers: Iterable[AnyDriver], *, threshold_s: float = THRESHOLD_S) -> AsyncIterator[Watchdog]:
    """Watch the running loop inside the block."""
    watchdog = Watchdog(driver_packages(drivers), threshold_s=threshold_s)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
