"""Values against a schema: types, ranges, lengths, combinations of schemas and duplicates in lists.

On an update, a part that equals its old value is not looked at again, so that an object stored before a schema was
tightened can still be changed elsewhere (ratcheting). Items are found again in lists of type map only.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Final

from kubetwin.apiserver.schema import errors, formats
from kubetwin.apiserver.schema.errors import FieldError, child
from kubetwin.apiserver.schema.node import MISSING, Json, Missing, Node, list_key, member, old_items, same


def validate(node: Node, value: Json, path: str = "", old: Json | Missing = MISSING) -> Iterator[FieldError]:
    """What is wrong with the value, CEL rules and duplicates apart."""
    if not isinstance(old, Missing) and same(value, old):
        return
    if value is None and (node.nullable or not (node.type or node.int_or_string)):
        return
    kind = _kind(value)
    expected = "integer,string" if node.int_or_string else node.type
    if expected and not _fits_type(expected, kind, value):
        yield errors.wrong_type(path, kind, f'{path} in body must be of type {expected}: "{kind}"')
        return
    if node.enum is not None and not any(same(value, allowed) for allowed in node.enum):
        yield errors.not_supported(path, value, node.enum)
    match value:
        case str():
            yield from _text(node, value, path)
        case bool() | None:
            pass
        case int() | float():
            yield from _number(node, value, path)
        case list():
            yield from _list(node, value, path, old)
        case dict():
            yield from _object(node, value, path, old)
    yield from _combinations(node, value, path)


def _kind(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() if abs(value) < 2**63:
            return "integer"
        case int():
            return "number"  # beyond int64, a JSON decoder in Go makes it a float
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _fits_type(expected: str, kind: str, value: Json) -> bool:
    if kind == "integer":
        return expected in ("integer", "number", "integer,string")
    if kind == "number" and "integer" in expected:
        return bool(abs(value) < 2**53 and value == int(value))  # 3.0 is an integer in JSON schema
    return kind in expected.split(",")


def _text(node: Node, value: str, path: str) -> Iterator[FieldError]:
    if node.max_length is not None and len(value) > node.max_length:
        yield errors.too_long(path, node.max_length)
    if node.min_length is not None and len(value) < node.min_length:
        yield errors.invalid(path, value, f"{path} in body should be at least {node.min_length} chars long")
    if node.pattern is not None and not node.pattern.found_in(value):
        yield errors.invalid(path, value, f"{path} in body should match '{node.pattern.source}'")
    if node.format and not formats.fits(node.format, value):
        yield errors.wrong_type(path, value, f"{path} in body must be of type {node.format}: {errors.quoted(value)}")


_COMPARISONS: Final = {
    ("maximum", False): "less than or equal to",
    ("maximum", True): "less than",
    ("minimum", False): "greater than or equal to",
    ("minimum", True): "greater than",
}


def _number(node: Node, value: float, path: str) -> Iterator[FieldError]:
    limit, strict = node.maximum, node.exclusive_maximum
    if limit is not None and (value >= limit if strict else value > limit):
        yield _out_of_range(path, value, _COMPARISONS["maximum", strict], limit)
    limit, strict = node.minimum, node.exclusive_minimum
    if limit is not None and (value <= limit if strict else value < limit):
        yield _out_of_range(path, value, _COMPARISONS["minimum", strict], limit)
    if node.multiple_of is not None and abs(math.remainder(value, node.multiple_of)) > 1e-9 * abs(node.multiple_of):
        yield errors.invalid(path, value, f"{path} in body should be a multiple of {errors.quoted(node.multiple_of)}")


def _out_of_range(path: str, value: float, words: str, limit: float) -> FieldError:
    shown = int(limit) if limit == int(limit) else limit
    return errors.invalid(path, value, f"{path} in body should be {words} {shown}")


def _list(node: Node, value: list[Json], path: str, old: Json | Missing) -> Iterator[FieldError]:
    if node.max_items is not None and len(value) > node.max_items:
        yield errors.too_many(path, len(value), node.max_items)
    if node.min_items is not None and len(value) < node.min_items:
        detail = f"{path} in body should have at least {node.min_items} items"
        yield errors.invalid(path, len(value), detail)
    if node.items is None:
        return
    known = old_items(node, old)
    for index, item in enumerate(value):
        before = known.get(list_key(node, item), MISSING) if known else MISSING
        yield from validate(node.items, item, f"{path}[{index}]", before)


def _object(node: Node, value: dict[str, Json], path: str, old: Json | Missing) -> Iterator[FieldError]:
    if node.max_properties is not None and len(value) > node.max_properties:
        yield errors.too_many(path, len(value), node.max_properties)
    if node.min_properties is not None and len(value) < node.min_properties:
        detail = f"{path} in body should have at least {node.min_properties} properties"
        yield errors.invalid(path, len(value), detail)
    for name in node.required:
        if name not in value:
            yield errors.required(child(path, name))
    before = old if isinstance(old, dict) else {}
    for name, item in value.items():
        found = member(node, name)
        if found is not None:
            yield from validate(found, item, child(path, name), before.get(name, MISSING))


def _combinations(node: Node, value: Json, path: str) -> Iterator[FieldError]:
    """allOf, anyOf, oneOf and not. Their branches are never ratcheted."""
    failed = [found for branch in node.all_of if (found := list(validate(branch, value, path)))]
    yield from chain.from_iterable(failed)
    if failed:
        none = ". None validated" if len(failed) == len(node.all_of) else ""
        yield _combined(path, f"must validate all the schemas (allOf){none}")
    if node.any_of and all(_fails(branch, value, path) for branch in node.any_of):
        yield _combined(path, "must validate at least one schema (anyOf)")
        yield from validate(node.any_of[0], value, path)
    if node.one_of:
        valid = sum(not _fails(branch, value, path) for branch in node.one_of)
        if valid == 0:
            yield _combined(path, "must validate one and only one schema (oneOf). Found none valid")
            yield from validate(node.one_of[0], value, path)
        elif valid > 1:
            yield _combined(path, f"must validate one and only one schema (oneOf). Found {valid} valid alternatives")
    if node.not_ is not None and not _fails(node.not_, value, path):
        yield _combined(path, "must not validate the schema (not)")


def _fails(branch: Node, value: Json, path: str) -> bool:
    return next(validate(branch, value, path), None) is not None


def _combined(path: str, words: str) -> FieldError:
    return errors.invalid("", "", f"{errors.quoted(path)} {words}")


def duplicates(node: Node, value: Json, path: str = "") -> Iterator[FieldError]:
    """Items that come twice in lists of type set or map; each reported once."""
    if isinstance(value, dict):
        for name, item in value.items():
            found = member(node, name)
            if found is not None:
                where = child(path, name) if name in node.properties else f"{path}[{name}]"
                yield from duplicates(found, item, where)
    elif isinstance(value, list):
        yield from _duplicate_items(node, value, path)
        if node.items is not None:
            for index, item in enumerate(value):
                yield from duplicates(node.items, item, f"{path}[{index}]")


def _duplicate_items(node: Node, value: list[Json], path: str) -> Iterator[FieldError]:
    if node.list_type not in ("set", "map"):
        return
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        key = item
        if node.list_type == "map":
            key = {name: item[name] for name in node.list_keys if name in item} if isinstance(item, dict) else {}
        shown = errors.quoted(key)
        seen[shown] = seen.get(shown, 0) + 1
        if seen[shown] == 2:
            yield errors.duplicate(f"{path}[{index}]", key)
