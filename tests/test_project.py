"""What holds for the tree as a whole."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dmi", "cloudedge", "mappers", "mappers.sdk", "edgecore", "cloudcore", "kubetwin")


def test_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    subprocess.run(
        ["sh", ROOT / "proto" / "generate.sh", tmp_path], check=True, capture_output=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    generated = {p.relative_to(tmp_path): p.read_text() for p in (tmp_path / "dmi" / "_pb").glob("api_pb2*")}
    assert len(generated) == 3
    for path, text in generated.items():
        assert (ROOT / path).read_text() == text, f"{path} is stale: run make proto"


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_exports_exists_and_is_listed_once(package: str) -> None:
    module = importlib.import_module(package)
    exported = module.__all__
    assert len(set(exported)) == len(exported)
    for name in exported:
        assert hasattr(module, name), f"{package}.__all__ names {name!r}, which is not there"


@pytest.mark.parametrize("package", ("dmi", "cloudedge", "mappers", "edgecore", "cloudcore", "kubetwin"))
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
