"""A cache of all objects of one kind, kept true by list and watch.

List in pages, then watch from the list's version with bookmarks; a watch that ends is resumed where it stood, and only
a version that the server no longer has (410) costs another list. What a list shows as vanished is told as deleted, so
subscribers see every difference exactly as if the watch had never been away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Final

from cloudcore.kube.client import EVERYTHING, KubeClient, Scope
from cloudcore.kube.errors import Gone, KubeError, NotFound, TooManyRequests, Unavailable
from cloudcore.kube.objects import Key, Kind, Object, identity, key_of, metadata_of, resource_version, version_number

__all__ = ["Informer", "Subscriber"]

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_CAP_S: Final = 2.0
STABLE_S: Final = 5.0
"""A watch that lasted longer was a good one: the next trouble starts with the shortest pause again."""
WATCH_TIMEOUT_S: Final = (300, 600)
"""Each watch asks for a random length in between, as client-go does, so that watches do not all renew at once."""
READ_TIMEOUT_S: Final = 90.0
"""Longest silence on a watch. Servers send a bookmark about once a minute."""

Subscriber = Callable[[Key, Object | None, Object | None], None]
"""Called with (key, old, new); None stands for an object that is not there. Only takes note: it holds up the watch."""


class Informer:
    """`run` it in a task; read `get` and `synced` from anywhere in the same loop."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind,
        *,
        scope: Scope = EVERYTHING,
        slim: Callable[[Object], Object] | None = None,
        page_objects: int = 500,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """`slim` makes of an object what is to be kept of it; name, namespace, uid and resourceVersion are needed."""
        self.kind = kind
        self.synced = asyncio.Event()
        """Set once the first list is complete; stays set."""
        self.relists = 0
        self._client = client
        self._scope = scope
        self._slim = slim
        self._page_objects = page_objects
        self._read_timeout_s = read_timeout_s
        self._objects: dict[Key, Object] = {}
        self._version = ""
        """Where to watch from; empty: list first."""
        self._progress = 0
        """How far list and watch have come."""
        self._subscribers: list[Subscriber] = []
        self._trouble = ""

    def subscribe(self, subscriber: Subscriber) -> None:
        """Be told of every change from now on. Subscribe before `run`."""
        self._subscribers.append(subscriber)

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def keys(self) -> Iterable[Key]:
        """Of all objects there are at the moment."""
        return self._objects.keys()

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def progress(self) -> int:
        """The resourceVersion up to which every change is known."""
        return self._progress

    def observe(self, obj: Object) -> None:
        """Take in what the server just answered to a write, ahead of the watch.

        What the watch has already passed is ignored, so that a late answer does not revive a deleted object.
        """
        if version_number(resource_version(obj)) > self._progress:
            self._take(obj)

    async def run(self) -> None:
        """List and watch until cancelled; trouble is logged when it begins and when it ends."""
        clock = asyncio.get_running_loop().time
        delay_s = BACKOFF_FIRST_S
        while True:
            started, wait_s = clock(), 0.0
            try:
                if not self._version:
                    await self._list()
                await self._watch()  # until the server ends it, which it does after the time we asked for
            except Gone as error:
                logger.info("%s: %s; listing again", self.kind.plural, error)
                self._version = ""
            except KubeError as error:
                self._note(error)
                if isinstance(error, TooManyRequests):  # a list would be the last thing that it has time for
                    wait_s = min(error.retry_after_s, 30.0)
                elif error.status:  # an answer, so it is not the connection: do not insist on this version
                    self._version = ""
            if clock() - started > STABLE_S:
                delay_s = BACKOFF_FIRST_S
            await asyncio.sleep(max(wait_s, delay_s * random.uniform(0.5, 1.0)))  # noqa: S311 - jitter, not a secret
            delay_s = min(BACKOFF_CAP_S, delay_s * 2)

    async def _list(self) -> None:
        seen: dict[Key, Object] = {}
        token = ""
        while True:
            page = await self._client.list_page(
                self.kind, scope=self._scope, limit=self._page_objects, continue_token=token
            )
            for item in page.items:
                # Items of a list carry no apiVersion and kind of their own.
                item.setdefault("apiVersion", self.kind.api_version)
                item.setdefault("kind", self.kind.kind)
                # Made small at once: thousands of whole objects would take their room.
                kept = self._kept(item) or self._objects.get(key_of(item))
                if kept is not None:
                    seen[key_of(kept)] = kept
            token = page.continue_token
            if not token:
                break
        listed = version_number(page.resource_version)
        # Answers to writes may be ahead of the list; a list behind what was seen before is a restored store, and true.
        ahead = {
            key
            for key, obj in self._objects.items()
            if version_number(resource_version(obj)) > listed and listed >= self._progress
        }
        self._version, self._progress = page.resource_version, listed
        self.relists += 1
        for key, obj in seen.items():
            if key not in ahead:
                self._put(obj)
        for key in self._objects.keys() - seen.keys() - ahead:
            self._drop(key)
        if not self.synced.is_set():
            logger.info("%s: %d listed", self.kind.plural, len(seen))
            self.synced.set()

    async def _watch(self) -> None:
        timeout_s = random.randint(*WATCH_TIMEOUT_S)  # noqa: S311 - jitter, not a secret
        stream = await self._client.watch(
            self.kind,
            scope=self._scope,
            resource_version=self._version,
            timeout_s=timeout_s,
            read_timeout_s=self._read_timeout_s,
        )
        async with stream:
            self._recovered()
            while (event := await stream.next()) is not None:
                match event.type:
                    case "ADDED" | "MODIFIED":
                        self._advance(event.object)
                        self._take(event.object)
                    case "DELETED":
                        self._advance(event.object)
                        self._drop(key_of(event.object), uid=identity(event.object))
                    case "BOOKMARK":
                        self._advance(event.object)

    def _advance(self, obj: Object) -> None:
        self._version = resource_version(obj) or self._version
        self._progress = version_number(self._version)

    def _take(self, obj: Object) -> None:
        """Unless it is older than what a write's answer has told us already, of this object or of one that has its
        name since.
        """
        old = self._objects.get(key_of(obj))
        if old is not None and version_number(resource_version(obj)) < version_number(resource_version(old)):
            return
        if not _is_same(old, obj) and (kept := self._kept(obj)) is not None:
            self._put(kept)

    def _kept(self, obj: Object) -> Object | None:
        """What is kept of an object; None: it is none that anything can be kept of."""
        metadata_of(obj).pop("managedFields", None)  # often half of an object, and nobody here reads them
        if self._slim is None:
            return obj
        try:
            return self._slim(obj)
        except Exception:  # one bad object must not end the watch of all others
            logger.exception("%s %s: cannot be read, and is left out", self.kind.plural, key_of(obj))
            return None

    def _put(self, obj: Object) -> None:
        key = key_of(obj)
        old = self._objects.get(key)
        if not _is_same(old, obj):
            self._objects[key] = obj
            self._tell(key, old, obj)

    def _drop(self, key: Key, *, uid: str = "") -> None:
        old = self._objects.get(key)
        if old is None or (uid and identity(old) != uid):  # made again since, and that is known already
            return
        del self._objects[key]
        self._tell(key, old, None)

    def _tell(self, key: Key, old: Object | None, new: Object | None) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(key, old, new)
            except Exception:  # one bad object must not end the watch of all others
                logger.exception("%s %s: change could not be noted", self.kind.plural, key)

    def _note(self, error: KubeError) -> None:
        """Log trouble once: again only when it becomes another one."""
        trouble = type(error).__name__
        if trouble == self._trouble:
            logger.debug("%s", error)
            return
        self._trouble = trouble
        if isinstance(error, NotFound):
            logger.error(
                "the API server does not know %s.%s: install the CRDs with `kubetwin crds | kubectl apply -f -`; "
                "trying on",
                self.kind.plural,
                self.kind.group,
            )
        elif isinstance(error, Unavailable):
            logger.warning("%s; trying on", error)
        else:
            logger.error("%s; trying on", error)

    def _recovered(self) -> None:
        if self._trouble:
            self._trouble = ""
            logger.info("%s: the API server answers again", self.kind.plural)


def _is_same(old: Object | None, new: Object) -> bool:
    return old is not None and identity(old) == identity(new) and resource_version(old) == resource_version(new)
