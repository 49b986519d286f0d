"""CustomResourceDefinitions: checked when written, turned into served kinds when committed.

A definition is established in the write that creates it, with the conditions `NamesAccepted` and `Established`
already in its status; kube-apiserver does the same a moment later. If its names are taken by another kind of the group
it is stored with `NamesAccepted=False` and not served, as upstream.

Reference: apiextensions.k8s.io/v1 (`CustomResourceDefinitionSpec`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from kubetwin.apiserver import builtin_columns
from kubetwin.apiserver.columns import AGE, NAME, path_column
from kubetwin.apiserver.items import JsonObject, encode
from kubetwin.apiserver.kinds import Column, Kind, Problem, Registry, Version, version_priority
from kubetwin.apiserver.names import now_stamp
from kubetwin.apiserver.schema import SchemaError, StructuralSchema, compile_schema

GROUP = "apiextensions.k8s.io"
RESOURCE = f"customresourcedefinitions.{GROUP}"
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"

_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_TEXT: JsonObject = {"type": "string"}
_TEXTS: JsonObject = {"type": "array", "items": _TEXT}
_FREE: JsonObject = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_COLUMN: JsonObject = {
    "type": "object",
    "required": ["name", "type", "jsonPath"],
    "properties": {
        "name": _TEXT,
        "type": {"type": "string", "enum": ["integer", "number", "string", "boolean", "date"]},
        "format": _TEXT,
        "description": _TEXT,
        "priority": {"type": "integer", "format": "int32"},
        "jsonPath": _TEXT,
    },
}
_VERSION: JsonObject = {
    "type": "object",
    "required": ["name", "served", "storage"],
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "name": _TEXT,
        "served": {"type": "boolean"},
        "storage": {"type": "boolean"},
        "deprecated": {"type": "boolean"},
        "deprecationWarning": _TEXT,
        "schema": {"type": "object", "properties": {"openAPIV3Schema": _FREE}},
        "subresources": {"type": "object", "properties": {"status": _FREE, "scale": _FREE}},
        "additionalPrinterColumns": {"type": "array", "items": _COLUMN},
        "selectableFields": {
            "type": "array",
            "items": {"type": "object", "required": ["jsonPath"], "properties": {"jsonPath": _TEXT}},
        },
    },
}
_OPENAPI: JsonObject = {
    "type": "object",
    "description": "CustomResourceDefinition represents a resource that should be exposed on the API server.",
    "required": ["spec"],
    "properties": {
        "apiVersion": _TEXT,
        "kind": _TEXT,
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "description": "How the user wants the resources to appear.",
            "required": ["group", "names", "scope", "versions"],
            "properties": {
                "group": {"type": "string", "minLength": 1},
                "scope": {"type": "string", "enum": ["Namespaced", "Cluster"]},
                "preserveUnknownFields": {"type": "boolean", "enum": [False]},
                "conversion": {
                    "type": "object",
                    "required": ["strategy"],
                    # A webhook would need a caller; versions of one kind may only differ in what they show.
                    "properties": {"strategy": {"type": "string", "enum": ["None"]}},
                },
                "names": {
                    "type": "object",
                    "required": ["plural", "kind"],
                    "properties": {
                        "plural": {"type": "string", "minLength": 1},
                        "singular": _TEXT,
                        "kind": {"type": "string", "minLength": 1},
                        "listKind": _TEXT,
                        "shortNames": _TEXTS,
                        "categories": _TEXTS,
                    },
                },
                "versions": {"type": "array", "minItems": 1, "items": _VERSION},
            },
        },
        "status": _FREE,
    },
}


def crd_kind(registry: Registry) -> Kind:
    """The kind `CustomResourceDefinition` itself; `registry` is asked which names are taken."""

    def prepare(new: JsonObject, old: JsonObject | None) -> None:
        _prepare(new, old, registry)

    version = Version("v1", _OPENAPI, compile_schema(_OPENAPI), builtin_columns.CRD, has_status=True)
    return Kind(
        GROUP,
        "CustomResourceDefinition",
        "customresourcedefinitions",
        (version,),
        "v1",
        namespaced=False,
        singular="customresourcedefinition",
        list_kind="CustomResourceDefinitionList",
        short_names=("crd", "crds"),
        categories=("api-extensions",),
        builtin=True,
        counts_generations=True,
        prepare=prepare,
        check=check,
    )


def _prepare(new: JsonObject, old: JsonObject | None, registry: Registry) -> None:
    spec = new["spec"]
    names = spec["names"]
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})
    if old is None:
        new["metadata"]["finalizers"] = [*(new["metadata"].get("finalizers") or []), CLEANUP_FINALIZER]
    status: JsonObject = dict((old or {}).get("status") or {})
    taken = _taken(spec, registry)
    accepted = ("False", taken[0], taken[1]) if taken else ("True", "NoConflicts", "no conflicts found")
    established = (
        ("False", "NotAccepted", "not all names are accepted")
        if taken
        else ("True", "InitialNamesAccepted", "the initial names have been accepted")
    )
    before = {condition["type"]: condition for condition in status.get("conditions") or ()}
    conditions = [_condition("NamesAccepted", *accepted, before), _condition("Established", *established, before)]
    conditions += [
        condition for condition in before.values() if condition["type"] not in ("NamesAccepted", "Established")
    ]
    stored = list(status.get("storedVersions") or ())
    stored += [v["name"] for v in spec["versions"] if v["storage"] and v["name"] not in stored]
    kept = status.get("acceptedNames") or {"plural": "", "kind": ""}
    new["status"] = {"conditions": conditions, "acceptedNames": kept if taken else names, "storedVersions": stored}


def _condition(type_: str, status: str, reason: str, message: str, before: dict[str, JsonObject]) -> JsonObject:
    old = before.get(type_)
    if old is not None and old.get("status") == status:
        return old
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now_stamp()}


def _taken(spec: JsonObject, registry: Registry) -> tuple[str, str] | None:
    names = spec["names"]
    mine = f"{names['plural']}.{spec['group']}"
    wanted = {names["plural"], names["singular"], *(names.get("shortNames") or ())}
    for kind in registry:
        if kind.group != spec["group"] or kind.resource == mine:
            continue
        clash = wanted & {kind.plural, kind.singular, *kind.short_names}
        if clash:
            return "NameConflict", f'"{min(clash)}" is already in use'
        if names["kind"] == kind.kind:
            return "KindConflict", f'"{kind.kind}" is already in use'
        if names["listKind"] == kind.list_kind:
            return "ListKindConflict", f'"{kind.list_kind}" is already in use'
    return None


def check(new: JsonObject, old: JsonObject | None) -> list[Problem]:
    """What is wrong with a definition whose fields all have the right types."""
    problems: list[Problem] = []

    def bad(path: str, message: str, reason: str = "FieldValueInvalid") -> None:
        problems.append((path, reason, message))

    spec = new["spec"]
    group, names, versions = spec["group"], spec["names"], spec["versions"]
    expected = f"{names['plural']}.{group}"
    if new["metadata"]["name"] != expected:
        bad("metadata.name", f'Invalid value: "{new["metadata"]["name"]}": must be spec.names.plural+"."+spec.group')
    if "." not in group:
        bad("spec.group", f'Invalid value: "{group}": should be a domain with at least one dot')
    for name in ("plural", "singular"):
        if not _LABEL.fullmatch(names[name]):
            bad(f"spec.names.{name}", f'Invalid value: "{names[name]}": must be a DNS-1035 label (lower case)')
    if not _LABEL.fullmatch(names["kind"].lower()):
        bad(
            "spec.names.kind",
            f'Invalid value: "{names["kind"]}": may have mixed case, but should otherwise match a DNS-1035 label',
        )
    if [version["storage"] for version in versions].count(True) != 1:
        bad("spec.versions", "Invalid value: must have exactly one version marked as storage version")
    if len({version["name"] for version in versions}) != len(versions):
        bad("spec.versions", "Invalid value: must contain unique version names")
    if old is not None:
        for field, value in (("group", group), ("scope", spec["scope"])):
            if old["spec"][field] != value:
                bad(f"spec.{field}", f'Invalid value: "{value}": field is immutable')
    for index, version in enumerate(versions):
        problems.extend(_check_version(version, f"spec.versions[{index}]"))
    return problems


def _check_version(version: JsonObject, at: str) -> list[Problem]:
    problems: list[Problem] = []
    if not _LABEL.fullmatch(version["name"]):
        problems.append(
            (f"{at}.name", "FieldValueInvalid", f'Invalid value: "{version["name"]}": must be a DNS-1035 label')
        )
    for number, column in enumerate(version.get("additionalPrinterColumns") or ()):
        try:
            _column(column)
        except ValueError as exc:
            path = f"{at}.additionalPrinterColumns[{number}].jsonPath"
            problems.append((path, "FieldValueInvalid", f'Invalid value: "{column["jsonPath"]}": {exc}'))
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    if schema is None:
        problems.append((f"{at}.schema.openAPIV3Schema", "FieldValueRequired", "Required value: schemas are required"))
        return problems
    try:
        _compile(encode(schema))
    except SchemaError as exc:
        for problem in exc.problems:
            path = f"{at}.schema.openAPIV3Schema" + (f".{problem.path}" if problem.path else "")
            problems.append((path, problem.reason, problem.message))
    return problems


@lru_cache(maxsize=64)
def _compile(encoded: bytes) -> StructuralSchema:
    # Keyed by the encoded schema: a definition is compiled once to check it and not again to serve it.
    return compile_schema(msgspec.json.decode(encoded))


def _column(spec: JsonObject) -> Column:
    return path_column(
        spec["name"],
        spec["type"],
        spec["jsonPath"],
        description=spec.get("description", ""),
        format_=spec.get("format", ""),
        priority=spec.get("priority", 0),
    )


def is_established(crd: JsonObject) -> bool:
    """Whether a stored definition is served."""
    conditions: list[Any] = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def kind_of(crd: JsonObject) -> Kind:
    """The kind a stored definition declares."""
    spec = crd["spec"]
    names = spec["names"]
    group = spec["group"]
    versions = [_version(version, group, names["kind"]) for version in spec["versions"] if version["served"]]
    return Kind(
        group,
        names["kind"],
        names["plural"],
        tuple(sorted(versions, key=lambda version: version_priority(version.name))),
        next(version["name"] for version in spec["versions"] if version["storage"]),
        namespaced=spec["scope"] == "Namespaced",
        singular=names["singular"],
        list_kind=names["listKind"],
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        counts_generations=True,
    )


def _version(spec: JsonObject, group: str, kind: str) -> Version:
    openapi = spec["schema"]["openAPIV3Schema"]
    columns = tuple(_column(column) for column in spec.get("additionalPrinterColumns") or ())
    warning = ""
    if spec.get("deprecated"):
        warning = spec.get("deprecationWarning") or f"{group}/{spec['name']} {kind} is deprecated"
    return Version(
        spec["name"],
        openapi,
        _compile(encode(openapi)),
        (NAME, *columns) if columns else (NAME, AGE),
        "status" in (spec.get("subresources") or {}),
        frozenset(field["jsonPath"].lstrip(".") for field in spec.get("selectableFields") or ()),
        warning,
    )
