"""Reports on their way to the edge core: one slot per property and device, the newest wins, never a backlog.

While the edge core is slow or away, newer values replace older ones here. Several devices' reports may be under way at
once, one per device. A refused call is made again later with what is then the newest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from dmi.errors import DmiError, PeerRefused, PeerUnavailable
from dmi.twins import Twin
from dmi.types import DeviceId, DeviceState

__all__ = ["ReportClient", "Uplink"]

logger = logging.getLogger(__name__)

IN_FLIGHT: Final = 16
"""Calls under way at once, over all devices."""
RETRY_S: Final = (1.0, 30.0)
PACED_S: Final = 1.05
"""Time from call to call once the edge core said "too many": stock ones take 1 a second (DMI contract 0.1, rule 7)."""


class ReportClient(Protocol):
    """The two calls that are made here; `EdgeCoreClient` has them."""

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None: ...

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None: ...


class _Slot:
    """What one device has to say."""

    def __init__(self, device_id: DeviceId) -> None:
        self.device_id = device_id
        self.twins: dict[str, Twin] = {}
        self.state: tuple[DeviceState, str] | None = None
        self.queued = False
        """In the queue, with a worker, or waiting for its retry."""
        self.refusals = 0

    @property
    def empty(self) -> bool:
        return not self.twins and self.state is None


class Uplink:
    """Takes reports without waiting, and hands them to the edge core while one is registered with."""

    def __init__(self, client: ReportClient) -> None:
        self._client = client
        self._slots: dict[DeviceId, _Slot] = {}
        self._ready: asyncio.Queue[_Slot] = asyncio.Queue()
        """At most one entry a slot; those of forgotten devices are passed over."""
        self._open = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._retries: dict[DeviceId, asyncio.TimerHandle] = {}
        self._busy = 0
        self._paced = False
        self._pace = asyncio.Lock()
        self.lost = asyncio.Event()
        """Set when a call found the edge core gone; whoever registers clears it."""

    def put_twins(self, device_id: DeviceId, twins: Sequence[Twin]) -> None:
        slot = self._slot(device_id)
        slot.twins.update((t.property_name, t) for t in twins)
        self._enqueue(slot)

    def put_state(self, device_id: DeviceId, state: DeviceState, reason: str) -> None:
        slot = self._slot(device_id)
        slot.state = (state, reason)
        self._enqueue(slot)

    def forget(self, device_id: DeviceId) -> None:
        """The device is gone: what it had to say is not said any more."""
        if (slot := self._slots.pop(device_id, None)) and slot.queued:
            self._busy -= 1
        if timer := self._retries.pop(device_id, None):
            timer.cancel()
        self._note_idle()

    def open(self) -> None:
        """The edge core knows this mapper: send."""
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

    def _slot(self, device_id: DeviceId) -> _Slot:
        slot = self._slots.get(device_id)
        if slot is None:
            slot = self._slots[device_id] = _Slot(device_id)
        return slot

    def _is_current(self, slot: _Slot) -> bool:
        """Whether its device was not forgotten; one that came back since has another slot."""
        return self._slots.get(slot.device_id) is slot

    def _enqueue(self, slot: _Slot) -> None:
        if not slot.queued and not slot.empty:
            slot.queued = True
            self._busy += 1
            self._idle.clear()
            self._ready.put_nowait(slot)

    async def _work(self) -> None:
        while True:
            slot = await self._ready.get()
            await self._open.wait()
            if not self._is_current(slot):
                continue
            delay_s = await self._send(slot)
            if not self._is_current(slot):
                continue  # forgotten while the call was under way
            if delay_s:
                loop = asyncio.get_running_loop()
                self._retries[slot.device_id] = loop.call_later(delay_s, self._retry, slot)
            else:
                self._retry(slot)

    def _retry(self, slot: _Slot) -> None:
        self._retries.pop(slot.device_id, None)
        slot.queued = False
        self._busy -= 1
        self._enqueue(slot)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._busy:
            self._paced = False
            self._idle.set()

    async def _send(self, slot: _Slot) -> float:
        """Report what the slot holds; what could not be said goes back unless something newer came. Returns how many
        seconds to wait before the next call for this device."""
        try:
            if slot.state is not None:
                await self._keep_pace()
                state, slot.state = slot.state, None
                try:
                    if state is not None:
                        await self._client.report_state(slot.device_id, *state)
                except BaseException:
                    slot.state = slot.state or state
                    raise
            if slot.twins:
                await self._keep_pace()
                twins, slot.twins = slot.twins, {}
                try:
                    await self._client.report_twins(slot.device_id, list(twins.values()))
                except BaseException:
                    slot.twins = {**twins, **slot.twins}
                    raise
        except PeerUnavailable:
            self.pause()
            self.lost.set()
            return 0.0
        except DmiError as error:
            return self._refused(slot, error)
        slot.refusals = 0
        return 0.0

    def _refused(self, slot: _Slot, error: DmiError) -> float:
        if isinstance(error, PeerRefused) and "too many" in error.details.lower():
            if not self._paced:
                self._paced = True
                logger.info("the edge core takes no more reports for now: pacing them, the newest values win")
            return 0.0
        if not slot.refusals:
            logger.warning("device %s: the edge core refused a report, trying again: %s", slot.device_id, error)
        slot.refusals = min(slot.refusals + 1, 8)
        return min(RETRY_S[0] * 2.0 ** (slot.refusals - 1), RETRY_S[1])

    async def _keep_pace(self) -> None:
        if self._paced:
            async with self._pace:
                await asyncio.sleep(PACED_S)
