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
PAGES = sorted(DOCS.rglob("*.md"))


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


@pytest.mark.parametrize("message", list(quoted("channel.md", r"^\| (`(?!kubetwin_)[^`|]*`) \|")))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ("write-a-mapper.md", "troubleshooting.md", "desired.md", "channel.md", "security.md"))
def test_commands_exist(page: str) -> None:
    found = re.findall(r"(?:^|`|\$ )kubetwin ((?:[a-z]+ ?)+)", (DOCS / page).read_text(), re.MULTILINE)
    for words in found:
        command: click.Command = main
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, f"kubetwin {words}"
            command = command.commands[word]
