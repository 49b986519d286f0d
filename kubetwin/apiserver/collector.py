"""What follows from a write: owned objects go with their owners, the content of namespaces and definitions with them.

Level-triggered: committed events only name objects to look at, and each look decides from the current state. At start
every object is looked at once, so what a stopped server left half done is finished.

Reference: Kubernetes documentation, "Garbage Collection", "Owners and Dependents", "Finalizers".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable

from kubetwin.apiserver import crd
from kubetwin.apiserver.admission import Target
from kubetwin.apiserver.errors import ApiError
from kubetwin.apiserver.items import Event, Item, JsonObject, Key, Owner
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.objects import FOREGROUND, ORPHAN, DeleteOptions, Objects, Preconditions, Propagation
from kubetwin.apiserver.store import Store

logger = logging.getLogger(__name__)

_RETRY_S = 5.0  # after the store refused a write: a full disk may have room again
_BURST = 64  # looks between two chances for requests to run


class Collector:
    """Runs the garbage collector; `run` is the task, `observe` feeds it."""

    def __init__(self, store: Store, registry: Registry, objects: Objects) -> None:
        self._store = store
        self._registry = registry
        self._objects = objects
        self._pending: dict[tuple[str, Key], None] = {}  # ordered, each object once: bounded by the objects there are
        self._wake = asyncio.Event()
        self._dependents: dict[str, dict[tuple[str, Key], None]] = defaultdict(dict)  # by owner uid
        for item in store.all_items():
            self._index(item)
            self._look_at(item.resource, item.key)

    def observe(self, event: Event) -> None:
        """A committed write."""
        item, before = event.item, event.previous
        if before is not None and (event.type == "DELETED" or before.owners != item.owners):
            for owner in before.owners:
                self._dependents[owner.uid].pop((item.resource, item.key), None)
                if not self._dependents[owner.uid]:
                    del self._dependents[owner.uid]
                self._look_at_owner(owner.uid)  # it may wait in the foreground for its last dependent
        if event.type == "DELETED":
            for resource, key in self._dependents.get(item.uid, {}):
                self._look_at(resource, key)
            if item.namespace:
                self._look_if_deleting("namespaces", ("", item.namespace))
            self._look_if_deleting(crd.RESOURCE, ("", item.resource))
            if item.resource == crd.RESOURCE:
                self._retry_refused_definitions()
            return
        self._index(item)
        if item.owners or item.deleting:
            self._look_at(item.resource, item.key)

    async def run(self) -> None:
        """Work until cancelled."""
        failed: dict[tuple[str, Key], None] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if failed else None):
                    await self._wake.wait()
            self._wake.clear()
            self._pending.update(failed)
            failed.clear()
            count = 0
            while self._pending:
                resource, key = next(iter(self._pending))
                del self._pending[resource, key]
                try:
                    await self._look(resource, key)
                except ApiError as exc:
                    # NotFound and Conflict: somebody was faster, and the event of their write brings us back.
                    if exc.code not in (404, 409):
                        logger.warning("garbage collection of %s %s: %s", resource, "/".join(key), exc.message)
                        failed[resource, key] = None
                except Exception:
                    logger.exception("garbage collection of %s %s failed", resource, "/".join(key))
                count += 1
                if count % _BURST == 0:
                    await asyncio.sleep(0)

    def _index(self, item: Item) -> None:
        for owner in item.owners:
            self._dependents[owner.uid][item.resource, item.key] = None

    def _look_at(self, resource: str, key: Key) -> None:
        self._pending[resource, key] = None
        self._wake.set()

    def _look_at_owner(self, uid: str) -> None:
        owner = self._store.by_uid(uid)
        if owner is not None and owner.deleting:
            self._look_at(owner.resource, owner.key)

    def _look_if_deleting(self, resource: str, key: Key) -> None:
        item = self._store.get(resource, key)
        if item is not None and item.deleting:
            self._look_at(resource, key)

    def _retry_refused_definitions(self) -> None:
        for item in list(self._store.state(crd.RESOURCE).items.values()):
            if not crd.is_established(item.decode()):
                self._look_at(item.resource, item.key)

    async def _look(self, resource: str, key: Key) -> None:
        item = self._store.get(resource, key)
        if item is None:
            return
        if item.deleting:
            await self._finish_deletion(item)
            return
        if item.owners:
            await self._check_owners(item)
        if resource == crd.RESOURCE and not crd.is_established(item.decode()):
            await self._objects.amend(item, lambda _obj: None)

    async def _check_owners(self, item: Item) -> None:
        """Delete an object whose owners are all gone; drop references to owners that are gone beside living ones."""
        gone = [owner for owner in item.owners if not self._is_there(item, owner)]
        if not gone:
            return
        if len(gone) == len(item.owners):
            await self._delete(item, "Background")
            return
        uids = {owner.uid for owner in gone}
        await self._drop_owners(item, uids)

    def _is_there(self, item: Item, owner: Owner) -> bool:
        found = self._store.by_uid(owner.uid)
        return found is not None and found.namespace in ("", item.namespace)

    async def _finish_deletion(self, item: Item) -> None:
        if item.resource == "namespaces":
            await self._empty_namespace(item)
        elif item.resource == crd.RESOURCE and crd.CLEANUP_FINALIZER in item.finalizers:
            await self._empty_definition(item)
        elif FOREGROUND in item.finalizers:
            dependents = self._owned_by(item)
            blocking = [
                one for one in dependents if any(o.uid == item.uid and o.block_owner_deletion for o in one.owners)
            ]
            for dependent in dependents:
                if not dependent.deleting:
                    await self._delete(dependent, "Foreground" if self._dependents.get(dependent.uid) else "Background")
            if not any(self._store.get(one.resource, one.key) is not None for one in blocking):
                await self._drop_finalizer(item, FOREGROUND)
        elif ORPHAN in item.finalizers:
            for dependent in self._owned_by(item):
                await self._drop_owners(dependent, {item.uid})
            await self._drop_finalizer(item, ORPHAN)

    def _owned_by(self, item: Item) -> list[Item]:
        found = (self._store.get(resource, key) for resource, key in list(self._dependents.get(item.uid, {})))
        return [one for one in found if one is not None]

    async def _empty_namespace(self, item: Item) -> None:
        content = [
            one
            for kind in list(self._registry)
            if kind.namespaced
            for one in self._store.state(kind.resource).sorted_items(item.name)
        ]
        await self._delete_all(content)
        if any(self._store.get(one.resource, one.key) is not None for one in content):
            return  # finalizers hold some; their removal brings us back

        def release(obj: JsonObject) -> None:
            obj["spec"] = {}

        await self._objects.amend(item, release)

    async def _empty_definition(self, item: Item) -> None:
        content = list(self._store.state(item.name).items.values())
        await self._delete_all(content)
        if not any(self._store.get(one.resource, one.key) is not None for one in content):
            await self._drop_finalizer(item, crd.CLEANUP_FINALIZER)

    async def _delete_all(self, content: Iterable[Item]) -> None:
        waiting = [self._delete(one, "Background") for one in content if not one.deleting]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, ApiError):
                raise outcome

    async def _delete(self, item: Item, policy: Propagation) -> None:
        target = self._target(item)
        if target is not None:
            options = DeleteOptions(
                propagation_policy=policy if policy != "Background" else None, preconditions=Preconditions(uid=item.uid)
            )
            await self._objects.delete(target, options)

    async def _drop_finalizer(self, item: Item, finalizer: str) -> None:
        def drop(obj: JsonObject) -> None:
            meta = obj["metadata"]
            meta["finalizers"] = [one for one in meta.get("finalizers", ()) if one != finalizer]

        await self._objects.amend(item, drop)

    async def _drop_owners(self, item: Item, uids: set[str]) -> None:
        def drop(obj: JsonObject) -> None:
            meta = obj["metadata"]
            meta["ownerReferences"] = [one for one in meta.get("ownerReferences", ()) if one["uid"] not in uids]

        await self._objects.amend(item, drop)

    def _target(self, item: Item) -> Target | None:
        kind = self._registry.by_resource(item.resource)
        if kind is None:
            return None
        version = kind.version(kind.storage_version) or kind.versions[0]
        return Target(kind, version, item.namespace, item.name)
