"""The rules that make a schema structural, as checks of one place in it. Each yields problems in Kubernetes' words."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kubetwin.apiserver.schema import errors
from kubetwin.apiserver.schema.errors import FieldError, child

INT_OR_STRING: Final = [{"type": "integer"}, {"type": "string"}]

SHAPES: Final[dict[str, type | tuple[type, ...]]] = {
    "properties": dict,
    **dict.fromkeys(("type", "format", "pattern", "x-kubernetes-list-type", "x-kubernetes-map-type"), str),
    **dict.fromkeys(("required", "enum", "allOf", "anyOf", "oneOf"), list),
    **dict.fromkeys(("x-kubernetes-list-map-keys", "x-kubernetes-validations"), list),
    "additionalProperties": (bool, dict),
    "items": (dict, list),
    "not": dict,
}
"""JSON types of the values of keywords whose parts are looked at."""

_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_SCALARS: Final = ("boolean", "integer", "number", "string")
_UNSUPPORTED: Final = (
    "$ref",
    "additionalItems",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
)
_NOT_IN_BRANCHES: Final = {
    "additionalProperties": "must be undefined to be structural",
    "default": "must be undefined to be structural",
    "description": "must be empty to be structural",
    "nullable": "must be false to be structural",
    "title": "must be empty to be structural",
    "type": "must be empty to be structural",
    "x-kubernetes-embedded-resource": "must be false to be structural",
    "x-kubernetes-int-or-string": "must be false to be structural",
    "x-kubernetes-list-map-keys": "must be empty to be structural",
    "x-kubernetes-list-type": "must be undefined to be structural",
    "x-kubernetes-map-type": "must be undefined to be structural",
    "x-kubernetes-preserve-unknown-fields": "must be false to be structural",
    "x-kubernetes-validations": "must be empty to be structural",
}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def check_keywords(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Keywords that a CustomResourceDefinition may not use, and extensions that do not fit the place."""
    yield from _unsupported(schema, path)
    if schema.get("additionalProperties") is False:
        yield errors.forbidden(child(path, "additionalProperties"), "must not be used with value false")
    if schema.get("properties") and schema.get("additionalProperties") is not None:
        detail = "additionalProperties and properties are mutual exclusive"
        yield errors.forbidden(child(path, "additionalProperties"), detail)
    if schema.get("default", 0) is None and schema.get("nullable") is not True:
        yield errors.invalid(child(path, "default"), None, "must not be null if nullable is false")
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        detail = "must be true or undefined"
        yield errors.invalid(child(path, "x-kubernetes-preserve-unknown-fields"), False, detail)
    if schema.get("x-kubernetes-int-or-string") is True:
        for keyword in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"):
            if schema.get(keyword) is True:
                detail = "must be false if x-kubernetes-int-or-string is true"
                yield errors.invalid(child(path, keyword), True, detail)
    yield from _list_extensions(schema, path)
    map_type = schema.get("x-kubernetes-map-type")
    if map_type is not None:
        if map_type not in ("granular", "atomic"):
            yield errors.not_supported(child(path, "x-kubernetes-map-type"), map_type, ("atomic", "granular"))
        if schema.get("type") != "object":
            detail = "must be object if x-kubernetes-map-type is specified"
            yield errors.invalid(child(path, "type"), schema.get("type", ""), detail)


def _unsupported(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for keyword in _UNSUPPORTED:
        if schema.get(keyword):
            yield errors.forbidden(child(path, keyword), f"{keyword} is not supported")
    if schema.get("uniqueItems") is True:
        detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield errors.forbidden(child(path, "uniqueItems"), detail)
    if isinstance(schema.get("items"), list):
        yield errors.forbidden(child(path, "items"), "items must be a schema object and not an array")


def _list_extensions(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    list_type = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys") or []
    if list_type is None:
        if keys:
            yield errors.required(
                child(path, "x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty"
            )
        return
    if list_type not in ("atomic", "set", "map"):
        yield errors.not_supported(child(path, "x-kubernetes-list-type"), list_type, ("atomic", "set", "map"))
    if schema.get("type") != "array":
        detail = "must be array if x-kubernetes-list-type is specified"
        yield errors.invalid(child(path, "type"), schema.get("type", ""), detail)
    items = schema.get("items")
    if not isinstance(items, Mapping):
        return
    if list_type == "map":
        yield from _map_keys(items, keys, path)
    elif list_type == "set":
        atomic = items.get("x-kubernetes-map-type") == "atomic" or items.get("x-kubernetes-list-type") == "atomic"
        if items.get("nullable") is True:
            yield errors.forbidden(
                child(path, "items.nullable"), 'cannot be nullable when x-kubernetes-list-type is "set"'
            )
        if items.get("type") in ("array", "object") and not atomic:
            detail = "must be atomic as item of a list with x-kubernetes-list-type=set"
            name = "map" if items["type"] == "object" else "list"
            yield errors.invalid(child(path, f"items.x-kubernetes-{name}-type"), None, detail)


def _map_keys(items: Mapping[str, Any], keys: list[str], path: str) -> Iterator[FieldError]:
    if not keys:
        detail = "must not be empty if x-kubernetes-list-type is map"
        yield errors.required(child(path, "x-kubernetes-list-map-keys"), detail)
    if items.get("type") != "object":
        detail = "must be object if parent array's x-kubernetes-list-type is map"
        yield errors.invalid(child(path, "items.type"), items.get("type", ""), detail)
    for index, key in enumerate(map(str, keys)):
        where = f"{child(path, 'x-kubernetes-list-map-keys')}[{index}]"
        declared = _mapping(items.get("properties")).get(key)
        if not isinstance(declared, Mapping):
            yield errors.invalid(where, key, "entries must all be names of item properties")
            continue
        at = f"{child(path, 'items.properties')}[{key}]"
        if declared.get("type") not in _SCALARS:
            yield errors.invalid(
                f"{at}.type",
                declared.get("type", ""),
                "must be a scalar type if parent array's x-kubernetes-list-type is map",
            )
        if declared.get("nullable") is True:
            yield errors.forbidden(
                f"{at}.nullable", "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"
            )
        if key not in _list(items.get("required")) and "default" not in declared:
            detail = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            yield errors.required(f"{at}.default", detail)


def check_types(schema: Mapping[str, Any], path: str, level: str) -> Iterator[FieldError]:
    """A type everywhere, object at the root, items for arrays."""
    kind = schema.get("type")
    where = child(path, "type")
    embedded = schema.get("x-kubernetes-embedded-resource") is True
    if kind and kind not in _TYPES:
        yield errors.not_supported(where, kind, _TYPES)
    if embedded and kind != "object":
        detail = "must be object if x-kubernetes-embedded-resource is true"
        yield errors.invalid(where, kind, detail) if kind else errors.required(where, detail)
    elif not kind and not any(
        schema.get(f"x-kubernetes-{name}") is True for name in ("int-or-string", "preserve-unknown-fields")
    ):
        place = {"root": "at the root", "item": "for specified array items", "field": "for specified object fields"}
        yield errors.required(where, f"must not be empty {place[level]}")
    if kind == "array" and "items" not in schema:
        yield errors.required(child(path, "items"), "must be specified")
    if level == "root":
        if kind and kind != "object":
            yield errors.invalid(where, kind, "must be object at the root")
        if schema.get("additionalProperties") is not None:
            yield errors.forbidden(child(path, "additionalProperties"), "must not be used at the root")
    if embedded and schema.get("additionalProperties") is not None:
        detail = "must not be used if x-kubernetes-embedded-resource is set"
        yield errors.forbidden(child(path, "additionalProperties"), detail)
    if embedded and not schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
        detail = (
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        )
        yield errors.required(child(path, "properties"), detail)


def check_metadata(schema: Mapping[str, Any], path: str, level: str) -> Iterator[FieldError]:
    """What a schema of a whole object may say of apiVersion, kind and metadata, which Kubernetes checks itself."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not (
        level == "root" or schema.get("x-kubernetes-embedded-resource") is True
    ):
        return
    for name, kind in (("kind", "string"), ("apiVersion", "string"), ("metadata", "object")):
        declared = properties.get(name)
        if isinstance(declared, Mapping) and declared.get("type") != kind:
            at = f"{child(path, 'properties')}[{name}]"
            yield errors.invalid(f"{at}.type", declared.get("type", ""), f"must be {kind}")
    metadata = properties.get("metadata")
    if level == "root" and isinstance(metadata, Mapping):
        named = set(_mapping(metadata.get("properties"))) <= {"name", "generateName"}
        if not named or not metadata.keys() <= {"type", "properties", "description"}:
            detail = "must not specify anything other than name and generateName, but metadata is implicitly specified"
            yield errors.forbidden(f"{child(path, 'properties')}[metadata]", detail)


def check_branch_keywords(schema: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """What a branch of allOf, anyOf, oneOf or not may not say."""
    yield from _unsupported(schema, path)
    for keyword, detail in _NOT_IN_BRANCHES.items():
        if schema.get(keyword):
            yield errors.forbidden(child(path, keyword), detail)
    if "metadata" in (schema.get("properties") or ()):
        yield errors.forbidden(f"{child(path, 'properties')}[metadata]", "must not be specified in a nested context")


def check_complete(branch: Any, structure: Any, path: str, at: str | None = None) -> Iterator[FieldError]:
    """Every field and item that a branch, at `at`, restricts is declared in the structure, at `path`."""
    at = path if at is None else at
    if not isinstance(branch, Mapping):
        return
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts = branch.get(keyword)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            yield from _complete(part, structure, path, f"{child(at, keyword)}[{index}]")
    if "not" in branch:
        yield from _complete(branch["not"], structure, path, child(at, "not"))


def _complete(branch: Any, structure: Any, path: str, at: str) -> Iterator[FieldError]:
    if not isinstance(branch, Mapping):
        return
    if not isinstance(structure, Mapping):
        yield errors.required(path, f"because it is defined in {at}")
        return
    yield from check_complete(branch, structure, path, at)
    if "items" in branch:
        yield from _complete(branch["items"], structure.get("items"), child(path, "items"), child(at, "items"))
    declared = _mapping(structure.get("properties"))
    for name, part in _mapping(branch.get("properties")).items():
        where = f"{child(path, 'properties')}[{name}]"
        yield from _complete(part, declared.get(name), where, f"{child(at, 'properties')}[{name}]")
