"""What a cluster holds of the devices somebody asked for: read once, or followed as it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from kubetwin.kubectl import ApiAway, Forbidden, Kubectl, KubectlError, Listing
from kubetwin.lenient import items, text
from kubetwin.twin.options import Target

__all__ = ["Away", "Changed", "Follower", "Plural", "Scope", "World", "nodes_away"]

Plural = Literal["devices", "devicemodels", "devicestatuses"]
PLURALS: Final[tuple[Plural, ...]] = ("devices", "devicemodels", "devicestatuses")
RETRY_S: Final = (0.5, 5.0)
"""First and longest pause before an API that is away is asked again."""

Json = Mapping[str, Any]
Key = tuple[str, str]


class Scope(Struct, frozen=True):
    """Which devices: all of a namespace (empty: of all namespaces) that the selectors and the names let through."""

    namespace: str = ""
    names: tuple[Target, ...] = ()
    """With namespaces; empty: all."""
    labels: str = ""
    fields: str = ""

    def places(self) -> list[str]:
        return sorted({t.namespace for t in self.names}) if self.names else [self.namespace]

    def selectors(self, plural: Plural) -> dict[str, str]:
        """Models bear names of their own, and DeviceStatuses not the labels of their devices."""
        if plural == "devicemodels":
            return {}
        if len(self.names) == 1:
            field = f"metadata.name={self.names[0].name}"
            fields = f"{field},{self.fields}" if self.fields and plural == "devices" else field
        else:
            fields = self.fields if plural == "devices" else ""
        return {"fieldSelector": fields, "labelSelector": self.labels if plural == "devices" else ""}

    def has(self, key: Key) -> bool:
        return not self.names or Target(*key) in self.names


class Changed(Struct, frozen=True):
    """Objects of a kind: all that there are in one place, or those that came or went."""

    plural: Plural
    place: str
    items: list[dict[str, Any]]
    is_all: bool = False
    is_gone: bool = False


class Away(Struct, frozen=True):
    """A part cannot be followed for the moment; empty: it is again."""

    trouble: str


class World:
    """The objects by kind and key, as far as told."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._objects: dict[Plural, dict[Key, dict[str, Any]]] = {plural: {} for plural in PLURALS}

    def take(self, change: Changed) -> set[Key] | None:
        """The devices it is about; None: perhaps all."""
        held = self._objects[change.plural]
        if change.is_all:
            for key in [k for k in held if not change.place or k[0] == change.place]:
                del held[key]
        self._hold(change, held)
        return None if change.is_all or change.plural == "devicemodels" else {_key(item) for item in change.items}

    def _hold(self, change: Changed, held: dict[Key, dict[str, Any]]) -> None:
        for item in change.items:
            key = _key(item)
            if change.is_gone:
                held.pop(key, None)
            elif change.plural != "devices" or self.scope.has(key):
                held[key] = item

    def get(self, plural: Plural, keys: Collection[Key] | None = None) -> list[dict[str, Any]]:
        held = self._objects[plural]
        return list(held.values()) if keys is None else [held[key] for key in keys if key in held]

    def nodes(self) -> set[str]:
        """Nodes of devices whose DeviceStatus does not tell whether they are connected: a stock CloudCore's."""
        told = {_key(s) for s in self.get("devicestatuses") if items(s, "status", "extensions", "conditions")}
        nodes = {text(d, "spec", "nodeName") for d in self.get("devices") if _key(d) not in told}
        return nodes - {""}

    @classmethod
    async def read(cls, kubectl: Kubectl, scope: Scope) -> tuple[World, str]:
        """Everything once. The second is what could not be read and is done without; empty: nothing.

        Raises:
            KubectlError: Devices or DeviceStatuses cannot be read.
        """
        world, without = cls(scope), ""
        wanted = [(plural, place) for plural in PLURALS for place in scope.places()]
        answers = await asyncio.gather(
            *(kubectl.list(plural, place, **scope.selectors(plural)) for plural, place in wanted),
            return_exceptions=True,
        )
        for (plural, place), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Listing):
                world.take(Changed(plural, place, answer.items, is_all=True))
            elif isinstance(answer, Forbidden) and plural == "devicemodels":
                without = f"units and types are not shown: {answer}"
            else:
                raise answer
        return world, without


async def nodes_away(kubectl: Kubectl, names: Collection[str]) -> set[str]:
    """Those of the nodes that Kubernetes says are not ready. Best effort: few may read nodes."""
    if not names:
        return set()
    field = f"metadata.name={next(iter(names))}" if len(names) == 1 else ""
    try:
        nodes = await kubectl.list("nodes", fieldSelector=field)
    except KubectlError:
        return set()
    return {
        node["metadata"]["name"] for node in nodes.items if node["metadata"]["name"] in names and not is_ready(node)
    }


def is_ready(node: Json) -> bool:
    """Whether a Node is ready, as far as it says."""
    conditions = items(node, "status", "conditions")
    return all(c.get("status") == "True" for c in conditions if c.get("type") == "Ready")


class Follower:
    """Keeps a world up to date from kubectl's watches, over restarts of the API.

    An `async with`; `next()` gives what happened. One task for each kind and namespace; all end with the block.
    """

    def __init__(self, kubectl: Kubectl, scope: Scope, plurals: Iterable[Plural] = PLURALS) -> None:
        self._kubectl = kubectl
        self._scope = scope
        self._parts = [(plural, place) for plural in plurals for place in scope.places()]
        self._news: asyncio.Queue[Changed | Away | KubectlError] = asyncio.Queue(1000)  # full: kubectl waits
        self._tasks: list[asyncio.Task[None]] = []
        self._away: set[tuple[Plural, str]] = set()

    async def __aenter__(self) -> Follower:
        self._tasks = [
            asyncio.create_task(self._keep(plural, place), name=f"follow {plural} {place}")
            for plural, place in self._parts
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, *, within_s: float | None = None) -> Changed | Away | None:
        """What happened next; None: nothing did in that time.

        Raises:
            KubectlError: It cannot be followed, and trying again would not help.
        """
        try:
            async with asyncio.timeout(within_s):
                news = await self._news.get()
        except TimeoutError:
            return None
        if isinstance(news, KubectlError):
            raise news
        return news

    async def _keep(self, plural: Plural, place: str) -> None:
        loop, pause, was_read = asyncio.get_running_loop(), RETRY_S[0], False
        while True:
            try:
                selectors = self._scope.selectors(plural)
                listing = await self._kubectl.list(plural, place, **selectors)
                await self._news.put(Changed(plural, place, listing.items, is_all=True))
                await self._is_away(plural, place, "")
                version, was_read = listing.version, True
                while version:
                    started = loop.time()
                    version = await self._watch(plural, place, version, selectors)
                    if loop.time() - started < RETRY_S[1]:  # it ended at once: do not ask in circles
                        break
                    pause = RETRY_S[0]
            except (KubectlError, ValueError) as error:  # ValueError: an event that is no JSON
                if isinstance(error, Forbidden) and plural == "devicemodels" and not was_read:  # done without
                    await self._news.put(Changed(plural, place, [], is_all=True))
                    return
                # An API that starts refuses for a while, in many ways, what it has allowed before.
                if isinstance(error, KubectlError) and not was_read and not isinstance(error, ApiAway):
                    await self._news.put(error)
                    return
                await self._is_away(plural, place, str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])

    async def _is_away(self, plural: Plural, place: str, trouble: str) -> None:
        """Told once for all parts: when the first goes, and when the last is back."""
        before = bool(self._away)
        (self._away.add if trouble else self._away.discard)((plural, place))
        if before != bool(self._away):
            await self._news.put(Away(trouble))

    async def _watch(self, plural: Plural, place: str, version: str, selectors: dict[str, str]) -> str:
        """Follow until the watch ends by itself; where to go on, empty: list again."""
        async with self._kubectl.watch(plural, place, version=version, **selectors) as lines:
            while line := await _line(lines):
                event = json.loads(line) if line.endswith(b"\n") else {}  # cut short: listed again
                obj = event.get("object") or {}
                match event.get("type"):
                    case "ADDED" | "MODIFIED":
                        await self._news.put(Changed(plural, place, [obj]))
                    case "DELETED":
                        await self._news.put(Changed(plural, place, [obj], is_gone=True))
                    case "BOOKMARK":
                        pass
                    case _:  # ERROR, usually 410: that version is history
                        return ""
                version = (obj.get("metadata") or {}).get("resourceVersion") or version
        return version


async def _line(lines: asyncio.StreamReader) -> bytes:
    try:
        return await lines.readline()
    except ValueError as error:  # longer than MAX_LINE_BYTES
        raise KubectlError("the API sent an event of more than 16 MiB") from error


def _key(obj: Json) -> Key:
    return text(obj, "metadata", "namespace"), text(obj, "metadata", "name")
