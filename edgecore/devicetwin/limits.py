"""How many calls of mappers are taken: each mapper its share a second and at once, registrations always.

A caller on a unix socket has no name, so a report counts for the mapper that runs the device; reports of devices that
nobody runs share one more. What is over a limit is refused at once, in words, and costs next to nothing: our mappers
call again a moment later with what is then the newest, Go mappers report at their next cycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from dmi import DeviceId, DmiError, Overloaded, Twin
from dmi.metrics import Metrics
from dmi.ports import EdgeCoreHandlers, MapperInfo, Registration
from edgecore.store.database import MAX_BACKLOG

__all__ = ["Bucket", "Limits"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

AT_ONCE: Final = 64
"""Reports of one mapper that are being stored; its others wait. Those of another mapper do not wait behind them."""
WAITING: Final = 512
"""Reports of one mapper that wait, each with its message in memory."""
REGISTRATIONS: Final = 32
"""At once. They are made one after the other."""
CALM_S: Final = 60.0
"""A mapper that is over its limit again after so long a time is named in the log again."""


class Bucket:
    """Tokens that come back at `rate` a second, at most `burst` of them."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        self._tokens = min(self._tokens + (now - self._at) * self.rate, self.burst)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class _Share:
    """What one mapper has of us. `name` is `protocol/name`, or empty."""

    __slots__ = ("bucket", "in_flight", "limited_at", "name", "turn", "waiting")

    def __init__(self, name: str, bucket: Bucket) -> None:
        self.name = name
        self.bucket = bucket
        self.turn = asyncio.Semaphore(AT_ONCE)
        self.waiting = self.in_flight = 0
        self.limited_at = float("-inf")


class Limits:
    """`EdgeCoreHandlers` before others. `runner` names the mapper of a device, `registered` all there are, `backlog` is
    the number of jobs that wait for the store.
    """

    def __init__(
        self,
        handlers: EdgeCoreHandlers,
        *,
        rate: int,
        burst: int,
        runner: Callable[[DeviceId], str],
        registered: Callable[[], Sequence[str]],
        backlog: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._handlers = handlers
        self._rate = rate
        self._burst = burst
        self._runner = runner
        self._registered = registered
        self._backlog = backlog
        self._shares: dict[str, _Share] = {}
        self._registering = 0
        self._calls = metrics.counter(
            "kubetwin_edgecore_dmi_calls_total",
            "Calls of mappers. ok: done; refused: answered with an error; limited: over a limit; "
            "malformed: unreadable; cancelled: the caller did not wait; failed: a bug of ours.",
            "rpc",
            "mapper",
            "outcome",
        )
        metrics.gauge(
            "kubetwin_edgecore_dmi_reports_in_flight",
            "Reports under way, those that wait for their turn included.",
            "mapper",
            read=lambda: {(share.name,): share.in_flight for share in self._shares.values()},
        )
        metrics.gauge(
            "kubetwin_edgecore_dmi_registrations_in_flight",
            "Registrations under way; they are made one after the other.",
            read=lambda: {(): self._registering},
        )

    def note(self, rpc: str, outcome: str) -> None:
        """A call that did not come so far."""
        self._calls.add(rpc, "", outcome)

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        rpc, name = "MapperRegister", f"{mapper.protocol}/{mapper.name}"
        if name not in self._registered():
            name = ""  # counted under its name once it has one here
        if self._registering >= REGISTRATIONS:
            self._calls.add(rpc, name, "limited")
            raise Overloaded(
                f"too many registrations at once: {REGISTRATIONS} are under way; register again in a second"
            )
        self._registering += 1
        try:
            return await self._counted(rpc, name, self._handlers.register_mapper(mapper, with_data=with_data))
        finally:
            self._registering -= 1

    async def accept_twins(self, device: DeviceId, twins: Sequence[Twin]) -> None:
        await self._in_turn("ReportDeviceStatus", device, lambda: self._handlers.accept_twins(device, twins))

    async def accept_state(self, device: DeviceId, state: str, reason: str) -> None:
        await self._in_turn("ReportDeviceStates", device, lambda: self._handlers.accept_state(device, state, reason))

    async def _in_turn(self, rpc: str, device: DeviceId, call: Callable[[], Awaitable[None]]) -> None:
        share = self._share(self._runner(device))
        if why := self._over(share):
            self._calls.add(rpc, share.name, "limited")
            self._note_limited(share, why)
            raise Overloaded(why)
        share.in_flight += 1
        try:
            if share.turn.locked():
                share.waiting += 1
                try:
                    await share.turn.acquire()
                except asyncio.CancelledError:
                    self._calls.add(rpc, share.name, "cancelled")
                    raise
                finally:
                    share.waiting -= 1
            else:
                await share.turn.acquire()  # at once
            try:
                await self._counted(rpc, share.name, call())
            finally:
                share.turn.release()
        finally:
            share.in_flight -= 1

    async def _counted(self, rpc: str, mapper: str, call: Awaitable[_T]) -> _T:
        outcome = "failed"
        try:
            result = await call
        except Overloaded:
            outcome = "limited"
            raise
        except DmiError:
            outcome = "refused"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        else:
            outcome = "ok"
            return result
        finally:
            self._calls.add(rpc, mapper, outcome)

    def _share(self, name: str) -> _Share:
        share = self._shares.get(name)
        if share is None:
            there = {*self._registered(), name}
            for other in [o for o, s in self._shares.items() if o and o not in there and not s.in_flight]:
                del self._shares[other]
            now = asyncio.get_running_loop().time()
            share = self._shares[name] = _Share(name, Bucket(self._rate, self._burst, now))
        return share

    def _over(self, share: _Share) -> str:
        who = f"mapper {share.name}" if share.name else "devices that no mapper here runs"
        if share.waiting >= WAITING:
            return f"too many calls at once: {WAITING} of {who} wait to be stored"
        if (backlog := self._backlog()) >= MAX_BACKLOG:  # what cannot be refused finds a place before these
            return f"too many calls: the store of this node is {backlog} writes behind"
        if not share.bucket.take(asyncio.get_running_loop().time()):
            return (
                f"too many calls of {who}: it may make {self._rate} a second and {self._burst} at once "
                "(deviceTwin.reportRate, reportBurst)"
            )
        return ""

    def _note_limited(self, share: _Share, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - share.limited_at > CALM_S:
            logger.warning("reports are refused: %s", why)
        share.limited_at = now
