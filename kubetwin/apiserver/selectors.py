"""Label and field selectors of list, watch and deletecollection.

Reference: Kubernetes documentation, "Labels and Selectors", "Field Selectors".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Any, TypeAlias

from kubetwin.apiserver.errors import bad_request
from kubetwin.apiserver.items import Item

Match: TypeAlias = Callable[[Item], bool]
_Test: TypeAlias = Callable[[str | None], bool]

_SET_BASED = re.compile(r"(?P<key>[^\s,!=()<>]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUALITY = re.compile(r"(?P<key>[^\s,!=()<>]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s,!=()<>]*)")
_NUMERIC = re.compile(r"(?P<key>[^\s,!=()<>]+)\s*(?P<op>[<>])\s*(?P<value>-?\d+)")
_EXISTS = re.compile(r"(?P<not>!?)\s*(?P<key>[^\s,!=()<>]+)")
_FIELD_TERM = re.compile(r"(?P<path>[^=!,]+?)(?P<op>!=|==|=)(?P<value>.*)", re.DOTALL)


def _everything(_item: Item) -> bool:
    return True


def parse_labels(text: str) -> Match:
    """A matcher for `labelSelector`.

    Raises:
        ApiError: 400, with the part that is not understood.
    """
    tests: list[tuple[str, _Test]] = []
    at = 0
    while at < len(text):
        rest = text[at:].lstrip()
        if not rest:
            break
        for pattern, make in (
            (_SET_BASED, _set_test),
            (_NUMERIC, _numeric_test),
            (_EQUALITY, _equality_test),
            (_EXISTS, _exists_test),
        ):
            match = pattern.match(rest)
            tail = rest[match.end() :].lstrip() if match else ""
            if match is not None and (not tail or tail[0] == ","):
                tests.append((match["key"], make(match)))
                at = len(text) - len(tail) + 1
                break
        else:
            raise bad_request(f'unable to parse requirement: "{rest}" of label selector "{text}" is not understood')
    if not tests:
        return _everything

    def matches(item: Item) -> bool:
        return all(test(item.labels.get(key)) for key, test in tests)

    return matches


def _set_test(match: re.Match[str]) -> _Test:
    values = {value.strip() for value in match["values"].split(",")}
    if match["op"] == "in":
        return lambda label: label is not None and label in values
    return lambda label: label is None or label not in values


def _equality_test(match: re.Match[str]) -> _Test:
    wanted = match["value"]
    if match["op"] == "!=":
        return lambda label: label != wanted
    return lambda label: label == wanted


def _numeric_test(match: re.Match[str]) -> _Test:
    bound, less = int(match["value"]), match["op"] == "<"

    def test(label: str | None) -> bool:
        try:
            number = int(label or "")
        except ValueError:
            return False
        return number < bound if less else number > bound

    return test


def _exists_test(match: re.Match[str]) -> _Test:
    if match["not"]:
        return lambda label: label is None
    return lambda label: label is not None


def parse_fields(text: str, selectable: Set[str]) -> Match:
    """A matcher for `fieldSelector`: `metadata.name`, `metadata.namespace`, and what the kind allows.

    Raises:
        ApiError: 400, for a field that may not be selected by, or a selector that is not understood.
    """
    tests: list[Callable[[Item], bool]] = []
    for term in re.split(r"(?<!\\),", text):
        if not term.strip():
            continue
        match = _FIELD_TERM.fullmatch(term.strip())
        if match is None:
            raise bad_request(f'invalid field selector "{text}"; can\'t understand "{term}"')
        path, value = match["path"].strip(), re.sub(r"\\(.)", r"\1", match["value"])
        tests.append(_field_test(path, value, match["op"] != "!=", selectable))
    if not tests:
        return _everything
    return lambda item: all(test(item) for test in tests)


def _field_test(path: str, value: str, equal: bool, selectable: Set[str]) -> Callable[[Item], bool]:
    if path == "metadata.name":
        return lambda item: (item.name == value) is equal
    if path == "metadata.namespace":
        return lambda item: (item.namespace == value) is equal
    if path not in selectable:
        raise bad_request(f'field label not supported: "{path}"')
    steps = path.split(".")

    def test(item: Item) -> bool:
        found: Any = item.decode()
        for step in steps:
            found = found.get(step) if isinstance(found, dict) else None
        return (_text(found) == value) is equal

    return test


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def both(first: Match, second: Match) -> Match | None:
    """Items that pass both; None when everything does."""
    if first is _everything:
        return None if second is _everything else second
    if second is _everything:
        return first
    return lambda item: first(item) and second(item)
