"""OpenAPI documents: what `kubectl explain` prints and `kubectl apply` validates and merges by.

Version 3 has one document per group version; version 2 one for all, for older clients. Both carry the schemas and, per
kind, the write operations with their parameters (kubectl asks there whether the server validates fields itself).

Reference: Kubernetes documentation, "The Kubernetes API", OpenAPI interface definition.
"""

from __future__ import annotations

import hashlib
from typing import Any

from kubetwin.apiserver.discovery import group_versions
from kubetwin.apiserver.items import JsonObject, encode
from kubetwin.apiserver.kinds import Kind, Registry, Version

_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_TEXT: JsonObject = {"type": "string"}
_OBJECT_META: JsonObject = {
    "type": "object",
    "description": "ObjectMeta is metadata that all persisted resources must have.",
    "properties": {
        "name": {**_TEXT, "description": "Name must be unique within a namespace. Cannot be updated."},
        "generateName": {**_TEXT, "description": "A prefix for a name the server makes up."},
        "namespace": {**_TEXT, "description": "The space within which each name must be unique."},
        "labels": {"type": "object", "additionalProperties": _TEXT, "description": "Keys and values to select by."},
        "annotations": {"type": "object", "additionalProperties": _TEXT, "description": "Keys and values of tools."},
        "uid": {**_TEXT, "description": "Unique in time and space. Read-only."},
        "resourceVersion": {**_TEXT, "description": "The internal version of this object. Read-only."},
        "generation": {
            "type": "integer",
            "format": "int64",
            "description": "A number of the desired state. Read-only.",
        },
        "creationTimestamp": {**_TEXT, "format": "date-time", "description": "When the object was created. Read-only."},
        "deletionTimestamp": {**_TEXT, "format": "date-time", "description": "When deletion was asked for. Read-only."},
        "deletionGracePeriodSeconds": {"type": "integer", "format": "int64", "description": "Read-only."},
        "finalizers": {
            "type": "array",
            "items": _TEXT,
            "description": "Must be empty before the object is removed.",
            "x-kubernetes-list-type": "set",
            "x-kubernetes-patch-strategy": "merge",
        },
        "ownerReferences": {
            "type": "array",
            "description": "Objects this object depends on. When all are gone, it is removed.",
            "items": {
                "type": "object",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    "apiVersion": _TEXT,
                    "kind": _TEXT,
                    "name": _TEXT,
                    "uid": _TEXT,
                    "controller": {"type": "boolean"},
                    "blockOwnerDeletion": {"type": "boolean"},
                },
            },
            "x-kubernetes-patch-merge-key": "uid",
            "x-kubernetes-patch-strategy": "merge",
        },
        "managedFields": {"type": "array", "items": {"type": "object"}, "description": "Not kept by this server."},
    },
}
_LIST_META: JsonObject = {
    "type": "object",
    "properties": {
        "continue": _TEXT,
        "resourceVersion": _TEXT,
        "remainingItemCount": {"type": "integer", "format": "int64"},
    },
}
_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_PATCH_TYPES = ("application/json-patch+json", "application/merge-patch+json")


def document_paths(registry: Registry) -> dict[str, tuple[str, str]]:
    """Group and version by the path of its document below /openapi/v3."""
    return {
        (f"apis/{group}/{version}" if group else f"api/{version}"): (group, version)
        for group, versions in group_versions(registry).items()
        for version in versions
    }


def index(registry: Registry) -> JsonObject:
    """/openapi/v3. The hash in each address changes with the document, so clients may cache it for good."""
    paths: JsonObject = {}
    for path, (group, version) in document_paths(registry).items():
        digest = hashlib.sha256(encode(document(registry, group, version))).hexdigest()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest.upper()}"}
    return {"paths": paths}


def document(registry: Registry, group: str, version: str) -> JsonObject:
    """The OpenAPI 3 document of one group version."""
    schemas, paths = _parts(registry, group, version, "#/components/schemas/")
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "kubetwin"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def swagger(registry: Registry) -> JsonObject:
    """/openapi/v2: everything in one document."""
    definitions: JsonObject = {}
    paths: JsonObject = {}
    for group, versions in group_versions(registry).items():
        for version in versions:
            schemas, operations = _parts(registry, group, version, "#/definitions/")
            definitions.update(schemas)
            paths.update(operations)
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "kubetwin"},
        "paths": paths,
        "definitions": definitions,
    }


def _parts(registry: Registry, group: str, version: str, refs: str) -> tuple[JsonObject, JsonObject]:
    schemas: JsonObject = {f"{_META}.ObjectMeta": _OBJECT_META, f"{_META}.ListMeta": _LIST_META}
    paths: JsonObject = {}
    for kind in registry:
        served = kind.version(version)
        if kind.group != group or served is None:
            continue
        model = _model_name(kind, version)
        gvk = {"group": group, "version": version, "kind": kind.kind}
        schemas[model] = _schema(served, refs, gvk)
        schemas[f"{model}List"] = {
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": _TEXT,
                "kind": _TEXT,
                "metadata": {"$ref": f"{refs}{_META}.ListMeta"},
                "items": {"type": "array", "items": {"$ref": refs + model}},
            },
            "x-kubernetes-group-version-kind": [{**gvk, "kind": kind.list_kind}],
        }
        paths.update(_paths(kind, version, gvk))
    return schemas, paths


def _model_name(kind: Kind, version: str) -> str:
    domain = kind.group or "core.api.k8s.io"
    return ".".join([*reversed(domain.split(".")), version, kind.kind])


def _schema(version: Version, refs: str, gvk: JsonObject) -> JsonObject:
    schema: dict[str, Any] = dict(version.openapi)
    schema["properties"] = {
        **(schema.get("properties") or {}),
        "apiVersion": {**_TEXT, "description": "The versioned schema of this representation of an object."},
        "kind": {**_TEXT, "description": "The REST resource this object represents."},
        "metadata": {"description": "Standard object's metadata.", "allOf": [{"$ref": f"{refs}{_META}.ObjectMeta"}]},
    }
    if refs == "#/definitions/":
        schema["properties"]["metadata"] = {"$ref": f"{refs}{_META}.ObjectMeta"}
    schema["x-kubernetes-group-version-kind"] = [gvk]
    return schema


def _paths(kind: Kind, version: str, gvk: JsonObject) -> JsonObject:
    root = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
    collection = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    query = [{"name": name, "in": "query", "schema": _TEXT} for name in _WRITE_PARAMETERS]

    def operation(action: str, **more: Any) -> JsonObject:
        return {
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
            "parameters": query,
            "responses": {"200": {"description": "OK"}},
            **more,
        }

    patch_types = [*_PATCH_TYPES, "application/strategic-merge-patch+json"] if kind.builtin else list(_PATCH_TYPES)
    body = {"content": {media: {"schema": {"type": "object"}} for media in patch_types}}
    item = {"put": operation("put"), "patch": operation("patch", requestBody=body)}
    return {collection: {"post": operation("post")}, f"{collection}/{{name}}": item}
