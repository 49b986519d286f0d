"""One line that several devices share: who has it, who is next, who does not answer, and when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

from dmi.types import DeviceId
from mappers.sdk.context import waiting_turn
from mappers.sdk.errors import DeviceError, DeviceTimeout, DeviceUnreachable
from mappers.sdk.silence import Silence, Silences
from mappers.sdk.turns import Rank, Turns

__all__ = ["Line"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOST_AFTER: Final = 3
"""Turns in a row without a reply after which a device counts as gone; when that goes for all, the line is broken."""


class _Waiter:
    """One that wants the line, or has it."""

    __slots__ = ("device_id", "doubtful", "granted", "rank", "until")

    def __init__(self, device_id: DeviceId, rank: Rank, granted: asyncio.Future[None], *, doubtful: bool) -> None:
        self.device_id = device_id
        self.rank = rank
        self.granted = granted
        self.doubtful = doubtful
        self.until: asyncio.Timeout | None = None
        """While it has the line: when it is taken away, by default never."""

    def take_away(self, at: float) -> None:
        """Take the line away at this loop time, if it has it and not sooner already."""
        until = self.until
        if until is None or until.expired():
            return
        when = until.when()
        if when is None or at < when:
            until.reschedule(at)


class Line(Generic[T]):
    """What several devices share: one transaction at a time, writes before reads, the devices in turn.

    A device that does not answer is *silent*: while others use the line, its turns end at once with `DeviceTimeout`
    until its back-off has passed, 1 s doubling to 30 s. The turn after that is a probe: it comes last, and it is
    given up for the next that wants the line, a moment after it began. So a dead device costs the others one timeout,
    once; one that never answered costs another with every 16th probe, for it may just be slow. Its first answer makes
    it a normal one again. Its third miss in a row ends its link, and only its, so that it is shown as offline. A device
    alone on its line is never held back.

    The line itself counts as broken when every device of it is silent and three requests in a row had no reply.
    """

    def __init__(self, on_broken: Callable[[], None] = lambda: None) -> None:
        self._on_broken = on_broken
        self.users: dict[object, DeviceId] = {}
        """Who uses it, by what stands for the use. Kept by `SharedLines`."""
        self._settings: dict[DeviceId, object] = {}
        self._opened: list[T] = []
        self._turns: Turns[_Waiter] = Turns()
        self._holder: _Waiter | None = None
        self._silences = Silences()
        self._unanswered = 0
        self._free_at = 0.0
        """Loop time of the end of the last transaction."""
        self._last_gap_s = 0.0
        self._broken = asyncio.Event()
        self.failure = ""
        """Why the line is broken; empty while it is not."""

    @asynccontextmanager
    async def turn(
        self, device_id: DeviceId, *, write: bool = False, gap_s: float = 0.0, doubtful: bool = False
    ) -> AsyncIterator[T]:
        """Have the line for one transaction; cancelled at any point, the line goes on with the next.

        Args:
            doubtful: The device has left this very request unanswered while it answers others. It comes last and is
                given up for others as a probe is; without an answer again, it does not make the device a silent one.
            gap_s: Seconds of rest before and after each transaction of this device; between two devices the longer.

        Raises:
            DeviceTimeout: The device is silent, or its probe was given up.
            DeviceUnreachable: The line is broken, or broke meanwhile, or the device is gone from it.
        """
        loop = asyncio.get_running_loop()
        rank = self._rank(device_id, loop.time(), write=write)
        waiter = _Waiter(device_id, "probe" if doubtful else rank, loop.create_future(), doubtful=doubtful)
        with waiting_turn(loop.time):
            await self._wait(waiter)
        try:
            gap_s, self._last_gap_s = max(gap_s, self._last_gap_s), gap_s
            if (rest_s := self._free_at + gap_s - loop.time()) > 0:
                await asyncio.sleep(rest_s)
            if self.failure:
                raise DeviceUnreachable(device_id, self.failure)
            started = loop.time()
            try:
                async with asyncio.timeout(None) as limit:
                    waiter.until = limit
                    if waiter.rank == "probe" and self._turns.waits("write", "read"):
                        self._give_up(waiter, started)
                    yield self._opened[0]
            finally:
                waiter.until = None
                self._free_at = loop.time()
        except DeviceUnreachable as error:
            self.broken(error.problem)
            raise
        except TimeoutError as error:
            raise self._missed(waiter, error, taken_away=limit.expired()) from error
        except DeviceError:
            self._answered(device_id, loop.time() - started)
            raise
        else:
            self._answered(device_id, loop.time() - started)
        finally:
            self._holder = None
            self._grant()

    def admit(self, device_id: DeviceId) -> None:
        """For what has to be waited for before a turn: raise what `turn` would raise at once."""
        self._rank(device_id, asyncio.get_running_loop().time(), write=False)

    def broken(self, reason: str) -> None:
        """The line is lost: whoever waits for it or has it gets `DeviceUnreachable`, and so does every later turn."""
        if self.failure:
            return
        self.failure = reason or "the line broke"
        self._broken.set()
        if self._holder is not None:
            self._holder.take_away(asyncio.get_running_loop().time())
        for waiter in self._turns.drain():
            if not waiter.granted.done():
                waiter.granted.set_exception(DeviceUnreachable(waiter.device_id, self.failure))
        self._on_broken()

    async def wait_broken(self) -> str:
        """Wait until the line breaks, and return why: for links that only listen."""
        await self._broken.wait()
        return self.failure

    # who is next

    def _rank(self, device_id: DeviceId, now: float, *, write: bool) -> Rank:
        if self.failure:
            raise DeviceUnreachable(device_id, self.failure)
        if (silence := self._silences.of(device_id)) and self._is_shared():
            if now < silence.until:
                raise DeviceTimeout(device_id, silence.reason)
            return "probe"
        return "write" if write else "read"

    async def _wait(self, waiter: _Waiter) -> None:
        self._turns.add(waiter, waiter.device_id, waiter.rank)
        holder = self._holder
        if holder is None:
            self._grant()
        elif holder.rank == "probe" and waiter.rank != "probe":
            self._give_up(holder, asyncio.get_running_loop().time())
        try:
            await waiter.granted
        except BaseException:
            self._turns.remove(waiter, waiter.device_id, waiter.rank)
            if self._holder is waiter:  # granted and cancelled at the same moment
                self._holder = None
                self._grant()
            raise

    def _grant(self) -> None:
        while self._holder is None and (waiter := self._turns.take()) is not None:
            if not waiter.granted.done():
                self._holder = waiter
                waiter.granted.set_result(None)

    def _give_up(self, probe: _Waiter, now: float) -> None:
        """Take the line away from a probe, a moment from now at the latest."""
        if (grace_s := self._silences.grace_s(probe.device_id)) is not None:
            probe.take_away(now + grace_s)

    # what became of it

    def _answered(self, device_id: DeviceId, after_s: float) -> None:
        self._unanswered = 0
        if silence := self._silences.answered(device_id, after_s):
            logger.info("device %s answers again; %s until now", device_id, silence.reason)

    def _missed(self, waiter: _Waiter, error: TimeoutError, *, taken_away: bool) -> DeviceError:
        """What the turn ends with that brought no answer."""
        device_id = waiter.device_id
        if taken_away and self.failure:
            return DeviceUnreachable(device_id, self.failure)
        if waiter.doubtful:
            return error if isinstance(error, DeviceTimeout) else DeviceTimeout(device_id, "no reply")
        before = self._silences.of(device_id)
        silence = self._silences.missed(device_id, asyncio.get_running_loop().time(), given_up=taken_away)
        if not taken_away:
            self._unanswered += 1
            if self._unanswered >= LOST_AFTER and all(self._silences.of(user) for user in self.users.values()):
                self.broken(f"no reply to {self._unanswered} requests in a row")
                return DeviceUnreachable(device_id, self.failure)
        if self._is_shared():
            self._hold_back(device_id, silence)
            if silence.misses == LOST_AFTER:
                return DeviceUnreachable(device_id, silence.reason)
            if before is not None:
                return DeviceTimeout(device_id, silence.reason)  # the same words as while it is held back
        return error if isinstance(error, DeviceTimeout) else DeviceTimeout(device_id, "no reply")

    def _hold_back(self, device_id: DeviceId, silence: Silence) -> None:
        """What else the device wants now would only wait as long."""
        for waiter in self._turns.drain(device_id):
            if not waiter.granted.done():
                waiter.granted.set_exception(DeviceTimeout(device_id, silence.reason))

    def _is_shared(self) -> bool:
        return len(self.users) > 1 and len(set(self.users.values())) > 1

    def join(self, token: object, device_id: DeviceId, settings: object) -> None:
        """A device uses it from now on. With other settings than before it is asked at once, however silent it was."""
        self.users[token] = device_id
        if self._settings.setdefault(device_id, settings) != settings:
            self._settings[device_id] = settings
            self._silences.forget(device_id)

    def opened(self, over: T) -> None:
        """What it runs over is open: turns can be taken. Told by `SharedLines`."""
        self._opened.append(over)
