"""Functions that rules may call in Kubernetes and that the CEL library lacks: on lists, sets and text.

`url`, `ip`, `cidr`, `quantity`, `semver` and `format` are not among them: a rule that calls one does not compile.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped]  # stubs, but no py.typed

_DYN = cel.Type.DYN
_LIST = cel.Type.List(cel.Type.DYN)
_TEXT = cel.Type.STRING


def extension() -> cel.CelExtension:
    """The functions as an extension of a CEL environment."""
    return cel.CelExtension(
        "kubernetes",
        [
            _member("isSorted", cel.Type.BOOL, [_LIST], lambda xs: all(a <= b for a, b in pairwise(xs))),
            _member("sum", _DYN, [_LIST], sum),
            _member("min", _DYN, [_LIST], min),
            _member("max", _DYN, [_LIST], max),
            _member("indexOf", cel.Type.INT, [_LIST, _DYN], lambda xs, x: xs.index(x) if x in xs else -1),
            _member("lastIndexOf", cel.Type.INT, [_LIST, _DYN], _last_index),
            _member("find", _TEXT, [_TEXT, _TEXT], lambda text, pattern: next(iter(_find_all(text, pattern)), "")),
            _member("findAll", cel.Type.List(_TEXT), [_TEXT, _TEXT], _find_all),
            _plain("sets.contains", lambda xs, ys: all(y in xs for y in ys)),
            _plain("sets.equivalent", lambda xs, ys: all(y in xs for y in ys) and all(x in ys for x in xs)),
            _plain("sets.intersects", lambda xs, ys: any(y in xs for y in ys)),
        ],
    )


def _member(name: str, result: Any, parameters: list[Any], impl: Callable[..., Any]) -> cel.FunctionDecl:
    overload = cel.Overload(f"kubernetes_{name}", return_type=result, parameters=parameters, is_member=True, impl=impl)
    return cel.FunctionDecl(name, [overload])


def _plain(name: str, impl: Callable[[list[Any], list[Any]], bool]) -> cel.FunctionDecl:
    identity = f"kubernetes_{name.replace('.', '_')}"
    overload = cel.Overload(identity, return_type=cel.Type.BOOL, parameters=[_LIST, _LIST], is_member=False, impl=impl)
    return cel.FunctionDecl(name, [overload])


def _last_index(items: list[Any], item: Any) -> int:
    return next((index for index in range(len(items) - 1, -1, -1) if items[index] == item), -1)


def _find_all(text: str, pattern: str) -> list[str]:
    return [match.group() for match in re.finditer(pattern, text)]
