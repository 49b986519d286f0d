"""Running the CEL rules of a schema over an object."""

import re
from collections.abc import Iterator
from typing import Any, Final

from kubetwin.apiserver.schema import errors
from kubetwin.apiserver.schema.cel import Rule, RuleError
from kubetwin.apiserver.schema.errors import FieldError, child
from kubetwin.apiserver.schema.node import MISSING, Json, Missing, Node, list_key, member, old_items, same

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED: Final = re.compile(
    "true|false|null|in|as|break|const|continue|else|for|function|if|import|let|loop|package|namespace|return|var|void|while"
)
_ESCAPES: Final = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}
_MESSAGE_LIMIT: Final = 5120  # bytes, as upstream caps an evaluated message


def broken_rules(
    node: Node, value: Json, path: str = "", old: Json | Missing = MISSING, *, root: bool = False
) -> Iterator[FieldError]:
    """What the rules of this node and of everything below say against the value.

    Rules that read `oldSelf` run only where there is an old value, unless they take it as optional. Where the value
    equals the old one, only those run.
    """
    if value is None or not node.has_rules:
        return
    unchanged = not isinstance(old, Missing) and same(value, old)
    due = [rule for rule in node.rules if _is_due(rule, old, unchanged=unchanged)]
    if due:
        this = _value(node, value, root=root)
        before_this = None if isinstance(old, Missing) else _value(node, old, root=root)
        for rule in due:
            error = _broken(rule, node, value, path, this, before_this, has_old=not isinstance(old, Missing))
            if error is not None:
                yield error
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            found = member(node, name)
            if found is not None:
                where = child(path, name) if name in node.properties else f"{path}[{name}]"
                yield from broken_rules(found, item, where, before.get(name, MISSING))
    elif isinstance(value, list) and node.items is not None:
        known = old_items(node, old)
        for index, item in enumerate(value):
            before_item = known.get(list_key(node, item), MISSING) if known else MISSING
            yield from broken_rules(node.items, item, f"{path}[{index}]", before_item)


def _is_due(rule: Rule, old: Json | Missing, *, unchanged: bool) -> bool:
    if rule.is_transition:
        return rule.optional_old_self or not isinstance(old, Missing)
    return not unchanged


def _broken(
    rule: Rule, node: Node, value: Json, path: str, this: Any, before: Any, *, has_old: bool
) -> FieldError | None:
    try:
        if rule.program.run(this, before, has_old=has_old):
            return None
    except RuleError as error:
        said = f"{error} evaluating rule: {rule.shown}"
        if str(error).startswith("no such overload"):
            words = "call arguments did not match a supported operator, function or macro signature for rule"
            said = f"'{error}': {words}: {rule.shown}"
        return errors.invalid_whole(path, node.type, said)
    detail = _message(rule, this, before, has_old=has_old)
    where = path + (rule.field_path if path else rule.field_path.removeprefix("."))
    whole = node.type in ("object", "array")
    match rule.reason:
        case "FieldValueRequired":
            return errors.required(where, detail)
        case "FieldValueForbidden":
            return errors.forbidden(where, detail)
        case "FieldValueDuplicate":
            return (
                FieldError(where, "FieldValueDuplicate", "Duplicate value") if whole else errors.duplicate(where, value)
            )
        case _ if whole:
            return FieldError(where, "FieldValueInvalid", f"Invalid value: {detail}")
        case _:
            return errors.invalid(where, value, detail)


def _message(rule: Rule, this: Any, before: Any, *, has_old: bool) -> str:
    if rule.message_program is not None:
        try:
            text = str(rule.message_program.run(this, before, has_old=has_old)).strip()
        except RuleError:
            text = ""
        if text and "\n" not in text and len(text.encode()) <= _MESSAGE_LIMIT:
            return text
    return rule.message or f"failed rule: {rule.shown}"


def escaped(name: str) -> str | None:
    """The name of a field in CEL; None where CEL cannot reach it."""
    if not _IDENTIFIER.fullmatch(name):
        return None
    if _RESERVED.fullmatch(name):
        return f"__{name}__"
    return re.sub(r"__|[./-]", lambda found: _ESCAPES[found[0]], name)


def _value(node: Node, value: Json, *, root: bool = False) -> Any:
    """The value as rules see it: declared fields only, and numbers of type number as doubles."""
    match value:
        case dict():
            seen: dict[str, Any] = {}
            for name, item in value.items():
                found = node.properties.get(name)
                if (root or node.embedded) and name == "metadata" and isinstance(item, dict):
                    seen[name] = {key: item[key] for key in ("name", "generateName") if key in item}
                elif (root or node.embedded) and name in ("apiVersion", "kind"):
                    seen[name] = item
                elif found is not None:
                    called = escaped(name)
                    if called is not None and (found.type or found.int_or_string):
                        seen[called] = _value(found, item)
                elif node.additional is not None:
                    seen[name] = _value(node.additional, item)
            return seen
        case list() if node.items is not None:
            return [_value(node.items, item) for item in value]
        case int() if node.type == "number" and not isinstance(value, bool):
            return float(value)
        case float() if node.type == "integer":
            return int(value)
        case _:
            return value
