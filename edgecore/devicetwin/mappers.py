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

from cloudedge.facts import MapperFacts
from cloudedge.message import now_ms
from dmi import ConfigError, DeviceId, DmiError, NodeName, Overloaded
from dmi.metrics import Metrics
from dmi.ports import MapperInfo, MapperPort, Registration
from dmi.types import PIN
from edgecore.devicetwin import lease, registration, spread
from edgecore.devicetwin.catalog import Catalog, Declaration, Entry
from edgecore.devicetwin.links import UNCERTAIN, MapperLink
from edgecore.devicetwin.merge import Fault
from edgecore.devicetwin.roster import Roster
from edgecore.store import Database, StoreError, delete_mapper, replace_mapper

__all__ = ["Mappers"]

logger = logging.getLogger(__name__)

FORGET_S: Final = 3600.0
"""A mapper that was away for so long, while others of its protocol run its devices, is forgotten until it registers."""
MAX_MAPPERS: Final = 256
"""On one node. Each has a link, and rows in the metrics."""
NO_MAPPER_GRACE_S: Final = 10.0
"""How long the first mapper of a protocol may take to register before its devices are shown as unknown."""
REFUSAL_GRACE_S: Final = 1.0
"""What the mapper needs for the device may be right behind it."""


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
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._node = node
        self._dial = dial
        self._bodies = bodies
        self._judge = judge
        self._roster = Roster(catalog)
        self._running: dict[MapperLink, asyncio.Task[None]] = {}
        self._reviews: dict[MapperLink, asyncio.TimerHandle] = {}
        self._registering = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._metrics = metrics
        self._calls = metrics.counter(
            "kubetwin_edgecore_mapper_calls_total",
            "Calls to mappers. ok; refused: answered with an error; timeout: not answered in time; "
            "unavailable: not reached; cancelled: by us; failed: a bug of ours.",
            "rpc",
            "mapper",
            "outcome",
        )
        labels = ("protocol", "mapper")
        metrics.gauge(
            "kubetwin_edgecore_mapper_answering",
            "1: it can be called; 0: it is away, hangs, or its socket is gone.",
            *labels,
            read=lambda: {(link.mapper.protocol, link.mapper.name): float(link.answering) for link in self._roster},
        )
        metrics.gauge(
            "kubetwin_edgecore_mapper_devices",
            "Devices that the mapper has, or may have.",
            *labels,
            read=lambda: {(link.mapper.protocol, link.mapper.name): len(link.devices) for link in self._roster},
        )

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
            Overloaded: There are too many already.
        """
        assert self._tasks is not None  # noqa: S101 - called while `running`
        if self._roster.find(mapper) is None and len(self._roster) >= MAX_MAPPERS:
            await self._make_room()
        # In a task of its own: a mapper that hangs up half-way must not leave its devices without a link.
        task = self._tasks.create_task(
            self._replace_link(mapper, with_data, asyncio.get_running_loop().time()), name=f"register {mapper.name}"
        )
        outcome = await asyncio.shield(task)
        if isinstance(outcome, StoreError):
            raise DmiError(str(outcome)) from outcome
        return outcome

    def wake(self, device: DeviceId, *protocols: str) -> None:
        """Have the mappers of these protocols compare the device again."""
        for protocol in set(protocols):
            for link in self._roster.of_protocol(protocol):
                link.wake(device)

    def renew(self, device: DeviceId, protocol: str) -> None:
        """The device is no more, or another one of its name: the mappers that have it let go of it."""
        for link in self._roster.of_protocol(protocol):
            link.renew(device)

    def heard(self, device: DeviceId) -> None:
        """A mapper reported this device, so the one that runs it is alive."""
        if (link := self._roster.holder(device)) is not None:
            link.lease.heard()

    def runner(self, device: DeviceId) -> str:
        """The mapper that a report of this device comes from, as `protocol/name`; empty where nobody can tell."""
        link = self._roster.holder(device)
        return "" if link is None else link.title

    def fault(self, device: DeviceId, entry: Entry) -> tuple[Fault | None, float]:
        """Why no mapper runs the device, as far as that is a matter of mappers; and how many seconds it may last
        before it is shown.
        """
        link = self._roster.owner(device, entry)
        if link is None and entry.mapper and self._roster.of_protocol(entry.protocol):
            which = f"mapper {entry.mapper!r} of protocol {entry.protocol!r}"
            reason = f"{which}, which spec.protocol.configData.{PIN} asks for, is not registered on this node"
            return Fault("unknown", reason), NO_MAPPER_GRACE_S
        if link is None:
            reason = f"no mapper for protocol {entry.protocol!r} is registered on node {self._node}"
            return Fault("unknown", reason), NO_MAPPER_GRACE_S
        if not link.answering:
            left_s = max(lease.LEASE_S - link.away_s(asyncio.get_running_loop().time()), 0.0)
            return Fault("unhealthy" if link.lease.only_reports else "unknown", link.lease.trouble), left_s
        if refusal := link.refused.get(device):
            return Fault("unhealthy", f"mapper {link.mapper.name} {refusal}"), REFUSAL_GRACE_S
        return None, 0.0

    # What there is to see

    @property
    def registered(self) -> tuple[str, ...]:
        """`protocol/name` of each."""
        return tuple(sorted(link.title for link in self._roster))

    def facts(self, device: DeviceId, entry: Entry) -> MapperFacts | None:
        """Of the mapper that runs the device, or would."""
        link = self._roster.owner(device, entry)
        return None if link is None else link.facts(device, entry.digest)

    # Who runs what

    def _wanted(self, mapper: MapperInfo, device: DeviceId) -> bytes | None:
        """`MapperLink`'s `wanted`."""
        entry = self._catalog.get(device)
        if entry is None or entry.protocol != mapper.protocol:
            return None
        match self._roster.claim(mapper, device, entry):
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

    async def _replace_link(self, mapper: MapperInfo, with_data: bool, since: float) -> Registration | StoreError:
        """The error is a result: raised, it would end the task group. The mapper registers again after it.

        Until the link is started the mapper does not count as away, however long the store takes: nobody else gets what
        the answer gives it.
        """
        async with self._registering:
            for other in self._roster.at_address_of(mapper):
                await self._forget(other, f"its address {mapper.address} is that of mapper {mapper.name} now")
            before = self._roster.find(mapper)
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
                # It may run on what it had, until it has the answer.
                link.has_now(dict.fromkeys(before.devices, UNCERTAIN), {})
                await self._end(before)
            try:
                share = self._catalog.of_protocol(mapper.protocol) if with_data else []
                wanted = [device for device in share if self._wanted(mapper, device)]
                declarations = await registration.full_set(
                    wanted,
                    catalog=self._catalog,
                    bodies=self._bodies,
                    wanted=lambda device: self._wanted(mapper, device),
                    until=since + registration.BUDGET * mapper.patience_s,
                )
                handed = {d.device.id: d.digest for d in declarations}
                partial = before is not None and any(d not in handed and self._wanted(mapper, d) for d in wanted)
                if before is not None and partial:
                    handed = {**dict.fromkeys(before.devices, UNCERTAIN), **handed}
                await self._database.run(lambda db: replace_mapper(db, mapper, handed), sync=True)
            except StoreError as error:
                self._drop(link)
                return error
            answer = registration.answer_of(declarations, partial=partial)
            link.has_now(handed, {model.id: model for model in answer.models})
            link.registered_ms = now_ms()
            self._start(link)
            logger.info(
                "mapper %s registered with %d devices (protocol %s)", mapper.name, len(declarations), mapper.protocol
            )
            return answer

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
            calls=self._calls,
        )
        self._roster.put(link)
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
        self._roster.drop(link)
        self._wake_all(link.mapper.protocol)

    async def _make_room(self) -> None:
        """Forget the mapper that is away longest, and that for long: names that never come again, as containers have,
        must not keep everybody else out.
        """
        now = asyncio.get_running_loop().time()
        longest = max(self._roster, key=lambda link: link.away_s(now))
        if (away_s := longest.away_s(now)) < FORGET_S:
            raise Overloaded(f"too many mappers: {MAX_MAPPERS} are registered on node {self._node}, and no more can be")
        await self._forget(longest, f"it is away for {away_s:.0f} s, and another one needs its place")

    async def _forget(self, link: MapperLink, why: str) -> None:
        logger.info("mapper %s of protocol %s is forgotten: %s", link.mapper.name, link.mapper.protocol, why)
        await self._end(link)
        self._drop(link)
        self._metrics.forget("mapper", link.title)
        if self._roster.find(link.mapper) is None:  # it did not just register again
            self._database.post(lambda db: delete_mapper(db, link.mapper))

    # Coming and going

    def _share_again(self, link: MapperLink) -> None:
        """It is there, or away, or has been away for long: the shares may be others now."""
        if review := self._reviews.pop(link, None):
            review.cancel()
        link.lease.look()
        loop = asyncio.get_running_loop()
        away_s = link.away_s(loop.time())
        if not link.answering and self._roster.find(link.mapper) is link:
            # Away for longer than all of these it is the only one, or none of the others answers either.
            next_s = next((at - away_s for at in (spread.MOVE_GRACE_S, FORGET_S) if away_s < at), FORGET_S)
            self._reviews[link] = loop.call_later(next_s + 0.01, self._review, link)
        self._wake_all(link.mapper.protocol, link.devices)

    def _review(self, link: MapperLink) -> None:
        assert self._tasks is not None  # noqa: S101 - as above
        del self._reviews[link]
        others = any(o.answering for o in self._roster.of_protocol(link.mapper.protocol) if o is not link)
        away_s = link.away_s(asyncio.get_running_loop().time())
        if away_s >= FORGET_S and others:
            self._tasks.create_task(self._forget(link, f"it is away for {away_s:.0f} s"), name="forget a mapper")
            return
        if others and away_s >= spread.MOVE_GRACE_S:
            logger.warning(
                "mapper %s is away for %.0f s: others of protocol %s run its devices",
                link.mapper.name,
                away_s,
                link.mapper.protocol,
            )
        self._share_again(link)

    def _wake_all(self, protocol: str, more: Iterable[DeviceId] = ()) -> None:
        devices = self._catalog.of_protocol(protocol)
        for link in self._roster.of_protocol(protocol):
            for device in {*devices, *more, *link.devices}:
                link.wake(device)
        self._judge(devices)
