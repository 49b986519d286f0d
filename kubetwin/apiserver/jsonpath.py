"""The JSONPath of printer columns: `.spec.nodeName`, `.status.conditions[?(@.type=="Ready")].status`, `.a['b.c'][0]`.

That is what CustomResourceDefinitions may use there: no scripts, no recursive descent (`..`), no slices.

Reference: Kubernetes documentation, "Additional printer columns"; k8s.io/client-go/util/jsonpath.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Step = Callable[[Any], Iterator[Any]]

_TOKEN = re.compile(
    r"""\.(?P<field>(?:[\w/-]|\\\.)+)
      | \[(?P<index>-?\d+)\]
      | \[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]
      | (?P<all>\[\*\]|\.\*)
      | \[\?\(\s*@(?P<path>(?:\.[\w/-]+)+)\s*
            (?:(?P<op>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|true|false|-?\d+(?:\.\d+)?)\s*)?\)\]
    """,
    re.VERBOSE,
)


def compile_path(text: str) -> Callable[[Any], list[Any]]:
    """A function that finds all values at the path.

    Raises:
        ValueError: The path is not understood; the text says where.
    """
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1]
    body = body.removeprefix("$")
    if body and body[0] not in ".[":
        body = "." + body
    steps: list[Step] = []
    at = 0
    while at < len(body) and body != ".":
        match = _TOKEN.match(body, at)
        if match is None:
            raise ValueError(f"JSONPath {text!r} is not understood at {body[at:]!r}")
        steps.append(_step(match))
        at = match.end()

    def find(obj: Any) -> list[Any]:
        values = [obj]
        for step in steps:
            values = [found for value in values for found in step(value)]
        return values

    return find


def _step(match: re.Match[str]) -> Step:
    if match["field"] is not None:
        return _field(match["field"].replace("\\.", "."))
    if match["quoted"] is not None:
        return _field(match["quoted"])
    if match["index"] is not None:
        return _index(int(match["index"]))
    if match["all"] is not None:
        return _all
    return _filter(match["path"][1:].split("."), match["op"], match["value"])


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and value.get(name) is not None:
            yield value[name]

    return step


def _index(index: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return step


def _all(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _filter(path: list[str], op: str | None, literal: str | None) -> Step:
    expected: object = None
    if literal is not None:
        if literal[0] in "\"'":
            expected = literal[1:-1]
        else:
            expected = {"true": True, "false": False}.get(literal, literal)
            if isinstance(expected, str):
                expected = float(expected)

    def keeps(item: Any) -> bool:
        for name in path:
            if not isinstance(item, dict) or name not in item:
                return False
            item = item[name]
        return op is None or (item == expected) is (op == "==")

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from (item for item in value if keeps(item))

    return step
