"""A virtual environment as a new user's, made in a second and without the network: it sees what this one has."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
_TOOLS = ("mypy", "pip", "pytest")


class Sandbox:
    """`bin` holds `python`, `pip`, `kubetwin` and the tools that run in it; ruff needs no Python."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        venv.EnvBuilder(with_pip=False, symlinks=True).create(directory)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
        ours = sysconfig.get_path("purelib")
        (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        for tool in _TOOLS:
            self._script(tool, f"-m {tool}")
        for name, function in (("kubetwin", "main"), ("kubectl-twin", "kubectl_twin")):
            self._script(name, f"-c 'from kubetwin.cli import {function}; {function}()'")

    def _script(self, name: str, arguments: str) -> None:
        script = self.bin / name
        script.write_text(f'#!/bin/sh\nexec "{self.bin}/python" {arguments} "$@"\n')
        script.chmod(0o755)

    @property
    def environment(self) -> Mapping[str, str]:
        """Of its commands. pip installs what it is told to and nothing besides, with the build tools that are there."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "PYTEST_", "VIRTUAL_ENV"))}
        return {
            **kept,
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "VIRTUAL_ENV": str(self.directory),
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the option's value: 0 is "no isolation"
            "PIP_IGNORE_INSTALLED": "1",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, command: str, directory: Path, *, within_s: float = 120) -> str:
        """Run a shell command; its output, standard error included.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", command],
            cwd=directory, env=dict(self.environment), check=False, timeout=within_s,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout
