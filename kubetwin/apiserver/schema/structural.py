"""A compiled structural schema: what an API server does with an object before it stores it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kubetwin.apiserver.schema import prune, validate
from kubetwin.apiserver.schema.compiling import Compiler
from kubetwin.apiserver.schema.errors import NO_PATH, FieldError, SchemaError, child, invalid
from kubetwin.apiserver.schema.node import MISSING, Json, Missing, Node
from kubetwin.apiserver.schema.rules import broken_rules

_BLOCKING: Final = (
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
)


class StructuralSchema:
    """A schema ready for use. Immutable; the methods change nothing they are given.

    An object goes through `prune`, then `default`, then `validate`. Numbers are expected as JSON has them: int where
    there was no fraction or exponent, else float.
    """

    def __init__(self, root: Node) -> None:
        """Use `compile_schema`."""
        self._root = root

    def prune(self, obj: dict[str, Json]) -> tuple[dict[str, Json], list[str]]:
        """The object without fields that the schema does not declare, and their paths, such as `spec.foo`, sorted.

        `apiVersion`, `kind` and `metadata` of the object, and of embedded resources, stay whole.
        """
        kept, dropped = prune.prune(self._root, obj)
        return kept, dropped

    def default(self, obj: dict[str, Json]) -> dict[str, Json]:
        """The object with defaults filled in. A null in a field that is not nullable counts as absent."""
        filled: dict[str, Json] = prune.default(self._root, obj)
        return filled

    def validate(self, obj: dict[str, Json], old: dict[str, Json] | None = None) -> list[FieldError]:
        """Everything that is wrong with the object, empty if it may be stored.

        With `old`, the stored object, rules that read `oldSelf` run too, and parts that are as they were are not
        reported again: an object stored under a laxer schema can still be changed elsewhere. Rules do not run on an
        object with missing, mistyped or oversized fields, on which they would only fail in turn.
        """
        before: Json | Missing = MISSING if old is None else old
        found = list(validate.validate(self._root, obj, "", before))
        if old is None or next(validate.duplicates(self._root, old), None) is None:
            found += validate.duplicates(self._root, obj)
        if not any(error.reason in _BLOCKING for error in found):
            found += broken_rules(self._root, obj, "", before, root=True)
        named = (error if error.path else dataclasses.replace(error, path=NO_PATH) for error in found)
        return list(dict.fromkeys(named))


def compile_schema(open_api_v3: Mapping[str, Any]) -> StructuralSchema:
    """Compile `openAPIV3Schema` of a CustomResourceDefinition.

    Raises:
        SchemaError: It is not structural, uses an unsupported keyword, has a default that its own schema refuses, or a
            pattern or rule that does not compile. Paths are relative to the schema, such as `properties[spec].type`.
    """
    compiler = Compiler()
    root = compiler.node(open_api_v3, "", "root")
    problems = compiler.problems or list(_bad_defaults(root, ""))
    if problems:
        raise SchemaError(problems)
    return StructuralSchema(root)


def _bad_defaults(node: Node, path: str) -> Iterator[FieldError]:
    if not isinstance(node.default, Missing):
        where = child(path, "default")
        pruned, dropped = prune.prune(node, node.default, root=False)
        if dropped:
            yield invalid(where, node.default, f"must not have unknown fields: {', '.join(dropped)}")
        else:
            filled = prune.default(node, pruned)
            yield from validate.validate(node, filled, where)
            yield from broken_rules(node, filled, where)
    for name, part in node.properties.items():
        yield from _bad_defaults(part, f"{child(path, 'properties')}[{name}]")
    if node.items is not None:
        yield from _bad_defaults(node.items, child(path, "items"))
    if node.additional is not None:
        yield from _bad_defaults(node.additional, child(path, "additionalProperties"))
