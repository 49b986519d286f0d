"""The fenced blocks of a Markdown page, as a reader would use them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

DOCS = Path(__file__).parent.parent.parent / "docs"


class Block(Struct, frozen=True):
    """One fenced block. `terminal` names another terminal that its command keeps busy."""

    language: str
    text: str
    terminal: str = ""


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    for indent, language, terminal, body in re.findall(
        r"^( *)```(\w+)(?: terminal=(\w+))?\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL
    ):
        yield Block(language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE), terminal)


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Of a console block: each command with the output that is shown for it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def is_like(shown: str, output: str) -> bool:
    """Whether output is as shown: `…` stands for anything, and the width of columns does not count."""
    lines = [re.escape(" ".join(line.split())).replace("…", ".*") for line in shown.splitlines()]
    got = [" ".join(line.split()) for line in output.splitlines()]
    return len(lines) == len(got) and all(re.fullmatch(p, g) for p, g in zip(lines, got, strict=True))
