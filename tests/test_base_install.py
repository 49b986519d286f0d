"""What works with the libraries that every installation has, and a kubectl: no extra named."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# An importer that knows no library but those of `dependencies`, whatever else is installed here.
ALONE = """
import importlib.abc, importlib.machinery, sys
class Alone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {allowed!r}:
            return None
        raise ModuleNotFoundError(f"{{name}} is not installed", name=name)
sys.meta_path.insert(0, Alone())
sys.argv = {argv!r}
from kubetwin import cli
getattr(cli, {entry!r})()
"""
MODULES = {"click", "msgspec", "PyYAML"}
OURS = ("dmi", "mappers", "cloudedge", "edgecore", "cloudcore", "kubetwin")


@pytest.mark.parametrize(
    ("entry", "arguments", "code", "says"),
    (
        ("kubectl_twin", ("get", "--kubeconfig", "/nowhere/at/all"), 3, "no such file"),
        ("kubectl_twin", ("why", "--no-edge", "--kubeconfig", "/nowhere/at/all", "boiler-1"), 11, "broken at step 1"),
        ("main", ("why", "--no-api", "--edge", "/nowhere.sock", "default/boiler-1"), 17, "edge core is not running"),
        ("main", ("crds",), 0, "kind: CustomResourceDefinition"),
        ("main", ("certs", "--dir", "/nowhere"), 1, "pip install 'kubetwin[cloud]'"),
    ),
)
def test_a_command_needs_no_extra_or_names_it(entry: str, arguments: tuple[str, ...], code: int, says: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.partition(">")[0] for name in declared} == MODULES
    allowed = {"click", "msgspec", "yaml", "_yaml", *OURS}
    program = ALONE.format(allowed=allowed, argv=["kubetwin", *arguments], entry=entry)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (ran.returncode, says in ran.stdout + ran.stderr) == (code, True), ran.stdout + ran.stderr
