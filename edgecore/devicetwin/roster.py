"""Which mappers there are, and which of them a device belongs to: in memory, asked at the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from dmi import DeviceId
from dmi.ports import MapperInfo
from edgecore.devicetwin import spread
from edgecore.devicetwin.catalog import Catalog, Entry
from edgecore.devicetwin.links import MapperLink
from edgecore.devicetwin.spread import Claim, Member, claim_of, live_names, owner_of

__all__ = ["Roster"]


class Roster:
    """Links by protocol and name of their mapper."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._links: dict[str, dict[str, MapperLink]] = {}

    def __iter__(self) -> Iterator[MapperLink]:
        for links in self._links.values():
            yield from links.values()

    def __len__(self) -> int:
        return sum(map(len, self._links.values()))

    def of_protocol(self, protocol: str) -> list[MapperLink]:
        return [*self._links.get(protocol, {}).values()]

    def find(self, mapper: MapperInfo) -> MapperLink | None:
        return self._links.get(mapper.protocol, {}).get(mapper.name)

    def at_address_of(self, mapper: MapperInfo) -> list[MapperLink]:
        """Others than this one."""
        return [
            link
            for link in self
            if link.mapper.address == mapper.address
            and (link.mapper.protocol, link.mapper.name) != (mapper.protocol, mapper.name)
        ]

    def put(self, link: MapperLink) -> None:
        """In the place of the one of its name."""
        self._links.setdefault(link.mapper.protocol, {})[link.mapper.name] = link

    def drop(self, link: MapperLink) -> None:
        """Unless another one has its place already."""
        protocol, name = link.mapper.protocol, link.mapper.name
        if self.find(link.mapper) is link:
            del self._links[protocol][name]
            if not self._links[protocol]:
                del self._links[protocol]

    def owner(self, device: DeviceId, entry: Entry) -> MapperLink | None:
        """Who runs the device, or would."""
        links = self._links.get(entry.protocol, {})
        name = entry.mapper or owner_of(device, live_names(self._members(device, entry.protocol)))
        return None if name is None else links.get(name)

    def holder(self, device: DeviceId) -> MapperLink | None:
        """The only mapper that has the device. While it moves, or when one that is gone had it too, nobody can tell who
        reports it: DMI does not say.
        """
        entry = self._catalog.get(device)
        links = self.of_protocol(entry.protocol) if entry is not None else []
        holders = [link for link in links if device in link.devices] if len(links) > 1 else links
        return holders[0] if len(holders) == 1 else None

    def claim(self, mapper: MapperInfo, device: DeviceId, entry: Entry) -> Claim:
        """What the mapper is to do with a device of its protocol."""
        return claim_of(device, mapper.name, self._members(device, mapper.protocol), pinned=entry.mapper)

    def _members(self, device: DeviceId, protocol: str) -> list[Member]:
        now = asyncio.get_running_loop().time()
        return [_member(link, device, now) for link in self._links.get(protocol, {}).values()]


def _member(link: MapperLink, device: DeviceId, now: float) -> Member:
    alive = link.away_s(now) < spread.MOVE_GRACE_S
    return Member(
        link.mapper.name,
        answering=link.answering,
        alive=alive,
        holds=device in link.devices,
        runs=link.lease.only_reports or (alive and link.lease.is_beginning),
    )
