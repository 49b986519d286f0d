"""A compiled schema as a tree of frozen nodes, and what the passes over it share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kubetwin.apiserver.schema.cel import Pattern, Rule

Json = Any
"""A decoded JSON value: dict, list, str, int, float, bool or None."""


class Missing:
    """The type of `MISSING`: no value, which in JSON differs from null."""


MISSING = Missing()


@dataclass(frozen=True, slots=True)
class Node:
    """One place in a schema, or one branch of allOf/anyOf/oneOf/not (then without type, default and extensions)."""

    type: str = ""
    nullable: bool = False
    default: Json | Missing = MISSING
    properties: Mapping[str, "Node"] = field(default_factory=dict)
    additional: "Node | None" = None
    items: "Node | None" = None
    preserve_unknown: bool = False
    int_or_string: bool = False
    embedded: bool = False
    list_type: Literal["", "atomic", "set", "map"] = ""
    list_keys: tuple[str, ...] = ()
    format: str = ""
    enum: tuple[Json, ...] | None = None
    required: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: Pattern | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_properties: int | None = None
    max_properties: int | None = None
    all_of: tuple["Node", ...] = ()
    any_of: tuple["Node", ...] = ()
    one_of: tuple["Node", ...] = ()
    not_: "Node | None" = None
    rules: tuple[Rule, ...] = ()
    has_rules: bool = False
    """Whether there are rules here or anywhere below."""


def member(node: Node, name: str) -> Node | None:
    """The schema of one field of an object: the declared one, else that of additional properties."""
    return node.properties.get(name, node.additional)


def same(left: Json, right: Json) -> bool:
    """Equal as JSON, so that 1 and true differ, but 1 and 1.0 do not."""
    match left, right:
        case dict(), dict():
            return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
        case list(), list():
            return len(left) == len(right) and all(map(same, left, right))
        case (bool(), _) | (_, bool()):
            return left is right
        case _:
            return bool(left == right)


def list_key(node: Node, item: Json) -> tuple[str, ...] | None:
    """What identifies an item of a list of type map, comparable; None where the item is no object."""
    if not isinstance(item, dict):
        return None
    # repr keeps 1, "1" and true apart.
    return tuple(repr(item[name]) if name in item else "" for name in node.list_keys)


def old_items(node: Node, old: Json | Missing) -> Mapping[tuple[str, ...] | None, Json]:
    """Items of the old list by key; empty where they cannot be told apart: other than in a list of type map."""
    if node.list_type != "map" or not isinstance(old, list):
        return {}
    return {list_key(node, item): item for item in old if isinstance(item, dict)}
