"""Brings each mapper to what it should run: per device the wanted declaration against the one it last took.

Level-triggered: whatever happened, the two are compared again and the difference is handed over, in order for a device,
side by side for several, until it is done. A device is new to a mapper once (`RegisterDevice`), changes by
`UpdateDevice`, which upstream's mappers take as an upsert, and is removed once; its model goes first, always by
`CreateDeviceModel`, which overwrites. Models are not taken away: a mapper drops them when it registers again
(DMI contract 0.2, rules 3, 5, 9-12).

A call that is not answered in time says nothing about the mapper, which `lease` watches: one slow device holds up
neither the others nor who runs them. A removal that a living mapper does not answer is not repeated, for the second one
of a device crashes a Go mapper (rule 10): it does what it was asked later, as ours did at once. Only one whose answer
was lost in a crash of ours is; the other choice would leave the mapper running a device that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from cloudedge.facts import MapperFacts
from cloudedge.message import now_ms
from dmi import ConfigError, DeviceId, DeviceModel, ModelId, PeerRefused, PeerTimeout, PeerUnavailable
from dmi.metrics import Counter
from dmi.ports import MapperInfo, MapperPort
from edgecore.devicetwin.catalog import Declaration
from edgecore.devicetwin.lease import Lease
from edgecore.store import Database, StoreError, delete_handed, put_handed

__all__ = ["UNCERTAIN", "MapperLink"]

logger = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 8
SLOW_AT_ONCE: Final = 4
"""Of these calls, for devices whose last one was not answered in time: the others need not wait behind them."""
CALL_TIMEOUT_S: Final = 10.0
REMOVAL_S: Final = 20.0
"""So long a removal that was not answered may be under way before the device counts as let go."""
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
_OUTCOMES: Final = {
    PeerTimeout: "timeout",
    PeerUnavailable: "unavailable",
    PeerRefused: "refused",
    ConfigError: "refused",
    asyncio.CancelledError: "cancelled",
}
UNCERTAIN: Final = b""
"""Stored while a call is under way: the mapper may or may not have the device."""


class MapperLink:
    """One registered mapper. `wanted` is the digest it should have of a device (None: it should not have it; empty:
    whatever it has stays), `load` reads a declaration (None: it is gone or cannot be run), `changed` is called when the
    mapper starts or stops answering, `refusal` when it begins or ceases to refuse a device, `released` when it has let
    go of one.
    """

    def __init__(
        self,
        mapper: MapperInfo,
        port: MapperPort,
        database: Database,
        *,
        wanted: Callable[[DeviceId], bytes | None],
        load: Callable[[DeviceId], Awaitable[Declaration | None]],
        changed: Callable[[MapperLink], None],
        refusal: Callable[[DeviceId], None],
        released: Callable[[DeviceId], None],
        calls: Counter,
    ) -> None:
        self.mapper = mapper
        self.refused: dict[DeviceId, str] = {}
        """What the mapper does with a device instead of taking it, after its name in a sentence."""
        self._database = database
        self._handed: dict[DeviceId, bytes] = {}
        self._models: dict[ModelId, DeviceModel] = {}
        self._wanted = wanted
        self._load = load
        self._changed = changed
        self._refusal = refusal
        self._released = released
        self._calls = calls
        self._port = port
        self.lease = Lease(mapper, port, lambda: changed(self))
        self.registered_ms = 0
        """Epoch ms; 0: before this edge core was started."""
        self._model_turn = asyncio.Lock()
        self._todo: dict[DeviceId, None] = {}
        self._has_work = asyncio.Event()
        self._busy: set[DeviceId] = set()
        self._again: set[DeviceId] = set()
        self._delays: dict[DeviceId, float] = {}
        self._timers: dict[DeviceId, asyncio.TimerHandle] = {}
        self._slow: set[DeviceId] = set()
        """Devices about which it did not answer in time."""
        self._leaving: dict[DeviceId, float] = {}
        """Device → loop time when its removal, which was not answered, was sent."""
        self._outdated: set[DeviceId] = set()
        """Devices that it has and that are no more; there may be others of their names."""

    @property
    def title(self) -> str:
        return f"{self.mapper.protocol}/{self.mapper.name}"

    @property
    def answering(self) -> bool:
        return self.lease.answering

    @property
    def devices(self) -> Collection[DeviceId]:
        """What the mapper has, or may have."""
        return self._handed.keys()

    def away_s(self, now: float) -> float:
        """Seconds since its last sign of life; from the link's start if there was none."""
        return self.lease.away_s(now)

    def facts(self, device: DeviceId, wanted: bytes) -> MapperFacts:
        """What is known of it, for this device; `wanted`: the digest it should have."""
        loop_now, epoch_now = asyncio.get_running_loop().time(), now_ms()

        def epoch_ms(at: float | None) -> int:
            return 0 if at is None else epoch_now - int((loop_now - at) * 1000)

        handed = self._handed.get(device)
        return MapperFacts(
            name=self.mapper.name,
            protocol=self.mapper.protocol,
            answering=self.answering,
            registered_ms=self.registered_ms,
            heard_ms=epoch_ms(self.lease.heard_at),
            away_since_ms=epoch_ms(self.lease.away_since),
            trouble="" if self.answering else self.lease.trouble,
            refusal=self.refused.get(device, "").removeprefix("refuses it: "),
            handed="" if handed is None else "current" if handed and handed == wanted else "pending",
        )

    def has_now(self, handed: Mapping[DeviceId, bytes], models: Mapping[ModelId, DeviceModel]) -> None:
        """Note what the mapper was told in the answer to its registration, or before a restart of ours. Call it before
        `run`.
        """
        self._handed, self._models = dict(handed), dict(models)

    def wake(self, device: DeviceId) -> None:
        """Compare this device again, now."""
        if timer := self._timers.pop(device, None):
            timer.cancel()
        if not self.lease.reachable.is_set() and device not in self._handed and self._wanted(device) is None:
            self._leave(device)  # nobody says it to a mapper that may be away for ever
        elif device in self._busy:
            self._again.add(device)
        else:
            self._todo[device] = None
            self._has_work.set()

    def renew(self, device: DeviceId) -> None:
        """The device is gone, and what comes under its name is another one, declared the same or not: the mapper is to
        let go of it first, or it would not say again what is forgotten here, such as its state.
        """
        if device in self._handed:
            self._outdated.add(device)
        self.wake(device)

    def _leave(self, device: DeviceId) -> None:
        """The mapper has nothing to do with it. Once it is reached, it is compared in any case."""
        self._todo.pop(device, None)
        self._delays.pop(device, None)
        self._slow.discard(device)
        self.refused.pop(device, None)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.lease.keep(), name=f"mapper {self.mapper.name} lease")
                for number in range(CALLS_AT_ONCE):
                    tasks.create_task(self._work(), name=f"mapper {self.mapper.name} calls {number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            await self._port.close()

    async def _work(self) -> None:
        while True:
            await self.lease.reachable.wait()
            device = self._next()
            if device is None:
                self._has_work.clear()
                await self._has_work.wait()
                continue
            del self._todo[device]
            self._busy.add(device)
            try:
                await self._settle(device)
            finally:
                self._busy.discard(device)
                if device in self._again:
                    self._again.discard(device)
                    self.wake(device)
                if self._todo:
                    self._has_work.set()  # a slow one may have waited for this one's place

    def _next(self) -> DeviceId | None:
        if not self._slow or len(self._slow & self._busy) < SLOW_AT_ONCE:
            return next(iter(self._todo), None)
        return next((device for device in self._todo if device not in self._slow), None)

    async def _settle(self, device: DeviceId) -> None:
        """One attempt; what fails is tried again later."""
        began = asyncio.get_running_loop().time()
        try:
            answered = await self._reconcile(device)
        except PeerTimeout as error:
            self._slow.add(device)
            self._retry(device, f"does not answer: {error}")
            if await self.lease.is_alive(began):
                self._refuse(device, f"does not answer about it within {CALL_TIMEOUT_S:g} s")
        except PeerUnavailable as error:
            self._retry(device, f"cannot be called: {error}")
        except (PeerRefused, ConfigError) as error:
            self._retry(device, f"refuses it: {error}")
            self._refuse(device, f"refuses it: {error}")
        except StoreError as error:
            self._retry(device, f"waits for the store: {error}")
        except Exception:
            logger.exception("device %s could not be handed to mapper %s", device, self.mapper.name)
            self._retry(device, "waits after an error")
        else:
            self._delays.pop(device, None)
            self._slow.discard(device)
            self._refuse(device, "")
            if answered:
                self.lease.heard()

    async def _reconcile(self, device: DeviceId) -> bool:
        """Whether the mapper was called for it, and answered."""
        answered = False
        if device in self._handed and (device in self._outdated or self._wanted(device) is None):
            answered = await self._remove(device)
            if device in self._handed:
                return answered  # it may still be under way
        self._outdated.discard(device)
        wanted = self._wanted(device)
        if not wanted or wanted == self._handed.get(device):
            return answered
        return await self._hand_over(device) or answered

    async def _hand_over(self, device: DeviceId) -> bool:
        declaration = await self._load(device)
        if declaration is None:
            return False  # it changed again, and that wakes us
        model = declaration.model
        if self._models.get(model.id) != model:
            async with self._model_turn:
                if self._models.get(model.id) != model:
                    await self._call("CreateDeviceModel", self._port.create_model(model))
                    self._models[model.id] = model
        known = device in self._handed
        await self._note(device, UNCERTAIN)
        if not self._wanted(device):
            return False  # it became another mapper's meanwhile, and that wakes us
        self._leaving.pop(device, None)
        if known:
            await self._call("UpdateDevice", self._port.update_device(declaration.device))
        else:
            await self._call("RegisterDevice", self._port.register_device(declaration.device))
        await self._note(device, declaration.digest)
        return True

    async def _remove(self, device: DeviceId) -> bool:
        """Whether the mapper answered."""
        loop, answered = asyncio.get_running_loop(), False
        sent_at = self._leaving.get(device)
        if sent_at is None:
            try:
                await self._call("RemoveDevice", self._port.remove_device(device))
                answered = True
            except PeerRefused as error:
                answered = True
                logger.info("mapper %s on the removal of %s: %s", self.mapper.name, device, error)  # it never had it
            except PeerTimeout:
                self._leaving[device] = loop.time()
                raise
        elif (wait_s := sent_at + REMOVAL_S - loop.time()) > 0:
            self._timers[device] = loop.call_later(wait_s, self._retry_now, device)
            return False
        self._leaving.pop(device, None)
        await self._database.run(lambda db: delete_handed(db, self.mapper, device))
        self._handed.pop(device, None)
        self._released(device)
        return answered

    async def _call(self, rpc: str, call: Awaitable[None]) -> None:
        outcome = "ok"
        try:
            await call
        except BaseException as error:
            outcome = _OUTCOMES.get(type(error), "failed")
            raise
        finally:
            self._calls.add(rpc, self.title, outcome)

    async def _note(self, device: DeviceId, digest: bytes) -> None:
        await self._database.run(lambda db: put_handed(db, self.mapper, device, digest))
        self._handed[device] = digest

    def _refuse(self, device: DeviceId, why: str) -> None:
        if self.refused.get(device, "") == why:
            return
        if why:
            self.refused[device] = why
        else:
            del self.refused[device]
        self._refusal(device)

    def _retry(self, device: DeviceId, why: str) -> None:
        delay = self._delays.get(device, 0.0)
        if not delay:
            logger.warning("device %s: mapper %s %s; trying again until it works", device, self.mapper.name, why)
        self._delays[device] = delay = min(delay * 2 or FIRST_RETRY_S, MAX_RETRY_S)
        if device in self._again:
            return
        self._timers[device] = asyncio.get_running_loop().call_later(delay, self._retry_now, device)

    def _retry_now(self, device: DeviceId) -> None:
        with contextlib.suppress(KeyError):
            del self._timers[device]
        self.wake(device)
