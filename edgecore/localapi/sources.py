"""Where the answers come from, as far as the API needs to see it; `app` hands over the modules that have it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from cloudedge.facts import DeviceFacts
from dmi import DeviceId
from dmi.metrics import Metrics
from edgecore.store import Database

__all__ = ["FactsReader", "HistoryReader", "PointView", "Sources"]


class FactsReader(Protocol):
    """`devicetwin`'s."""

    def devices(self) -> Sequence[DeviceId]:
        """All of this node."""
        ...

    def is_here(self, device: DeviceId) -> bool: ...

    def node_facts(self) -> DeviceFacts:
        """What does not depend on a device; `device` is empty."""
        ...

    async def brief(self, devices: Sequence[DeviceId]) -> list[DeviceFacts]:
        """Without properties; those that are not here are left out.

        Raises:
            StoreError: The store cannot be read.
        """
        ...

    async def path(self, device: DeviceId) -> DeviceFacts:
        """Everything, also of a device that is not here. A store that cannot be read is one of the facts."""
        ...


class PointView(Protocol):
    """One value of the past."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def collected_ms(self) -> int: ...
    @property
    def quality(self) -> str: ...


class HistoryReader(Protocol):
    """`history`'s."""

    @property
    def trouble(self) -> str:
        """Why nothing is written; empty: it is."""
        ...

    async def newest_first(
        self, device: DeviceId, name: str, *, since_ms: int, limit: int, max_bytes: int
    ) -> tuple[Sequence[PointView], bool]:
        """Points of one property, or with an empty name of all, and whether there are more.

        Raises:
            OSError, ValueError, sqlite3.Error: They cannot be read.
        """
        ...


class Sources(Struct, frozen=True, eq=False):
    facts: FactsReader
    database: Database
    metrics: Metrics
    served: asyncio.Event
    """Set once mappers are let in."""
    history: HistoryReader | None = None
