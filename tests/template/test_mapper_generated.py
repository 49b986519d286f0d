"""What the scaffold generates is as good as what it is generated from: formatted, linted, typed, installed, tested."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubetwin.mapper_project import Answers, create
from tests.template.sandbox import REPOSITORY, Sandbox

pytestmark = pytest.mark.timeout(400)

NAMES = ("acme-meter", "a", "zeta", "x" + "-very-long" * 3 + "-name", "pt100-reader-2")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_formatted_and_linted_whatever_its_name(tmp_path: Path, name: str) -> None:
    project = create(Answers(name), tmp_path)
    for command in (("format", "--check"), ("check",)):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=project, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed() -> Iterator[tuple[Sandbox, Path]]:
    """A sandbox with a generated project in it, as after `pip install -e .[test]`."""
    with tempfile.TemporaryDirectory() as directory:
        sandbox = Sandbox(Path(directory) / "venv")
        sandbox.run("kubetwin mapper new acme-meter", Path(directory))
        project = Path(directory) / "acme-meter"
        sandbox.run("pip install -q -e '.[test]'", project)
        yield sandbox, project


@pytest.mark.e2e
@pytest.mark.slow
def test_it_is_typed_strictly(installed: tuple[Sandbox, Path]) -> None:
    sandbox, project = installed
    assert "Success" in sandbox.run("mypy --no-incremental", project, within_s=300)


@pytest.mark.e2e
def test_its_tests_pass(installed: tuple[Sandbox, Path]) -> None:
    sandbox, project = installed
    output = sandbox.run("pytest -p no:cacheprovider", project, within_s=300)
    assert "test_conformance.py" in output
    assert "failed" not in output
    assert "skipped" not in output
    assert "error" not in output


@pytest.mark.e2e
@pytest.mark.slow
def test_its_tests_notice_a_driver_that_is_broken(installed: tuple[Sandbox, Path]) -> None:
    sandbox, project = installed
    driver = project / "acme_meter" / "driver.py"
    text = driver.read_text()
    try:
        driver.write_text(text.replace("if first == str(number):", "if True:"))
        with pytest.raises(AssertionError, match="failed"):
            sandbox.run("pytest -p no:cacheprovider", project, within_s=300)
    finally:
        driver.write_text(text)


@pytest.mark.e2e
def test_its_driver_is_found_and_its_manifests_are_right(installed: tuple[Sandbox, Path]) -> None:
    sandbox, project = installed
    table = sandbox.run("kubetwin mapper drivers", project)
    assert "acme-meter acme-meter 0.1.0 read, write" in [" ".join(line.split()) for line in table.splitlines()]
    assert "0 errors, 0 warnings" in sandbox.run("kubetwin mapper check manifests", project)
    text = sandbox.run("kubetwin mapper explain acme-meter", project)
    assert "port: whole number, 1 to 65535; default 4059" in text
    assert "Name of the item on the device" in text


@pytest.mark.e2e
def test_a_wheel_of_kubetwin_holds_the_whole_scaffold(tmp_path: Path) -> None:
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(REPOSITORY)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(next(tmp_path.glob("*.whl"))), str(tmp_path / "out")], check=True
    )
    here, there = REPOSITORY / "mappers" / "template", tmp_path / "out" / "mappers" / "template"
    files = {p.relative_to(here) for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert files == {p.relative_to(there) for p in there.rglob("*") if p.is_file()}
