"""Dropping fields that a schema does not declare, and filling in its defaults.

Neither changes what it is given: the result is a new object, which shares untouched parts with the old one.
"""

from typing import Final

from kubetwin.apiserver.schema.node import MISSING, Json, Missing, Node, member

_META: Final = ("apiVersion", "kind", "metadata")


def prune(node: Node, obj: Json, *, root: bool = True) -> tuple[Json, list[str]]:
    """The object without undeclared fields, and the paths of what was dropped, such as `spec.foo`, sorted."""
    dropped: list[str] = []
    pruned = _prune(node, obj, "", dropped, keep_meta=root)
    return pruned, sorted(dropped)


def _prune(node: Node | None, value: Json, path: str, dropped: list[str], *, keep_meta: bool = False) -> Json:
    match value:
        case dict():
            return _prune_object(node or Node(), value, path, dropped, keep_meta=keep_meta)
        case list():
            if node is not None and node.preserve_unknown and node.items is None:
                return value
            items = node.items if node is not None else None
            return [_prune(items, item, f"{path}[{index}]", dropped) for index, item in enumerate(value)]
        case _:
            return value


def _prune_object(
    node: Node, value: dict[str, Json], path: str, dropped: list[str], *, keep_meta: bool
) -> dict[str, Json]:
    kept: dict[str, Json] = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else name
        if (keep_meta or node.embedded) and name in _META:
            kept[name] = item
        elif (found := member(node, name)) is not None:
            kept[name] = _prune(found, item, where, dropped)
        elif node.preserve_unknown:
            kept[name] = item
        else:
            dropped.append(where)
    return kept


def default(node: Node, value: Json) -> Json:
    """The value with defaults where fields are absent, or null and not nullable; other such nulls are dropped."""
    match value:
        case dict():
            filled: dict[str, Json] = {}
            for name, item in value.items():
                found = member(node, name)
                if found is None:
                    filled[name] = item
                elif item is not None or found.nullable:
                    filled[name] = default(found, item)
            for name, found in node.properties.items():
                if name not in filled and not isinstance(found.default, Missing):
                    # Defaults can have defaults inside. They are copied, so that no two objects share one.
                    filled[name] = default(found, _copy(found.default))
            return filled
        case list() if node.items is not None:
            return [_default_item(node.items, item) for item in value]
        case _:
            return value


def _default_item(node: Node, item: Json) -> Json:
    """An item of a list: a null stays one where there is no default, for validation to refuse."""
    if item is None and not node.nullable and node.default is not MISSING:
        item = _copy(node.default)
    return default(node, item)


def _copy(value: Json) -> Json:
    match value:
        case dict():
            return {name: _copy(item) for name, item in value.items()}
        case list():
            return [_copy(item) for item in value]
        case _:
            return value
