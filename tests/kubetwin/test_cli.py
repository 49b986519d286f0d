"""What the command line says when a file cannot be used."""

from pathlib import Path

from click.testing import CliRunner

from kubetwin.cli import main


def test_a_folder_that_cannot_be_made_is_named_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["certs", "--dir", str(tmp_path / "file" / "certs")])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}/file/certs: Not a directory\n"
