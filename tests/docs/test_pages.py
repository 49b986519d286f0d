"""What the pages promise: messages are in the source, commands exist, links lead somewhere, figures are the code's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from kubetwin.cli import main
from kubetwin.reference import SHIPPED, driver_page
from mappers.sdk import connection, tracking, writer
from mappers.sdk.options import find_driver
from tests.docs.page import DOCS

PACKAGES = ("cloudcore", "cloudedge", "dmi", "edgecore", "kubetwin", "mappers")
PAGES = (*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md")


@cache
def messages() -> str:
    """Every text of the source, a line each, with `…` for what is filled in."""
    files = (file for package in PACKAGES for file in (DOCS.parent / package).rglob("*.py"))
    texts = (_text(node) for file in files for node in ast.walk(ast.parse(file.read_text())))
    return "\n".join(re.sub(r"%(\.\d)?[a-z]", "…", text) for text in texts)


def _text(node: ast.AST) -> str:
    match node:
        case ast.JoinedStr(values=parts):
            return "".join("…" if isinstance(p, ast.FormattedValue) else _text(p) for p in parts)
        case ast.Constant(value=str(text)):
            return text
    return ""


def quoted(page: str, pattern: str) -> Iterator[str]:
    for line in re.findall(pattern, (DOCS / page).read_text(), re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", line)


def is_said(message: str) -> bool:
    """Whether the source has it: the parts between the `…` one after another in one text."""
    parts = [re.escape(part) for part in message.split("…")]
    return re.search(r"[^\n]*?".join(parts), messages()) is not None


@pytest.mark.parametrize("message", list(quoted("troubleshooting.md", r"^### (.*)$")))
def test_a_symptom_is_a_message_of_the_program(message: str) -> None:
    assert is_said(message)


@pytest.mark.parametrize("message", list(quoted("desired.md", r"^\| (`[^|]*…[^|]*`) \|")))
def test_a_reason_is_one_that_is_given(message: str) -> None:
    assert is_said(message)


@pytest.mark.parametrize("message", list(quoted("channel.md", r"^\| (`(?!kubetwin_|[\w.]+`)[^|]*) \|")))
def test_a_complaint_of_the_channel_is_one_that_is_made(message: str) -> None:
    assert is_said(message)


def test_the_check_of_messages_notices_one_that_nobody_says() -> None:
    assert not is_said("no driver … is installed, so there")


def test_the_figures_of_desired_are_those_of_the_code() -> None:
    page = " ".join((DOCS / "desired.md").read_text().split())
    first, last = tracking.WRITE_RETRY_S
    assert f"after {first:g} s, then twice as long each time, up to {last:g} s; every {last:g} s where" in page
    assert f"has {writer.PUSHED_BACK_S:g} seconds to arrive" in page
    assert f"at most {connection.RECONNECT_S[1]:g} s apart" in (DOCS / "troubleshooting.md").read_text()


def test_the_driver_reference_is_what_the_structs_say() -> None:
    """When it is not: python -m kubetwin.reference > docs/drivers.md"""
    assert (DOCS / "drivers.md").read_text() == driver_page(find_driver(name) for name in SHIPPED)


def anchors(page: Path) -> set[str]:
    """What headings are called in links."""
    headings = (heading.lower() for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE))
    return {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS.parent).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)", page.read_text()):
        if "://" not in target:
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not heading or heading in anchors(there), f"{target}#{heading}"


def test_figures_and_benchmarks_are_those_that_are_printed() -> None:
    """Of the channel; other tables shorten the names."""
    page, folder = (DOCS / "performance.md").read_text(), DOCS.parent / "benchmarks"
    calls = (node for file in folder.rglob("*.py") for node in ast.walk(ast.parse(file.read_text())))
    printed = [_text(c.args[0]) for c in calls if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "figure"]
    patterns = [re.escape(name).replace("…", r"[a-z_]+") for name in printed]
    channel = page.split("\n## Channel\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([a-z_.]+)`", channel, re.MULTILINE)
    assert len(named) > 8
    assert [name for name in named if not any(re.fullmatch(p, f"channel.{name}") for p in patterns)] == []
    for line in re.findall(r"`(?:python -m benchmarks )([a-z][^`]*)`|`(channel\.\w+)[^`]*`", page):
        for name in re.findall(r"[a-z]+\.[a-z_]+", " ".join(line)):
            assert f'"{name}": "' in (folder / "__main__.py").read_text(), name


@pytest.mark.parametrize(
    "page",
    ("write-a-mapper.md", "troubleshooting.md", "desired.md", "channel.md", "security.md", "why.md", "../README.md"),
)
def test_commands_exist(page: str) -> None:
    found = re.findall(r"(?:^|`|\$ )kubetwin ((?:[a-z]+ ?)+)", (DOCS / page).read_text(), re.MULTILINE)
    for words in found:
        command: click.Command = main
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, f"kubetwin {words}"
            command = command.commands[word]
