"""Reports on their way to the edge core: one slot per property and device, the newest wins, never a backlog.

While the edge core is slow or away, newer values replace older ones here. Several devices' reports may be under way at
once, one per device. A refused call is made again later with what is then the newest.

A stock edge core takes one call a second from its whole node, after a burst (DMI contract 0.1, rule 7). Calls to one
are paced, and what changed goes before what only confirms; among equals the device that has waited longest. So they are
to any edge core that answers "too many", until everything is said.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dmi.errors import DmiError, PeerRefused, PeerUnavailable
from dmi.rpc import MAX_MESSAGE_BYTES
from dmi.twins import Twin
from dmi.types import DeviceId, DeviceState
from mappers.sdk.schedule import epoch_ms
from mappers.sdk.stats import Histogram
from mappers.sdk.stock import StockFilter

__all__ = ["ReportClient", "Uplink"]

logger = logging.getLogger(__name__)

IN_FLIGHT: Final = 32
"""Calls under way at once, over all devices."""
RETRY_S: Final = (1.0, 30.0)
LIMITED_S: Final = (0.1, 2.0)
"""Time until a device has its turn again that our own edge core had too many calls for. It takes thousands a second,
and says so by a status code of its own."""
PACED_S: Final = 1.05
"""Time from call to call to a stock edge core, and to any that said "too many"."""
STOCK_BURST: Final = 50
"""Calls to a stock edge core without that time between them, after a quiet while: half of what it takes, because other
mappers need some too, and a Go mapper whose registration finds none left ends."""
YIELD_S: Final = 30.0
"""So long a confirmation lets changes of other devices go first, and no longer."""
_BYTES_PER_CHAR: Final = 4
"""At most, in UTF-8."""
_TWIN_BYTES: Final = 512
"""For a twin's keys, types, times and lengths, with room to spare."""


class ReportClient(Protocol):
    """The two calls that are made here; `EdgeCoreClient` has them."""

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None: ...

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None: ...


class _Slot:
    """What one device has to say."""

    __slots__ = ("device_id", "held", "news", "refusals", "since", "state", "ticket", "twins")

    def __init__(self, device_id: DeviceId) -> None:
        self.device_id = device_id
        self.twins: dict[str, Twin] = {}
        self.state: tuple[DeviceState, str] | None = None
        self.news = False
        """It is more than a confirmation."""
        self.since = 0.0
        """Loop time since when there is something to say."""
        self.ticket = 0
        """Of its entry in the queue; 0: not in it."""
        self.held = False
        """With a worker, or waiting for its retry."""
        self.refusals = 0

    @property
    def empty(self) -> bool:
        return not self.twins and self.state is None


class Uplink:
    """Takes reports without waiting, and hands them to the edge core while one is registered with."""

    def __init__(self, client: ReportClient) -> None:
        self._client = client
        self._slots: dict[DeviceId, _Slot] = {}
        self._queue: asyncio.PriorityQueue[tuple[float, int, _Slot]] = asyncio.PriorityQueue()
        """(turn, ticket, slot), the lowest first. Entries whose ticket is not their slot's are passed over."""
        self._tickets = 0
        self._open = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._retries: dict[DeviceId, asyncio.TimerHandle] = {}
        self._busy = 0
        """Slots in the queue or held."""
        self._paced = False
        self._pace = asyncio.Lock()
        self._free_at = float("-inf")
        """While calls are paced, when the next one may be made; as much earlier as there is burst left."""
        self._stock = False
        self._filter = StockFilter()
        self.lost = asyncio.Event()
        """Set when a call found the edge core gone; whoever registers clears it."""
        self.on_accepted: Callable[[DeviceId, int], None] = lambda _device, _oldest_ms: None
        """Called when the edge core took twins, with the collection time of the oldest good value among them."""
        self.lag = Histogram()
        """Of each report that was taken: how long ago its oldest good value had been collected."""
        self.reports = 0
        """Calls the edge core took."""
        self.report_failures = 0
        """Calls it refused, or that did not reach it."""

    @property
    def queue_depth(self) -> int:
        """Devices that have something to say which the edge core has not taken yet."""
        return self._busy

    @property
    def unfit(self) -> int:
        """Values that a stock edge core dropped."""
        return self._filter.lost

    def is_paced(self) -> bool:
        """Whether calls are made `PACED_S` apart in the long run."""
        return self._paced

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin], *, news: bool = True) -> None:
        """`news`: something changed; False: it only confirms what was reported before."""
        slot = self._slot(device_id)
        for twin in twins:
            slot.twins[twin.property_name] = twin
        self._enqueue(slot, news)

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None:
        slot = self._slot(device_id)
        slot.state = (state, reason)
        self._enqueue(slot, news=True)

    def forget(self, device_id: DeviceId) -> None:
        """The device is gone: what it had to say is not said any more."""
        if slot := self._slots.pop(device_id, None):
            self._busy -= bool(slot.ticket) or slot.held
            slot.ticket = 0
        if timer := self._retries.pop(device_id, None):
            timer.cancel()
        self._filter.forget(device_id)
        self._note_idle()

    def open(self, *, stock: bool = False) -> None:
        """The edge core knows this mapper: send."""
        self._stock = self._paced = stock
        self.lost.clear()
        self._open.set()

    def pause(self) -> None:
        """The edge core is away: keep the newest."""
        self._open.clear()

    async def drained(self) -> None:
        """Return once everything said so far is with the edge core."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(IN_FLIGHT):
                    tasks.create_task(self._work(), name=f"report {index}")
        finally:
            for timer in self._retries.values():
                timer.cancel()

    # the queue

    def _slot(self, device_id: DeviceId) -> _Slot:
        slot = self._slots.get(device_id)
        if slot is None:
            slot = self._slots[device_id] = _Slot(device_id)
        return slot

    def _is_current(self, slot: _Slot) -> bool:
        """Whether its device was not forgotten; one that came back since has another slot."""
        return self._slots.get(slot.device_id) is slot

    def _enqueue(self, slot: _Slot, news: bool) -> None:
        """Give the slot its place, or a better one now that it has news."""
        upgrade = news and not slot.news
        slot.news |= news
        if slot.held or (slot.ticket and not upgrade) or slot.empty:
            return
        if not slot.ticket:
            slot.since = slot.since or asyncio.get_running_loop().time()
            self._busy += 1
            self._idle.clear()
        self._tickets += 1
        slot.ticket = self._tickets
        self._queue.put_nowait((slot.since + (0.0 if slot.news else YIELD_S), slot.ticket, slot))

    async def _take(self) -> _Slot | None:
        """The slot whose turn it is, None if there is none after all; while calls are paced, not before the next call
        may be made."""
        if not self.is_paced():
            entry = await self._queue.get()
            if self._open.is_set() and not self.is_paced():
                return self._hold(entry)
            self._queue.put_nowait(entry)  # not now: somebody else's turn may be first by then
            await self._open.wait()
            return None
        loop = asyncio.get_running_loop()
        async with self._pace:
            while (wait_s := self._free_at - loop.time()) > 0:  # noqa: ASYNC110  # a refusal meanwhile puts it off
                await asyncio.sleep(wait_s)
            if not self.is_paced():
                return None
            await self._open.wait()
            if slot := self._hold(await self._queue.get()):
                spare_s = (STOCK_BURST - 1) * PACED_S if self._stock else 0.0
                self._free_at = max(self._free_at, loop.time() - spare_s) + PACED_S
            return slot

    def _hold(self, entry: tuple[float, int, _Slot]) -> _Slot | None:
        _, ticket, slot = entry
        if slot.ticket != ticket:
            return None
        slot.ticket, slot.held = 0, True
        return slot

    async def _work(self) -> None:
        while True:
            slot = await self._take()
            if slot is None:
                continue
            await self._open.wait()
            if not self._is_current(slot):
                continue
            delay_s = await self._send(slot)
            if not self._is_current(slot):
                continue  # forgotten while the call was under way
            if delay_s:
                loop = asyncio.get_running_loop()
                self._retries[slot.device_id] = loop.call_later(delay_s, self._release, slot)
            else:
                self._release(slot)

    def _release(self, slot: _Slot) -> None:
        """The call was made; what came meanwhile, or could not be said, has its turn again."""
        self._retries.pop(slot.device_id, None)
        slot.held = False
        self._busy -= 1
        self._enqueue(slot, news=False)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._busy:
            self._paced = self._stock
            self._idle.set()

    # calls

    async def _send(self, slot: _Slot) -> float:
        """Make one call; what could not be said goes back unless something newer came. Returns how many seconds to wait
        before the next call for this device."""
        state, twins, news = slot.state, slot.twins, slot.news
        try:
            if state is not None:
                slot.state, slot.news = None, bool(twins) and news
                await self._client.report_state(slot.device_id, *state)
            else:
                twins = _first(twins)
                slot.twins = {name: twin for name, twin in slot.twins.items() if name not in twins}
                slot.news = news and bool(slot.twins)
                fit = self._filter.fit(slot.device_id, twins.values()) if self._stock else list(twins.values())
                await self._client.report_twins(slot.device_id, fit)
        except BaseException as error:
            self.report_failures += 1
            slot.news = True if state is not None else slot.news or news
            if state is not None:
                slot.state = slot.state or state
            else:
                slot.twins = {**twins, **slot.twins}
            if not isinstance(error, Exception):
                raise
            return self._failed(slot, error)
        self.reports += 1
        slot.refusals, slot.since = 0, 0.0
        if state is None:
            self._accepted(slot.device_id, twins)
        return 0.0

    def _accepted(self, device_id: DeviceId, twins: dict[str, Twin]) -> None:
        oldest_ms = 0
        for twin in twins.values():
            reported = twin.reported
            if reported.quality == "good" and reported.collected_ms:
                oldest_ms = min(oldest_ms or reported.collected_ms, reported.collected_ms)
        if oldest_ms:
            self.lag.observe(max(0, epoch_ms() - oldest_ms) / 1000)
            self.on_accepted(device_id, oldest_ms)

    def _failed(self, slot: _Slot, error: Exception) -> float:
        if isinstance(error, PeerUnavailable):
            self.pause()
            self.lost.set()
            return 0.0
        if isinstance(error, PeerRefused) and error.code == "RESOURCE_EXHAUSTED" and "too many" in error.details:
            slot.refusals = min(slot.refusals + 1, 8)
            return min(LIMITED_S[0] * 2.0 ** (slot.refusals - 1), LIMITED_S[1])
        if isinstance(error, PeerRefused) and "too many" in error.details.lower():
            if not self._paced:
                self._paced = True
                logger.info("the edge core takes no more reports for now: pacing them, the newest values win")
            self._free_at = asyncio.get_running_loop().time() + PACED_S
            return 0.0
        if not slot.refusals:
            text = "device %s: the edge core refused a report, trying again: %s"
            bug = None if isinstance(error, DmiError) else error  # one device's, which must not end the others' reports
            logger.warning(text, slot.device_id, error, exc_info=bug)
        slot.refusals = min(slot.refusals + 1, 8)
        return min(RETRY_S[0] * 2.0 ** (slot.refusals - 1), RETRY_S[1])


def _first(twins: dict[str, Twin]) -> dict[str, Twin]:
    """As many as surely fit into one call, at least one; the others follow in calls of their own."""
    size = 0
    for count, twin in enumerate(twins.values()):
        texts = (twin.property_name, twin.reported.value, twin.reported.reason, twin.desired.value, twin.desired.reason)
        size += sum(map(len, texts)) * _BYTES_PER_CHAR + _TWIN_BYTES
        if size > MAX_MESSAGE_BYTES and count:
            return dict(itertools.islice(twins.items(), count))
    return twins
