"""Tables for a terminal out of texts that devices made up. Pure.

Whatever a value holds, a cell is one line, cannot steer the terminal, and takes the width that it seems to take.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

__all__ = ["NOTHING", "Columns", "cell", "clock_text", "safe", "width"]

NOTHING: Final = "-"
"""Shown where there is no value; a value that looks like it is shown in quotes."""
MAX_CELL: Final = 40
"""Columns of a cell; longer texts are cut in tables, and nowhere else."""


def safe(text: str) -> str:
    """One line without control characters, line breaks, or signs that turn the direction of what follows."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if named is not None:
        return named
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns of a terminal that a safe text takes: two for East Asian wide signs and emoji, none for accents."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me") else
        2 if unicodedata.east_asian_width(c) in ("W", "F") else 1
        for c in text
    )  # fmt: skip


def cell(text: str, *, limit: int = MAX_CELL) -> str:
    """A safe text cut to a width, the cut marked with `…`."""
    shown = safe(text[: 4 * limit])
    if width(shown) <= limit and len(text) <= 4 * limit:
        return shown
    taken, room = 0, limit - 1
    for index, character in enumerate(shown):
        taken += width(character)
        if taken > room:
            return shown[:index] + "…"
    return shown + "…"


class Columns:
    """Aligns rows as they come: a column once wide stays wide, so that rows of a watch stand below each other."""

    def __init__(self, titles: Sequence[str], *, gap: int = 3) -> None:
        self._titles = tuple(titles)
        self._widths = [width(title) for title in titles]
        self._gap = " " * gap

    def header(self) -> str:
        return self._line(self._titles)

    def lines(self, rows: Sequence[Sequence[str]], *, header: bool = False) -> list[str]:
        """The rows as lines; cells must be safe."""
        for row in rows:
            self._widths = [max(before, width(text)) for before, text in zip(self._widths, row, strict=True)]
        return [self._line(row) for row in ([self._titles] if header else []) + [tuple(row) for row in rows]]

    def _line(self, row: Sequence[str]) -> str:
        padded = (text + " " * (wide - width(text)) for text, wide in zip(row, self._widths, strict=True))
        return self._gap.join(padded).rstrip()


def clock_text(epoch_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds; empty for 0, and for what no calendar has."""
    if not epoch_ms:
        return ""
    try:
        moment = datetime.fromtimestamp(epoch_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
