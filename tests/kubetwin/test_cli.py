"""What the command line says when a file cannot be used, and when it is asked for help."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kubetwin.cli import main
from kubetwin.plugin import main as plugin


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(below, *words, name)


@pytest.mark.parametrize("option", ("-h", "--help"))
def test_every_command_has_help(option: str) -> None:
    for start in (main, plugin):
        for words in commands(start):
            result = CliRunner().invoke(start, [*words, option])
            assert (result.exit_code, result.output[:6]) == (0, "Usage:"), words


def test_a_folder_that_cannot_be_made_is_named_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["certs", "--dir", str(tmp_path / "file" / "certs")])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}/file/certs: Not a directory\n"
