"""The mappers of this node: who is registered, who runs which device, and who is away.

A mapper is known by its protocol and name; one that registers under a known name, or at the address of another, takes
its place. Devices of a protocol are shared by its mappers as `spread` says. Whenever a mapper comes, goes or lets go of
a device, the links compare again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Final

from dmi import ConfigError, DeviceId, DmiError, NodeName
from dmi.ports import MapperInfo, MapperPort, Registration
from dmi.rpc import MAX_MESSAGE_BYTES
from dmi.types import PIN
from edgecore.devicetwin import spread
from edgecore.devicetwin.catalog import Catalog, Declaration, Entry
from edgecore.devicetwin.links import MapperLink
from edgecore.devicetwin.merge import Fault
from edgecore.devicetwin.spread import Member, claim_of, live_names, owner_of
from edgecore.store import Database, StoreError, delete_mapper, replace_mapper

__all__ = ["Mappers"]

logger = logging.getLogger(__name__)

FORGET_S: Final = 3600.0
"""A mapper that was away for so long, while others of its protocol run its devices, is forgotten until it registers."""
_REGISTRATION_BYTES: Final = MAX_MESSAGE_BYTES - 512 * 1024
"""Of declarations in one answer; the rest is handed over after it."""


class Mappers:
    """`bodies` reads stored declarations, `dial` makes the way to a mapper, `judge` is called with the devices whose
    `fault` may be another now.
    """

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        *,
        node: NodeName,
        dial: Callable[[str], MapperPort],
        bodies: Callable[[Iterable[DeviceId]], Awaitable[Mapping[DeviceId, bytes]]],
        judge: Callable[[Iterable[DeviceId]], None],
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._node = node
        self._dial = dial
        self._bodies = bodies
        self._judge = judge
        self._links: dict[str, dict[str, MapperLink]] = {}
        """Protocol → name → link."""
        self._running: dict[MapperLink, asyncio.Task[None]] = {}
        self._reviews: dict[MapperLink, asyncio.TimerHandle] = {}
        self._registering = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self, known: Iterable[tuple[MapperInfo, Mapping[DeviceId, bytes]]]) -> AsyncIterator[None]:
        """Keep the links while the block runs, first to those known from before. None of them counts as away before
        its grace is over.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            links = [(self._add(mapper), handed) for mapper, handed in known]
            for link, handed in links:
                link.has_now(handed, {})
            for link, _ in links:
                self._start(link)
            try:
                yield
            finally:
                for review in self._reviews.values():
                    review.cancel()
                for task in self._running.values():
                    task.cancel()

    async def register(self, mapper: MapperInfo, with_data: bool) -> Registration:
        """Take a mapper, or take it again, and answer with what it is to run from now on.

        Raises:
            DmiError: It could not be stored.
        """
        assert self._tasks is not None  # noqa: S101 - called while `running`
        # In a task of its own: a mapper that hangs up half-way must not leave its devices without a link.
        task = self._tasks.create_task(self._replace_link(mapper, with_data), name=f"register {mapper.name}")
        outcome = await asyncio.shield(task)
        if isinstance(outcome, StoreError):
            raise DmiError(str(outcome)) from outcome
        return outcome

    def wake(self, device: DeviceId, *protocols: str) -> None:
        """Have the mappers of these protocols compare the device again."""
        for protocol in set(protocols):
            for link in self._links.get(protocol, {}).values():
                link.wake(device)

    def heard(self, device: DeviceId) -> None:
        """A mapper reported this device, so the one that runs it is alive."""
        entry = self._catalog.get(device)
        if entry is not None and (link := self._owner(device, entry)) is not None:
            link.heard()

    def fault(self, device: DeviceId, entry: Entry) -> Fault | None:
        """Why no mapper runs the device, as far as that is a matter of mappers."""
        link = self._owner(device, entry)
        if link is None and entry.mapper and entry.protocol in self._links:
            which = f"mapper {entry.mapper!r} of protocol {entry.protocol!r}"
            return Fault(
                "unknown", f"{which}, which spec.protocol.configData.{PIN} asks for, is not registered on this node"
            )
        if link is None:
            return Fault("unknown", f"no mapper for protocol {entry.protocol!r} is registered on node {self._node}")
        if not link.answering:
            return Fault("unknown", f"mapper {link.mapper.name} is not answering")
        if refusal := link.refused.get(device):
            return Fault("unhealthy", f"mapper {link.mapper.name} refuses it: {refusal}")
        return None

    # Who runs what

    def _members(self, device: DeviceId, protocol: str) -> list[Member]:
        now = asyncio.get_running_loop().time()
        return [
            Member(
                name,
                answering=link.answering,
                alive=link.away_s(now) < spread.MOVE_GRACE_S,
                holds=device in link.devices,
            )
            for name, link in self._links.get(protocol, {}).items()
        ]

    def _owner(self, device: DeviceId, entry: Entry) -> MapperLink | None:
        links = self._links.get(entry.protocol, {})
        name = entry.mapper or owner_of(device, live_names(self._members(device, entry.protocol)))
        return None if name is None else links.get(name)

    def _wanted(self, mapper: MapperInfo, device: DeviceId) -> bytes | None:
        """`MapperLink`'s `wanted`."""
        entry = self._catalog.get(device)
        if entry is None or entry.protocol != mapper.protocol:
            return None
        match claim_of(device, mapper.name, self._members(device, mapper.protocol), pinned=entry.mapper):
            case "run":
                return entry.digest
            case "keep":
                return b""
            case "drop":
                return None

    async def _load(self, device: DeviceId) -> Declaration | None:
        body = (await self._bodies([device])).get(device)
        if body is None:
            return None
        try:
            return self._catalog.declaration(body)
        except ConfigError:
            return None  # the entry has the problem, and the device's state shows it

    # Registration

    async def _replace_link(self, mapper: MapperInfo, with_data: bool) -> Registration | StoreError:
        """The error is a result: raised, it would end the task group. The mapper registers again after it."""
        async with self._registering:
            for other in self._at_address_of(mapper):
                await self._forget(other, f"its address {mapper.address} is that of mapper {mapper.name} now")
            before = self._find(mapper)
            if before is not None and before.mapper.address != mapper.address:
                logger.warning(
                    "mapper %s of protocol %s registers at %s and is known at %s: the newest one counts; "
                    "give each mapper a name of its own",
                    mapper.name,
                    mapper.protocol,
                    mapper.address,
                    before.mapper.address,
                )
            link = self._add(mapper)
            if before is not None:
                await self._end(before)
            try:
                declarations = await self._declarations(mapper) if with_data else []
                handed = {d.device.id: d.digest for d in declarations}
                models = {d.model.id: d.model for d in declarations}
                await self._database.run(lambda db: replace_mapper(db, mapper, handed), sync=True)
            except StoreError as error:
                self._drop(link)
                return error
            link.has_now(handed, models)
            self._start(link)
            logger.info(
                "mapper %s registered with %d devices (protocol %s)", mapper.name, len(declarations), mapper.protocol
            )
            return Registration(devices=tuple(d.device for d in declarations), models=tuple(models.values()))

    async def _declarations(self, mapper: MapperInfo) -> list[Declaration]:
        """Everything that the mapper is to run, as far as one message can carry it. What another one still runs is
        handed over when that one has let go.
        """
        share = [d for d in self._catalog.of_protocol(mapper.protocol) if self._wanted(mapper, d)]
        declarations: list[Declaration] = []
        size = 0
        for device, body in (await self._bodies(share)).items():
            size += len(body)
            if size > _REGISTRATION_BYTES:
                break
            with contextlib.suppress(ConfigError):  # the entry has the problem
                declaration = self._catalog.declaration(body)
                if self._wanted(mapper, device):
                    declarations.append(declaration)
        return declarations

    def _find(self, mapper: MapperInfo) -> MapperLink | None:
        return self._links.get(mapper.protocol, {}).get(mapper.name)

    def _at_address_of(self, mapper: MapperInfo) -> list[MapperLink]:
        return [
            link
            for links in self._links.values()
            for link in links.values()
            if link.mapper.address == mapper.address
            and (link.mapper.protocol, link.mapper.name) != (mapper.protocol, mapper.name)
        ]

    # Links

    def _add(self, mapper: MapperInfo) -> MapperLink:
        """A link in its place, not yet at work: others reckon with the mapper from here on."""
        link = MapperLink(
            mapper,
            self._dial(mapper.address),
            self._database,
            wanted=lambda device: self._wanted(mapper, device),
            load=self._load,
            changed=self._share_again,
            refusal=lambda device: self._judge([device]),
            released=lambda device: self.wake(device, mapper.protocol),
        )
        self._links.setdefault(mapper.protocol, {})[mapper.name] = link
        return link

    def _start(self, link: MapperLink) -> None:
        assert self._tasks is not None  # noqa: S101 - as above
        self._running[link] = self._tasks.create_task(self._keep(link), name=f"mapper {link.mapper.name}")
        self._share_again(link)

    async def _keep(self, link: MapperLink) -> None:
        try:
            await link.run()
        except Exception:  # one mapper's trouble is not the others'
            logger.exception(
                "the link to mapper %s ended; it is made again when the mapper registers", link.mapper.name
            )
            self._running.pop(link, None)
            self._drop(link)

    async def _end(self, link: MapperLink) -> None:
        if review := self._reviews.pop(link, None):
            review.cancel()
        task = self._running.pop(link, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _drop(self, link: MapperLink) -> None:
        """Reckon with it no more."""
        if review := self._reviews.pop(link, None):
            review.cancel()
        protocol = link.mapper.protocol
        if self._find(link.mapper) is link:
            del self._links[protocol][link.mapper.name]
            if not self._links[protocol]:
                del self._links[protocol]
        self._wake_all(protocol)

    async def _forget(self, link: MapperLink, why: str) -> None:
        logger.info("mapper %s of protocol %s is forgotten: %s", link.mapper.name, link.mapper.protocol, why)
        await self._end(link)
        self._drop(link)
        if self._find(link.mapper) is None:  # it did not just register again
            self._database.post(lambda db: delete_mapper(db, link.mapper))

    # Coming and going

    def _share_again(self, link: MapperLink) -> None:
        """It is there, or away, or has been away for long: the shares may be others now."""
        if review := self._reviews.pop(link, None):
            review.cancel()
        loop = asyncio.get_running_loop()
        away_s = link.away_s(loop.time())
        if not link.answering and self._find(link.mapper) is link:
            next_s = spread.MOVE_GRACE_S if away_s < spread.MOVE_GRACE_S else FORGET_S
            self._reviews[link] = loop.call_later(max(next_s - away_s, 0.0) + 0.01, self._review, link)
        self._wake_all(link.mapper.protocol, link.devices)

    def _review(self, link: MapperLink) -> None:
        assert self._tasks is not None  # noqa: S101 - as above
        del self._reviews[link]
        others = [other for other in self._links.get(link.mapper.protocol, {}).values() if other is not link]
        away_s = link.away_s(asyncio.get_running_loop().time())
        if away_s >= FORGET_S and any(other.answering for other in others):
            self._tasks.create_task(self._forget(link, f"it is away for {away_s:.0f} s"), name="forget a mapper")
            return
        if others:
            logger.warning(
                "mapper %s is away for %.0f s: others of protocol %s run its devices",
                link.mapper.name,
                away_s,
                link.mapper.protocol,
            )
        self._share_again(link)

    def _wake_all(self, protocol: str, more: Iterable[DeviceId] = ()) -> None:
        devices = self._catalog.of_protocol(protocol)
        for link in self._links.get(protocol, {}).values():
            for device in {*devices, *more, *link.devices}:
                link.wake(device)
        self._judge(devices)
