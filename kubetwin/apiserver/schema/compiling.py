"""From an OpenAPI v3 schema, as a CustomResourceDefinition has it, to a tree of nodes.

The rules of structural schemas are those of Kubernetes (documentation of CustomResourceDefinition, "Specifying a
structural schema"): a type everywhere, a fixed set of keywords, and branches of allOf/anyOf/oneOf/not that only
restrict what is declared outside of them. Problems are collected, all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal

from kubetwin.apiserver.schema import errors
from kubetwin.apiserver.schema.cel import Pattern, Program, Rule, RuleError
from kubetwin.apiserver.schema.errors import FieldError, child
from kubetwin.apiserver.schema.node import MISSING, Node
from kubetwin.apiserver.schema.structure import (
    INT_OR_STRING,
    SHAPES,
    check_branch_keywords,
    check_complete,
    check_keywords,
    check_metadata,
    check_types,
)

Level = Literal["root", "item", "field"]

_NUMBERS: Final = {
    "minimum": "minimum",
    "maximum": "maximum",
    "multiple_of": "multipleOf",
}
_COUNTS: Final = {
    "min_length": "minLength",
    "max_length": "maxLength",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_properties": "minProperties",
    "max_properties": "maxProperties",
}
_RULE_REASONS: Final = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")


class Compiler:
    """One compilation: collects the problems of one schema."""

    def __init__(self) -> None:
        self.problems: list[FieldError] = []

    def node(self, schema: Any, path: str, level: Level) -> Node:
        """Compile a part of the structure: outside of allOf, anyOf, oneOf and not."""
        if not isinstance(schema, Mapping):
            self.problems.append(errors.invalid(path, schema, "must be an object"))
            return Node()
        schema = self._shaped(schema, path)
        self.problems += [*check_keywords(schema, path), *check_types(schema, path, level)]
        self.problems += check_metadata(schema, path, level)
        node = dataclasses.replace(
            self._restrictions(schema, path, branch=False),
            type=_text(schema.get("type")),
            nullable=schema.get("nullable") is True,
            default=schema.get("default", MISSING),
            preserve_unknown=schema.get("x-kubernetes-preserve-unknown-fields") is True,
            int_or_string=schema.get("x-kubernetes-int-or-string") is True,
            embedded=schema.get("x-kubernetes-embedded-resource") is True,
            list_type=_list_type(schema),
            list_keys=tuple(map(str, schema.get("x-kubernetes-list-map-keys") or ())),
            properties=self._properties(schema, path, branch=False),
            items=self.node(schema["items"], child(path, "items"), "item") if "items" in schema else None,
            additional=self._additional(schema, path),
        )
        for name, part in (*node.properties.items(), ("", node.items), ("", node.additional)):
            if part is not None and part.has_rules and not (level == "root" and name == "metadata"):
                node = dataclasses.replace(node, has_rules=True)
        if level == "root":  # Kubernetes looks no deeper: definitions in use rely on it
            self.problems += check_complete(schema, schema, path)
        return node

    def _shaped(self, schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """The schema without keywords whose values have the wrong JSON type, which are problems, or are null."""
        kept = {}
        for keyword, value in schema.items():
            if value is None and keyword != "default":
                continue
            fits = isinstance(value, SHAPES.get(keyword, object))
            if fits and keyword == "required":
                fits = all(isinstance(name, str) for name in schema["required"])
            if fits:
                kept[keyword] = value
            else:
                self.problems.append(errors.invalid(child(path, keyword), value, "is not of the type this keyword has"))
        return kept

    def _branch(self, schema: Any, path: str) -> Node:
        """Compile a branch of allOf, anyOf, oneOf or not."""
        if not isinstance(schema, Mapping):
            self.problems.append(errors.invalid(path, schema, "must be an object"))
            return Node()
        schema = self._shaped(schema, path)
        self.problems += check_branch_keywords(schema, path)
        node = self._restrictions(schema, path, branch=True)
        items = self._branch(schema["items"], child(path, "items")) if "items" in schema else None
        return dataclasses.replace(node, items=items, properties=self._properties(schema, path, branch=True))

    def _restrictions(self, schema: Mapping[str, Any], path: str, *, branch: bool) -> Node:
        """What restricts values, which structure and branches have in common."""
        limits: dict[str, Any] = {}
        for name, keyword in _NUMBERS.items():
            limits[name] = self._number(schema, keyword, path, (int, float))
        for name, keyword in _COUNTS.items():
            limits[name] = self._number(schema, keyword, path, (int,))
        if limits["multiple_of"] is not None and limits["multiple_of"] <= 0:
            self.problems.append(errors.invalid(child(path, "multipleOf"), limits["multiple_of"], "must be positive"))
            limits["multiple_of"] = None
        any_of, all_of = schema.get("anyOf") or [], schema.get("allOf") or []
        if not branch and schema.get("x-kubernetes-int-or-string") is True:
            # Two spellings of int-or-string that say no more than the extension itself.
            if any_of == INT_OR_STRING:
                any_of = []
            elif all_of and isinstance(all_of[0], Mapping) and all_of[0].get("anyOf") == INT_OR_STRING:
                all_of = [{key: value for key, value in all_of[0].items() if key != "anyOf"}, *all_of[1:]]
        rules = () if branch else self._rules(schema, path)
        return Node(
            format=_text(schema.get("format")),
            enum=tuple(schema["enum"]) if isinstance(schema.get("enum"), list) else None,
            required=tuple(map(str, schema.get("required") or ())),
            exclusive_minimum=schema.get("exclusiveMinimum") is True,
            exclusive_maximum=schema.get("exclusiveMaximum") is True,
            pattern=self._pattern(schema, path),
            all_of=self._branches(all_of, child(path, "allOf")),
            any_of=self._branches(any_of, child(path, "anyOf")),
            one_of=self._branches(schema.get("oneOf") or [], child(path, "oneOf")),
            not_=self._branch(schema["not"], child(path, "not")) if "not" in schema else None,
            rules=rules,
            has_rules=bool(rules),
            **limits,
        )

    def _branches(self, schemas: list[Any], path: str) -> tuple[Node, ...]:
        return tuple(self._branch(schema, f"{path}[{index}]") for index, schema in enumerate(schemas))

    def _number(self, schema: Mapping[str, Any], keyword: str, path: str, types: tuple[type, ...]) -> Any:
        value = schema.get(keyword)
        if value is None or (isinstance(value, types) and not isinstance(value, bool)):
            return value
        self.problems.append(errors.invalid(child(path, keyword), value, "must be a number"))
        return None

    def _pattern(self, schema: Mapping[str, Any], path: str) -> Pattern | None:
        source = schema.get("pattern")
        if not source:
            return None
        try:
            return Pattern(str(source))
        except RuleError as error:
            detail = f"must be a valid regular expression, but isn't: {error}"
            self.problems.append(errors.invalid(child(path, "pattern"), source, detail))
            return None

    def _properties(self, schema: Mapping[str, Any], path: str, *, branch: bool) -> dict[str, Node]:
        declared = schema.get("properties") or {}
        where = child(path, "properties")
        if branch:
            return {name: self._branch(part, f"{where}[{name}]") for name, part in declared.items()}
        return {name: self.node(part, f"{where}[{name}]", "field") for name, part in declared.items()}

    def _additional(self, schema: Mapping[str, Any], path: str) -> Node | None:
        additional = schema.get("additionalProperties")
        match additional:
            case None | False:
                return None
            case True:
                return Node(nullable=True)
            case _:
                return self.node(additional, child(path, "additionalProperties"), "field")

    def _rules(self, schema: Mapping[str, Any], path: str) -> tuple[Rule, ...]:
        compiled = []
        for index, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
            where = f"{child(path, 'x-kubernetes-validations')}[{index}]"
            if not isinstance(rule, Mapping):
                self.problems.append(errors.invalid(where, rule, "must be an object"))
                continue
            try:
                compiled.append(self._rule(rule, where))
            except RuleError as error:
                self.problems.append(errors.invalid(f"{where}.rule", rule.get("rule"), f"compilation failed: {error}"))
        return tuple(compiled)

    def _rule(self, rule: Mapping[str, Any], path: str) -> Rule:
        source = str(rule.get("rule") or "").strip()
        if not source:
            self.problems.append(errors.required(f"{path}.rule", "rule is not specified"))
        message = str(rule.get("message") or "").strip()
        if "\n" in message:
            self.problems.append(errors.invalid(f"{path}.message", message, "message must not contain line breaks"))
        if not message and "\n" in source:
            detail = "message must be specified if rule contains line breaks"
            self.problems.append(errors.required(f"{path}.message", detail))
        reason = str(rule.get("reason") or "FieldValueInvalid")
        if reason not in _RULE_REASONS:
            self.problems.append(errors.not_supported(f"{path}.reason", reason, _RULE_REASONS))
        optional = rule.get("optionalOldSelf") is True
        field_path = str(rule.get("fieldPath") or "")
        if field_path and not field_path.startswith((".", "[")):
            self.problems.append(errors.invalid(f"{path}.fieldPath", field_path, "must start with . or ['"))
        expression = rule.get("messageExpression")
        return Rule(
            source=source,
            program=Program(source or "true", result="bool", optional_old_self=optional),
            message=message,
            message_program=(
                Program(str(expression), result="string", optional_old_self=optional) if expression else None
            ),
            reason=reason,
            field_path=field_path,
            optional_old_self=optional,
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list_type(schema: Mapping[str, Any]) -> Literal["", "atomic", "set", "map"]:
    match schema.get("x-kubernetes-list-type"):
        case "atomic":
            return "atomic"
        case "set":
            return "set"
        case "map":
            return "map"
        case _:
            return ""
