"""Tables of what must hold, each row with the tests that show it."""

import ast
import functools
from pathlib import Path
from typing import NamedTuple

__all__ = ["Row", "check"]

TESTS = Path(__file__).parent


class Row(NamedTuple):
    what: str
    """What must hold, or what upstream does wrong."""
    shown_by: tuple[str, ...] = ()
    """`file::function`, below this folder."""
    not_applicable: str = ""
    """Why there is nothing to test."""


@functools.cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def check(name: str, row: Row) -> None:
    """That a row says something, and that the tests it names are there for pytest to collect."""
    assert row.what
    assert bool(row.shown_by) != bool(row.not_applicable), "a test, or why there is none"
    for shown_by in row.shown_by:
        file, _, function = shown_by.partition("::")
        assert function.startswith("test_"), shown_by
        assert Path(file).name.startswith("test_"), shown_by
        assert function in _tests_in(file), f"{shown_by} is no more: name what shows {name} now"
