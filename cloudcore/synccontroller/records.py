"""The records of all nodes: a cache of what the API has, and what is still to be written there.

They are written behind: after an acknowledgement, the newest per object, by few writers that rest in between and stand
back while values of devices wait to be written. Nothing that a node of ours needs depends on them, since it says
itself what it has; they are for upstream's cloud core, which may take over, and for deletions that an edge core of
upstream's missed (ADR 26).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from typing import Final

from msgspec import Struct

from cloudcore.kube import (
    AlreadyExists,
    Conflict,
    Informer,
    Invalid,
    Key,
    KeyedQueue,
    KubeClient,
    KubeError,
    NotFound,
    Object,
    resource_version,
)
from cloudcore.synccontroller.record import (
    CLUSTER_RECORDS,
    NEVER,
    RECORDS,
    Record,
    RecordId,
    acknowledged_object,
    kind_of,
    later,
    newer,
    next_step,
    read_record,
    record_key,
    record_object,
    record_of,
    slim,
)
from cloudedge import Message
from dmi.metrics import Metrics

__all__ = ["Records"]

logger = logging.getLogger(__name__)

WRITERS: Final = 2
REST: Final = 3.0
"""A writer rests for so many times as long as its write took: records get half of what the API could do for one."""
PATIENCE_S: Final = 2.0
"""Longest that a write stands back for others, so that there is an end to it when these never rest."""
STAND_BACK_S: Final = 0.05
RETRY_CAP_S: Final = 60.0
TRIES: Final = 6
"""Of a record that cannot be made, such as in a namespace that is gone by now."""


class _Wish(Struct, frozen=True, gc=False):
    record: Record
    gone: bool


class Records:
    """`run` it in a task. What is asked before the first list is complete finds nothing."""

    def __init__(
        self, client: KubeClient, *, metrics: Metrics | None = None, busy: Callable[[], bool] = lambda: False
    ) -> None:
        """`busy`: whether there are writes to the API that matter more."""
        metrics = metrics or Metrics()
        self._writes = metrics.counter(
            "kubetwin_cloudcore_sync_record_writes_total", "Writes of ObjectSync and ClusterObjectSync.", "result"
        )
        metrics.gauge(
            "kubetwin_cloudcore_sync_records_behind",
            "Records that are still to be written.",
            read=lambda: {(): float(len(self._wishes))},
        )
        metrics.gauge(
            "kubetwin_cloudcore_sync_records",
            "Records that the API has.",
            read=lambda: {(): float(len(self._caches[True]) + len(self._caches[False]))},
        )
        self._client = client
        self._busy = busy
        self._caches = {
            True: Informer(client, RECORDS, slim=slim),
            False: Informer(client, CLUSTER_RECORDS, slim=slim),
        }
        """By whether they are of a namespace."""
        self._of_node: dict[str, dict[str, str]] = {}
        """By node and uid the namespace."""
        self._wishes: dict[RecordId, _Wish] = {}
        self._failures: dict[RecordId, int] = {}
        self._queue: KeyedQueue[RecordId] = KeyedQueue()
        for cache in self._caches.values():
            cache.subscribe(self._record_changed)

    @property
    def synced(self) -> bool:
        """Whether all that there are are known."""
        return all(cache.synced.is_set() for cache in self._caches.values())

    @property
    def behind(self) -> int:
        """How many are still to be written."""
        return len(self._wishes)

    async def run(self) -> None:
        """Follow the API and write what is behind, until cancelled. Survives an API server that is away."""
        try:
            async with asyncio.TaskGroup() as group:
                for cache in self._caches.values():
                    group.create_task(cache.run(), name=f"watch {cache.kind.plural}")
                for cache in self._caches.values():
                    await cache.synced.wait()
                for number in range(WRITERS):
                    group.create_task(self._work(), name=f"write records {number}")
        finally:
            self._queue.close()

    # Asked by those who send objects. None of these waits, but for `ensure`.

    async def ensure(self, node: str, obj: Object) -> None:
        """Returns when there is a record, so that a deletion of `obj` is not forgotten from the first send on, whatever
        happens to this process. Tries until it is cancelled. `obj`: with apiVersion, kind, name, namespace and uid.
        """
        record = record_of(node, obj, NEVER)
        if (wish := self._wishes.get(record.id)) is not None and wish.gone:
            self._note(record)  # it was to be deleted, and is sent again
        delay_s = 0.1
        while self._cached(record.id) is None:
            try:
                await self._make(record)
                return
            except Invalid as error:  # such as a name too long: there never will be one, so nobody is to wait for it
                logger.debug("record %s: %s; doing without", record_key(record), error)
                return
            except KubeError as error:
                logger.debug("record %s: %s; trying on", record_key(record), error)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay_s = min(5.0, delay_s * 2)

    def acknowledged(self, node: str, message: Message) -> None:
        """The node acknowledged an object message: it has that version, or after a delete the object no more."""
        news = acknowledged_object(node, message)
        if news is None:
            return
        if news.deleted:
            self.forget(node, news.record.id.uid)
        else:
            self._note(news.record)

    def stored(self, node: str, obj: Object, version: str) -> None:
        """The node says that it has `obj` in that version."""
        self._note(record_of(node, obj, version))

    def forget(self, node: str, uid: str) -> None:
        """The node does not have the object any more."""
        id_ = RecordId(node, uid)
        wish = self._wishes.get(id_)
        known = wish.record if wish is not None else self._cached(id_)
        if known is not None:
            self._wish(_Wish(known, gone=True))

    def get(self, node: str, uid: str) -> Record | None:
        """What is known of the object at that node, whether it is written yet or not."""
        id_ = RecordId(node, uid)
        wish = self._wishes.get(id_)
        if wish is not None:
            return None if wish.gone else wish.record
        return self._cached(id_)

    def known(self, node: str, kinds: Collection[str]) -> tuple[Record, ...]:
        """Of one node and these kinds, such as `Device`, what it has or may have: also what was sent and never
        acknowledged.
        """
        ids = (RecordId(node, uid) for uid in self._of_node.get(node, ()))
        there = (record for id_ in ids if (record := self.get(node, id_.uid)) is not None)
        return tuple(record for record in there if record.kind in kinds)

    def nodes(self) -> tuple[str, ...]:
        """Those that there are records of."""
        return tuple(self._of_node)

    def forget_node(self, node: str) -> int:
        """There is no such node any more. Returns how many records go."""
        uids = tuple(self._of_node.get(node, ()))
        for uid in uids:
            self.forget(node, uid)
        return len(uids)

    # The cache.

    def _cached(self, id_: RecordId) -> Record | None:
        found = self._found(id_)
        return None if found is None else read_record(found)

    def _found(self, id_: RecordId) -> Object | None:
        namespace = self._of_node.get(id_.node, {}).get(id_.uid)
        if namespace is None:
            return None
        return self._caches[bool(namespace)].get(Key(namespace, f"{id_.node}.{id_.uid}"))

    def _record_changed(self, key: Key, _old: Object | None, new: Object | None) -> None:
        node, _, uid = key.name.rpartition(".")
        if not (node and uid):
            return
        if new is not None:
            # The name in the cache and these two share no memory; the namespace does.
            self._of_node.setdefault(node, {})[uid] = new["metadata"]["namespace"]
            return
        uids = self._of_node.get(node, {})
        uids.pop(uid, None)
        if not uids:
            self._of_node.pop(node, None)

    # What is to be written.

    def _note(self, record: Record) -> None:
        wish = self._wishes.get(record.id)
        if wish is not None and not wish.gone:
            if newer(record.version, wish.record.version):
                self._wish(_Wish(later(wish.record, record), gone=False))
        elif wish is not None or next_step(self._found(record.id), record) != "nothing":
            self._wish(_Wish(record, gone=False))

    def _wish(self, wish: _Wish) -> None:
        self._wishes[wish.record.id] = wish
        self._queue.add(wish.record.id)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            id_ = await self._queue.get()
            began = clock()
            try:
                await self._stand_back()
                began = clock()
                await self._write(id_)
                self._failures.pop(id_, None)
            except KubeError as error:
                self._retry(id_, error)
            except Exception:  # one record must not stop all others
                logger.exception("record of %s at node %s could not be written", id_.uid, id_.node)
                self._queue.add(id_, delay_s=RETRY_CAP_S)
            finally:
                self._queue.done(id_)
            await asyncio.sleep((clock() - began) * REST)

    async def _stand_back(self) -> None:
        for _ in range(round(PATIENCE_S / STAND_BACK_S)):
            if not self._busy():
                return
            await asyncio.sleep(STAND_BACK_S)

    async def _write(self, id_: RecordId) -> None:
        wish = self._wishes.get(id_)
        if wish is None:
            return
        match next_step(self._found(id_), None if wish.gone else wish.record):
            case "create":
                await self._make(wish.record)
            case "update":
                await self._update(wish.record)
            case "delete":
                await self._delete(wish.record)
            case "nothing":
                pass
        if self._wishes.get(id_) is wish:
            del self._wishes[id_]
        else:
            self._queue.add(id_)

    async def _make(self, record: Record) -> None:
        """The status is a subresource, so it takes two writes."""
        cache = self._caches[bool(record.namespace)]
        try:
            cache.observe(await self._client.create(kind_of(record), record_object(record)))
            self._writes.add("created")
        except AlreadyExists:
            cache.observe(await self._client.get(kind_of(record), record_key(record)))
        await self._update(record)

    async def _update(self, record: Record) -> None:
        found = self._found(record.id)
        if found is None or next_step(found, record) != "update":
            return
        cache, key = self._caches[bool(record.namespace)], record_key(record)
        patch = {
            "metadata": {"resourceVersion": resource_version(found)},  # else a late write could set it back
            "status": {"objectResourceVersion": record.version},
        }
        try:
            cache.observe(await self._client.patch(kind_of(record), key, patch, subresource="status"))
        except Conflict:
            cache.observe(await self._client.get(kind_of(record), key))
            raise
        self._writes.add("updated")

    async def _delete(self, record: Record) -> None:
        try:
            await self._client.delete(kind_of(record), record_key(record))
            self._writes.add("deleted")
        except NotFound:
            pass

    def _retry(self, id_: RecordId, error: KubeError) -> None:
        failures = self._failures[id_] = self._failures.get(id_, 0) + 1
        if isinstance(error, Invalid) or (isinstance(error, NotFound) and failures >= TRIES):
            logger.warning("node %s: no record of object %s: %s", id_.node, id_.uid, error)
            self._writes.add("failed")
            self._failures.pop(id_, None)
            self._wishes.pop(id_, None)
            return
        delay_s = min(RETRY_CAP_S, 0.1 * 2 ** min(failures, 12)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._queue.add(id_, delay_s=max(delay_s, min(error.retry_after_s, RETRY_CAP_S)))
