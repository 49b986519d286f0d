"""Brings each mapper to what it should run: per device the wanted declaration against the one it last took.

Level-triggered: whatever happened, the two are compared again and the difference is handed over, in order for a device,
side by side for several, until it is done. A device is new to a mapper once (`RegisterDevice`), changes by
`UpdateDevice`, which upstream's mappers take as an upsert, and is removed once; its model goes first, always by
`CreateDeviceModel`, which overwrites. Models are not taken away: a mapper drops them when it registers again
(DMI contract 0.2, rules 3, 5, 9-12).

A mapper that says nothing for a while is called, for one that hangs keeps its connection. The call is
`CreateDeviceModel` of a model it has: DMI has none for the purpose, and this one changes nothing, also at a Go mapper.

A removal whose answer was lost in a crash of ours is repeated, which can crash a Go mapper once; the other choice would
leave it running a device that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from dmi import ConfigError, DeviceId, DeviceModel, ModelId, PeerRefused, PeerUnavailable
from dmi.ports import MapperInfo, MapperPort
from edgecore.devicetwin.catalog import Declaration
from edgecore.store import Database, StoreError, delete_handed, put_handed

__all__ = ["MapperLink"]

logger = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 8
CALL_TIMEOUT_S: Final = 10.0
QUIET_S: Final = 15.0
"""A mapper that neither called nor answered for so long is called. Ours confirm values every 10 s by default."""
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
_UNCERTAIN: Final = b""
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
    ) -> None:
        self.mapper = mapper
        self.refused: dict[DeviceId, str] = {}
        """Why the mapper does not take a device."""
        self._database = database
        self._handed: dict[DeviceId, bytes] = {}
        self._models: dict[ModelId, DeviceModel] = {}
        self._wanted = wanted
        self._load = load
        self._changed = changed
        self._refusal = refusal
        self._released = released
        self._port = port
        self._model_turn = asyncio.Lock()
        self._reachable = asyncio.Event()
        self._stalled = False
        self._heard_at = asyncio.get_running_loop().time()
        self._away_since: float | None = asyncio.get_running_loop().time()
        self._todo: dict[DeviceId, None] = {}
        self._has_work = asyncio.Event()
        self._busy: set[DeviceId] = set()
        self._again: set[DeviceId] = set()
        self._delays: dict[DeviceId, float] = {}
        self._timers: dict[DeviceId, asyncio.TimerHandle] = {}

    @property
    def answering(self) -> bool:
        return self._reachable.is_set() and not self._stalled

    @property
    def devices(self) -> Collection[DeviceId]:
        """What the mapper has, or may have."""
        return self._handed.keys()

    def away_s(self, now: float) -> float:
        """Seconds since it last answered; from the link's making if it never did."""
        return 0.0 if self._away_since is None else now - self._away_since

    def has_now(self, handed: Mapping[DeviceId, bytes], models: Mapping[ModelId, DeviceModel]) -> None:
        """Note what the mapper was told in the answer to its registration, or before a restart of ours. Call it before
        `run`.
        """
        self._handed, self._models = dict(handed), dict(models)

    def wake(self, device: DeviceId) -> None:
        """Compare this device again, now."""
        if timer := self._timers.pop(device, None):
            timer.cancel()
        if device in self._busy:
            self._again.add(device)
        else:
            self._todo[device] = None
            self._has_work.set()

    def heard(self) -> None:
        """The mapper called us, or answered: it is alive."""
        self._heard_at = asyncio.get_running_loop().time()
        if self._stalled:
            self._stalled = False
            self._note_change()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(), name=f"mapper {self.mapper.name} connection")
                tasks.create_task(self._probe(), name=f"mapper {self.mapper.name} probe")
                for number in range(CALLS_AT_ONCE):
                    tasks.create_task(self._work(), name=f"mapper {self.mapper.name} calls {number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            if self._away_since is None:
                self._away_since = asyncio.get_running_loop().time()
            self._reachable.clear()
            await self._port.close()

    async def _watch(self) -> None:
        """Follow the connection, which is how a killed mapper is noticed without a call."""
        while True:
            await self._port.wait_ready()
            self._reachable.set()
            self._note_change()
            await self._port.wait_lost()
            self._reachable.clear()
            logger.warning("mapper %s is gone from %s", self.mapper.name, self.mapper.address)
            self._note_change()

    async def _probe(self) -> None:
        """See to it that a mapper which hangs is noticed, and that it is when it goes on."""
        loop = asyncio.get_running_loop()
        while True:
            await self._reachable.wait()
            while (wait_s := self._heard_at + QUIET_S - loop.time()) > 0:  # noqa: ASYNC110  # a call puts it off
                await asyncio.sleep(wait_s)
            self._heard_at = loop.time()
            with contextlib.suppress(ConfigError, StoreError):
                device = next((device for device in self._handed if self._wanted(device)), None)
                declaration = await self._load(device) if device is not None else None
                if declaration is None:
                    continue  # there is nothing to call it about
                try:
                    await self._port.create_model(declaration.model)
                except PeerUnavailable as error:
                    if self._reachable.is_set():
                        self._stall(str(error))
                    continue
                except PeerRefused:
                    pass  # it answers; what it has against the model is another matter
                self.heard()

    async def _work(self) -> None:
        while True:
            while not self._todo:
                self._has_work.clear()
                await self._has_work.wait()
            await self._reachable.wait()
            if not self._todo:  # another worker took it meanwhile
                continue
            device = next(iter(self._todo))
            del self._todo[device]
            self._busy.add(device)
            try:
                await self._settle(device)
            finally:
                self._busy.discard(device)
                if device in self._again:
                    self._again.discard(device)
                    self.wake(device)

    async def _settle(self, device: DeviceId) -> None:
        """One attempt; what fails is tried again later."""
        try:
            answered = await self._reconcile(device)
        except PeerUnavailable as error:
            self._retry(device, f"does not answer: {error}")
            self._stall(str(error))
        except (PeerRefused, ConfigError) as error:
            self._retry(device, f"refuses it: {error}")
            self._refuse(device, str(error))
        except StoreError as error:
            self._retry(device, f"waits for the store: {error}")
        except Exception:
            logger.exception("device %s could not be handed to mapper %s", device, self.mapper.name)
            self._retry(device, "waits after an error")
        else:
            self._delays.pop(device, None)
            self._refuse(device, "")
            if answered:
                self.heard()

    async def _reconcile(self, device: DeviceId) -> bool:
        """Whether the mapper was called for it, and answered."""
        wanted = self._wanted(device)
        if wanted is None:
            if device not in self._handed:
                return False
            await self._remove(device)
            return True
        return bool(wanted) and wanted != self._handed.get(device) and await self._hand_over(device)

    async def _hand_over(self, device: DeviceId) -> bool:
        declaration = await self._load(device)
        if declaration is None:
            return False  # it changed again, and that wakes us
        async with self._model_turn:
            model = declaration.model
            if self._models.get(model.id) != model:
                await self._port.create_model(model)
                self._models[model.id] = model
        known = device in self._handed
        await self._note(device, _UNCERTAIN)
        if not self._wanted(device):
            return False  # it became another mapper's meanwhile, and that wakes us
        if known:
            await self._port.update_device(declaration.device)
        else:
            await self._port.register_device(declaration.device)
        await self._note(device, declaration.digest)
        return True

    async def _remove(self, device: DeviceId) -> None:
        try:
            await self._port.remove_device(device)
        except PeerRefused as error:
            logger.info("mapper %s on the removal of %s: %s", self.mapper.name, device, error)  # it never had it
        await self._database.run(lambda db: delete_handed(db, self.mapper, device))
        self._handed.pop(device, None)
        self._released(device)

    async def _note(self, device: DeviceId, digest: bytes) -> None:
        await self._database.run(lambda db: put_handed(db, self.mapper, device, digest))
        self._handed[device] = digest

    def _note_change(self) -> None:
        """It may have begun or ceased to answer."""
        if self.answering:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
        self._changed(self)

    def _stall(self, why: str) -> None:
        if not self._stalled:
            self._stalled = True
            logger.warning("mapper %s does not answer: %s", self.mapper.name, why)
            self._note_change()

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
