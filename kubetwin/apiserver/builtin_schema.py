"""How a built-in kind is declared: its schema in a few words, and the rest of what the registry wants to know."""

from __future__ import annotations

from typing import Any

from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.kinds import Column, Kind, Version
from kubetwin.apiserver.schema import compile_schema

__all__ = ["CONDITIONS", "builtin_kind", "integer", "listing", "mapping", "struct", "text"]


def text(description: str = "") -> JsonObject:
    return {"type": "string", "description": description} if description else {"type": "string"}


def integer(description: str = "") -> JsonObject:
    return {"type": "integer", "format": "int64", "description": description}


def mapping(description: str, *, format_: str | None = None) -> JsonObject:
    values: JsonObject = {"type": "string", "format": format_} if format_ else {"type": "string"}
    return {"type": "object", "description": description, "additionalProperties": values}


def struct(description: str, **properties: JsonObject) -> JsonObject:
    """An object schema that also keeps fields it does not name."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": True,
    }


def listing(item: JsonObject) -> JsonObject:
    return {"type": "array", "items": item}


def builtin_kind(
    plural: str,
    kind: str,
    schema: JsonObject,
    *columns: Column,
    group: str = "",
    version: str = "v1",
    has_status: bool = False,
    selectable: tuple[str, ...] = (),
    **more: Any,
) -> Kind:
    schema["properties"] = {
        "apiVersion": text("Versioned schema of this representation of an object."),
        "kind": text("The REST resource this object represents."),
        "metadata": {"type": "object", "description": "Standard object's metadata."},
        **schema["properties"],
    }
    served = Version(version, schema, compile_schema(schema), columns, has_status, frozenset(selectable))
    return Kind(
        group,
        kind,
        plural,
        (served,),
        version,
        singular=kind.lower(),
        list_kind=f"{kind}List",
        builtin=True,
        **more,
    )


CONDITIONS = listing(struct("", type=text(), status=text(), reason=text(), message=text()))
