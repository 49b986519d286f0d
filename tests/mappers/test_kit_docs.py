"""The examples of docs/testing-mappers.md, as a reader would run them: files in a folder, and pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing-mappers.md"


def examples() -> dict[str, str]:
    """File name, which is in the first line → source."""
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(blocks)


@pytest.mark.e2e
def test_the_examples_run(tmp_path: Path) -> None:
    files = examples()
    assert len(files) == PAGE.read_text().count("```python")
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) >= 18, ran.stdout
    assert "skipped" not in ran.stdout


def test_every_test_of_the_suite_is_on_the_page() -> None:
    from mappers.sdk.testing.conformance import DriverConformance

    page = PAGE.read_text()
    missing = [name for name in dir(DriverConformance) if name.startswith("test_") and f"`{name}`" not in page]
    assert not missing
