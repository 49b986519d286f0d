"""The verbs: create, replace, patch, delete and deletecollection on any kind.

A write is computed from the newest state (see `store`) without an await, so two writers never interleave; then its
durability is awaited. A write that changes nothing is answered with the stored object and moves no resourceVersion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from kubetwin.apiserver import crd, errors
from kubetwin.apiserver.admission import Admission, Target, WriteOptions
from kubetwin.apiserver.builtin import PROTECTED_NAMESPACES
from kubetwin.apiserver.items import Item, JsonObject, encode, same
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.names import now_stamp
from kubetwin.apiserver.patches import PatchError, json_patch, merge_patch, strategic_merge
from kubetwin.apiserver.store import Store

PatchKind: TypeAlias = Literal["merge", "json", "strategic"]
Propagation: TypeAlias = Literal["Background", "Foreground", "Orphan"]
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"  # finalizers the collector works on
_APPLY: dict[PatchKind, Callable[[Any, Any], Any]] = {
    "merge": merge_patch,
    "json": json_patch,
    "strategic": strategic_merge,
}


class Preconditions(msgspec.Struct, frozen=True, rename="camel"):
    """What must hold for a delete to happen."""

    uid: str | None = None
    resource_version: str | None = None


class DeleteOptions(msgspec.Struct, frozen=True, rename="camel"):
    """The body of a delete, as far as it means something here; grace periods do not, nothing runs."""

    propagation_policy: Propagation | None = None
    orphan_dependents: bool | None = None
    preconditions: Preconditions = Preconditions()
    dry_run: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a write: the object as stored (or as it would be, for a dry run), in the storage version."""

    data: bytes
    created: bool = False
    removed: Item | None = None  # set by a delete that is complete
    warnings: list[str] = field(default_factory=list)


class Objects:
    """The verbs that write, on one store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    async def create(self, target: Target, obj: Any, options: WriteOptions) -> Outcome:
        """Create an object; `target.name` is taken from the object."""
        kind = target.kind
        self._check_room(target, obj)
        admission = Admission(target, options)
        new = admission.create(obj)
        name = new["metadata"]["name"]
        key = (target.namespace, name)
        if self._store.newest(kind.resource, key) is not None:
            raise errors.already_exists(kind.group, kind.plural, name)
        _to_storage(target, new)
        if options.dry_run:
            return Outcome(encode(new), True, None, admission.warnings)
        item, done = self._store.put(kind.resource, key, new)
        await asyncio.shield(done)
        return Outcome(item.data, True, None, admission.warnings)

    async def replace(self, target: Target, obj: Any, options: WriteOptions) -> Outcome:
        """Update an object as a whole (PUT)."""
        item = self._newest(target)
        if not target.kind.builtin and isinstance(obj, dict):
            meta = obj.get("metadata")
            if isinstance(meta, dict) and not meta.get("resourceVersion"):
                problem = (
                    "metadata.resourceVersion",
                    "FieldValueInvalid",
                    "Invalid value: 0: must be specified for an update",
                )
                raise errors.invalid(target.kind.group, target.kind.kind, target.name, [problem])
        return await self._update(target, item, obj, options)

    async def patch(self, target: Target, patch_kind: PatchKind, patch: Any, options: WriteOptions) -> Outcome:
        """Apply a patch to the newest state of an object."""
        if patch_kind == "strategic" and not target.kind.builtin:
            raise errors.unsupported_media_type(
                "application/strategic-merge-patch+json",
                ("application/json-patch+json", "application/merge-patch+json"),
            )
        item = self._newest(target)
        try:
            patched = _APPLY[patch_kind](_in_version(target, item), patch)
        except PatchError as exc:
            raise errors.ApiError(422, "Invalid", str(exc)) from None
        return await self._update(target, item, patched, options)

    async def _update(self, target: Target, item: Item, obj: Any, options: WriteOptions) -> Outcome:
        admission = Admission(target, options)
        old = _in_version(target, item)
        new = admission.update(obj, old)
        _to_storage(target, new)
        before = item.decode()
        if same(new, before):
            await self._store.settled(item)
            return Outcome(item.data, False, None, admission.warnings)
        if options.dry_run:
            return Outcome(encode(new), False, None, admission.warnings)
        finished = item.deleting and not new["metadata"].get("finalizers") and not _held(target.kind.resource, new)
        if finished:
            last, done = self._store.remove(item)
            await asyncio.shield(done)
            return Outcome(last.data, False, last, admission.warnings)
        stored, done = self._store.put(target.kind.resource, target.key, new)
        await asyncio.shield(done)
        return Outcome(stored.data, False, None, admission.warnings)

    async def delete(self, target: Target, options: DeleteOptions) -> Outcome:
        """Delete an object, or mark it deleted when finalizers (or a namespace's content) hold it."""
        item = self._newest(target)
        self._check_preconditions(target, item, options)
        if target.kind.resource == "namespaces" and target.name in PROTECTED_NAMESPACES:
            raise errors.forbidden("", "namespaces", target.name, "this namespace may not be deleted")
        if options.dry_run:
            return Outcome(item.data, removed=item)
        obj = item.decode()
        meta = obj["metadata"]
        finalizers = _deletion_finalizers(item, options)
        if not finalizers and not _held(item.resource, obj):
            last, done = self._store.remove(item)
            await asyncio.shield(done)
            return Outcome(last.data, removed=last)
        if item.deleting and tuple(finalizers) == item.finalizers:
            await self._store.settled(item)
            return Outcome(item.data)
        if not item.deleting:
            meta["deletionTimestamp"] = now_stamp()
            meta["deletionGracePeriodSeconds"] = 0
            if "generation" in meta:
                meta["generation"] += 1
        meta["finalizers"] = finalizers
        if not finalizers:
            del meta["finalizers"]
        if item.resource == "namespaces":
            obj["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}
        stored, done = self._store.put(item.resource, item.key, obj)
        await asyncio.shield(done)
        return Outcome(stored.data)

    async def amend(self, item: Item, change: Callable[[JsonObject], None]) -> None:
        """Let the server itself change an object, in its newest state; nothing happens if it is gone."""
        newest = self._store.newest(item.resource, item.key)
        if newest is None or newest.uid != item.uid:
            return
        before, obj = newest.decode(), newest.decode()
        change(obj)
        for field_name in ("finalizers", "ownerReferences"):
            if obj["metadata"].get(field_name) == []:
                del obj["metadata"][field_name]
        kind = self._registry.by_resource(item.resource)
        if kind is not None and kind.prepare is not None and not newest.deleting:
            kind.prepare(obj, before)
        if obj == before:
            return
        if newest.deleting and not obj["metadata"].get("finalizers") and not _held(item.resource, obj):
            _, done = self._store.remove(newest)
        else:
            _, done = self._store.put(item.resource, item.key, obj)
        await asyncio.shield(done)

    def _newest(self, target: Target) -> Item:
        item = self._store.newest(target.kind.resource, target.key)
        if item is None:
            raise target.not_found()
        return item

    def _check_preconditions(self, target: Target, item: Item, options: DeleteOptions) -> None:
        wanted = options.preconditions
        if wanted.uid is not None and wanted.uid != item.uid:
            raise target.conflict(
                f"Precondition failed: UID in precondition: {wanted.uid}, UID in object meta: {item.uid}"
            )
        if wanted.resource_version is not None and wanted.resource_version != str(item.version):
            raise target.conflict(
                f"Precondition failed: ResourceVersion in precondition: {wanted.resource_version}, "
                f"ResourceVersion in object meta: {item.version}"
            )

    def _check_room(self, target: Target, obj: Any) -> None:
        """Refuse a create into a namespace or kind that is not there or is being deleted."""
        kind = target.kind
        if kind.namespaced:
            namespace = self._store.newest("namespaces", ("", target.namespace))
            if namespace is None:
                raise errors.not_found("", "namespaces", target.namespace)
            if namespace.deleting:
                meta = obj.get("metadata") if isinstance(obj, dict) else None
                name = str(meta.get("name", "")) if isinstance(meta, dict) else ""
                why = f"unable to create new content in namespace {target.namespace} because it is being terminated"
                raise errors.forbidden(kind.group, kind.plural, name, why)
        if not kind.builtin:
            definition = self._store.newest(crd.RESOURCE, ("", kind.resource))
            if definition is None or definition.deleting:
                why = "create not allowed while custom resource definition is terminating"
                raise errors.ApiError(405, "MethodNotAllowed", why)


def _deletion_finalizers(item: Item, options: DeleteOptions) -> list[str]:
    policy = options.propagation_policy
    if policy is None and options.orphan_dependents is not None:
        policy = "Orphan" if options.orphan_dependents else "Background"
    if policy is None:
        return list(item.finalizers)
    kept = [finalizer for finalizer in item.finalizers if finalizer not in (ORPHAN, FOREGROUND)]
    added = {"Background": [], "Foreground": [FOREGROUND], "Orphan": [ORPHAN]}[policy]
    return kept + added


def _held(resource: str, obj: JsonObject) -> bool:
    """Namespaces have a second list of finalizers, for their content."""
    return resource == "namespaces" and bool((obj.get("spec") or {}).get("finalizers"))


def _in_version(target: Target, item: Item) -> JsonObject:
    obj = item.decode()
    obj["apiVersion"] = target.api_version
    return obj


def _to_storage(target: Target, obj: JsonObject) -> None:
    obj["apiVersion"] = target.kind.group_version(target.kind.storage_version)
