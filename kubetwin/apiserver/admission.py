"""From what a client sent to what is stored: types, defaults, pruning, validation, and the fields the server decides.

Plain functions of the new object, the stored one and the kind; nothing here is asynchronous or knows the store.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kubetwin.apiserver import errors
from kubetwin.apiserver.items import JsonObject, same
from kubetwin.apiserver.kinds import Kind, Problem, Version
from kubetwin.apiserver.names import check_metadata, now_stamp, random_suffix, read_metadata

FieldValidation: TypeAlias = Literal["Strict", "Warn", "Ignore"]
_IMMUTABLE = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about. `name` is empty for a collection, `namespace` for cluster scope or all namespaces."""

    kind: Kind
    version: Version
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def api_version(self) -> str:
        return self.kind.group_version(self.version.name)

    def not_found(self) -> errors.ApiError:
        return errors.not_found(self.kind.group, self.kind.plural, self.name)

    def conflict(self, why: str = "") -> errors.ApiError:
        return errors.conflict(self.kind.group, self.kind.plural, self.name, why)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Query parameters of a write."""

    field_validation: FieldValidation = "Warn"
    dry_run: bool = False


@dataclass(slots=True)
class Admission:
    """One write on its way in; collects warnings for the client."""

    target: Target
    options: WriteOptions
    warnings: list[str] = field(default_factory=list)

    def create(self, obj: Any) -> JsonObject:
        """The object to store for a create.

        Raises:
            ApiError: 400 when the body is not an object of this kind, 422 with a cause for each wrong field.
        """
        obj, meta = self._typed(obj)
        if meta.get("resourceVersion") not in (None, "0"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        kind, target = self.target.kind, self.target
        name = meta.get("name") or (f"{meta['generateName']}{random_suffix()}" if meta.get("generateName") else "")
        if not name:
            problem = ("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
            raise errors.invalid(kind.group, kind.kind, "", [problem])
        kept = {
            key: meta[key]
            for key in ("generateName", "labels", "annotations", "ownerReferences", "finalizers")
            if key in meta
        }
        obj["metadata"] = self._place(name) | {"uid": str(uuid.uuid4()), "creationTimestamp": now_stamp()}
        if kind.counts_generations:
            obj["metadata"]["generation"] = 1
        obj["metadata"] |= kept
        if target.version.has_status and not kind.builtin:
            obj.pop("status", None)
        return self._finish(obj, None)

    def update(self, obj: Any, old: JsonObject) -> JsonObject:
        """The object to store for an update of `old`, which is in this request's version.

        Raises:
            ApiError: As `create`; 409 when the object changed since the client read it.
        """
        obj, meta = self._typed(obj)
        target, kind = self.target, self.target.kind
        before = old["metadata"]
        if meta.get("name", target.name) != target.name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )
        if meta.get("uid", before["uid"]) != before["uid"]:
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {before['uid']}"
            raise target.conflict(why)
        if meta.get("resourceVersion", before["resourceVersion"]) != before["resourceVersion"]:
            raise target.conflict()
        if target.subresource == "status":
            obj = {
                **{k: v for k, v in old.items() if k != "status"},
                **({"status": obj["status"]} if "status" in obj else {}),
            }
            if not kind.builtin:
                meta = dict(before)
        elif target.version.has_status:
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = old["status"]
        kept = {key: meta[key] for key in ("labels", "annotations", "ownerReferences", "finalizers") if key in meta}
        decided = {key: before[key] for key in _IMMUTABLE if key in before}
        obj["metadata"] = self._place(target.name) | decided | {"resourceVersion": before["resourceVersion"]} | kept
        if "deletionTimestamp" in before:
            added = sorted(set(kept.get("finalizers") or ()) - set(before.get("finalizers") or ()))
            if added:
                why = f"Forbidden: no new finalizers can be added if the object is being deleted, found {added}"
                problem = ("metadata.finalizers", "FieldValueForbidden", why)
                raise errors.invalid(kind.group, kind.kind, target.name, [problem])
        new = self._finish(obj, old)
        if kind.counts_generations and not same(_declared(new, target.version), _declared(old, target.version)):
            new["metadata"]["generation"] = before.get("generation", 0) + 1
        return new

    def _place(self, name: str) -> JsonObject:
        return {"name": name, "namespace": self.target.namespace} if self.target.kind.namespaced else {"name": name}

    def _typed(self, obj: Any) -> tuple[JsonObject, JsonObject]:
        """The body as an object of the target's kind, and its metadata, both fresh and cut to what is known."""
        target, kind = self.target, self.target.kind
        if not isinstance(obj, dict):
            raise errors.bad_request("the body of the request must be an object")
        for key, expected in (("kind", kind.kind), ("apiVersion", target.api_version)):
            given = obj.get(key)
            if given is None:
                raise self._unreadable(f"Object '{key}' is missing")
            if given != expected:
                what = "API version" if key == "apiVersion" else "kind"
                raise errors.bad_request(
                    f"the {what} in the data ({given}) does not match the expected {what} ({expected})"
                )
        try:
            meta, unknown = read_metadata(obj)
        except ValueError as exc:
            raise self._unreadable(str(exc)) from None
        if meta.get("namespace", target.namespace) != target.namespace and kind.namespaced:
            raise errors.bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request"
                f" ({meta['namespace']} and {target.namespace})"
            )
        rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
        shaped: JsonObject = {"apiVersion": target.api_version, "kind": kind.kind, "metadata": {}, **rest}
        if target.version.schema is not None:
            shaped, dropped = target.version.schema.prune(shaped)
            unknown = unknown + dropped
        if unknown and self.options.field_validation == "Strict":
            raise errors.strict_decoding(kind.kind, target.version.name, unknown)
        if self.options.field_validation == "Warn":
            self.warnings.extend(f'unknown field "{path}"' for path in unknown)
        return shaped, meta

    def _unreadable(self, why: str) -> errors.ApiError:
        kind = self.target.kind.kind
        return errors.bad_request(
            f'{kind} in version "{self.target.version.name}" cannot be handled as a {kind}: {why}'
        )

    def _finish(self, obj: JsonObject, old: JsonObject | None) -> JsonObject:
        kind, version = self.target.kind, self.target.version
        problems: list[Problem] = (
            check_metadata(obj["metadata"], label_name=kind.resource == "namespaces") if _named(obj, old) else []
        )
        if version.schema is not None:
            obj = version.schema.default(obj)
            problems += [(error.path, error.reason, error.message) for error in version.schema.validate(obj, old)]
        if not problems:
            if kind.prepare is not None:
                kind.prepare(obj, old)
            if kind.check is not None:
                problems = kind.check(obj, old)
        if problems:
            raise errors.invalid(kind.group, kind.kind, obj["metadata"]["name"], problems)
        if version.deprecation:
            self.warnings.append(version.deprecation)
        return obj


def _named(obj: JsonObject, old: JsonObject | None) -> bool:
    """Whether the metadata a client may write differs from what is stored and so passed before."""
    return old is None or any(
        obj["metadata"].get(key) != old["metadata"].get(key)
        for key in ("labels", "annotations", "ownerReferences", "finalizers")
    )


def _declared(obj: JsonObject, version: Version) -> JsonObject:
    skipped = {"metadata", "apiVersion", "kind"} | ({"status"} if version.has_status else set())
    return {key: value for key, value in obj.items() if key not in skipped}
