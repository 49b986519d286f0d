"""`kubetwin mapper new` and `update`: renders the scaffold `mappers/template`, and merges a newer one into a project.

A project keeps, beside its answers, the scaffold as it was rendered last (`.template.zip`). That is the base of a
three-way merge, so an update needs neither the network nor the kubetwin version the project came from.
"""

from __future__ import annotations

import io
import keyword
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.resources import as_file, files
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import copier
from msgspec import Struct

from dmi.errors import ConfigError
from dmi.settings import load_settings
from kubetwin.reference import SHIPPED

__all__ = ["Answers", "Change", "check_name", "check_protocol", "create", "update"]

ANSWERS: Final = ".copier-answers.yml"
BASE: Final = ".template.zip"
OWN: Final = ("*/config.py", "*/driver.py", "*/simulator.py", "manifests/*", "tests/*")
"""The author's files: rendered once, and never touched again."""
MAX_BASE_BYTES: Final = 4 * 1024 * 1024
_TAKEN: Final = frozenset(
    {"cloudcore", "cloudedge", "dmi", "edgecore", "kubetwin", "mappers", "test", "tests"}
    | {"click", "google", "grpc", "h11", "msgspec", "pytest", "yaml"}  # what every mapper and its tests import
)

Fate = Literal["added", "updated", "merged", "conflict", "removed", "kept"]


class Answers(Struct, frozen=True):
    """What a project was generated from."""

    name: str
    protocol: str = ""


class Change(Struct, frozen=True):
    """What an update did to one file. `kept`: the scaffold dropped it or it was deleted here, and so it stays."""

    path: str
    fate: Fate


def check_name(name: str) -> None:
    """Refuse a name that cannot be a project, a Python package and a Kubernetes name at once.

    Raises:
        ConfigError: It says what is allowed.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise ConfigError("NAME", f"{name!r}: up to 40 lower-case letters, digits and single hyphens, a letter first")
    package = name.replace("-", "_")
    if package in _TAKEN or package in sys.stdlib_module_names or keyword.iskeyword(package):
        raise ConfigError(
            "NAME", f"{name!r}: Python or a library has a {package!r} already; add a word, as in acme-{name}"
        )


def check_protocol(protocol: str) -> None:
    """Refuse what cannot be the name of an entry point of its own.

    Raises:
        ConfigError: It says what is allowed.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,62}", protocol):
        raise ConfigError(
            "--protocol", f"{protocol!r}: up to 63 letters, digits, dots, hyphens and underscores, a letter first"
        )
    if protocol in SHIPPED:
        raise ConfigError(
            "--protocol", f"{protocol!r}: kubetwin has a driver of that name, and only one would be found"
        )


def create(answers: Answers, parent: Path) -> Path:
    """Render a new project into a folder of its name, and return that.

    Raises:
        ConfigError: The name or protocol is not allowed, or the folder has something in it.
    """
    check_name(answers.name)
    check_protocol(answers.protocol or answers.name)
    target = parent / answers.name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(str(target), "exists and is not empty; `kubetwin mapper update` brings a project up to date")
    rendered = _render(answers)
    for path, content in rendered.items():
        _write(target / path, content)
    _write_base(target, rendered)
    return target


def update(project: Path, *, force: bool = False) -> list[Change]:
    """Bring a project to the current scaffold, leaving the author's own files alone.

    A file that both the author and the scaffold changed is merged; where that is not possible it gets conflict markers
    and is reported as `conflict`.

    Raises:
        ConfigError: It is no generated project, or, unless `force`, has changes that are not committed.
    """
    answers_file = project / ANSWERS
    if not answers_file.is_file():
        raise ConfigError(str(answers_file), "is missing: only a project made by `kubetwin mapper new` can be updated")
    answers, _ = load_settings(answers_file, Answers)
    check_name(answers.name)
    check_protocol(answers.protocol or answers.name)
    if not force:
        _refuse_uncommitted(project)
    base, current = _read_base(project), _render(answers)
    changes = list(_apply(project, base, current))
    _write_base(project, current)
    return changes


def _render(answers: Answers) -> dict[str, bytes]:
    """Every file of the scaffold by its path in the project."""
    data = {"name": answers.name, "protocol": answers.protocol or answers.name}
    with as_file(files("mappers") / "template") as template, tempfile.TemporaryDirectory() as directory:
        copier.run_copy(str(template), directory, data=data, defaults=True, overwrite=True, quiet=True)
        root = Path(directory)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _apply(project: Path, base: Mapping[str, bytes], current: Mapping[str, bytes]) -> Iterator[Change]:
    for path in sorted({*base, *current}):
        if _is_own(path) or base.get(path) == current.get(path):
            continue
        file, was, now = project / path, base.get(path), current.get(path)
        mine = file.read_bytes() if file.is_file() else None
        if now == mine:
            continue
        if now is None:
            if mine == was:
                file.unlink()
            yield Change(path, "removed" if mine == was else "kept")
        elif mine is None:
            if was is None:
                _write(file, now)
            yield Change(path, "added" if was is None else "kept")
        elif mine == was:
            _write(file, now)
            yield Change(path, "updated")
        else:
            merged, clean = _merge(mine, was or b"", now)
            _write(file, merged)
            yield Change(path, "merged" if clean else "conflict")


def _is_own(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in OWN)


def _merge(mine: bytes, base: bytes, now: bytes) -> tuple[bytes, bool]:
    """Three versions of a text → (merged, whether without conflict)."""
    with tempfile.TemporaryDirectory() as directory:
        names = ("yours", "as generated", "current scaffold")
        paths = [Path(directory, str(index)) for index in range(3)]
        for path, content in zip(paths, (mine, base, now), strict=True):
            path.write_bytes(content)
        labels = [part for name in names for part in ("-L", name)]
        result = _git("merge-file", "-p", *labels, *map(str, paths))
    if result.returncode >= 128:
        raise ConfigError("", f"git merge-file failed: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout, result.returncode == 0


def _refuse_uncommitted(project: Path) -> None:
    """Outside a repository there is nothing to compare with, and nothing is refused."""
    status = _git("-C", str(project), "status", "--porcelain", "--", ".")
    if status.returncode == 0 and status.stdout.strip():
        raise ConfigError(
            str(project), "has changes that are not committed: commit them, to see what the update does, or use --force"
        )


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], check=False, capture_output=True, timeout=60)  # noqa: S607
    except FileNotFoundError as error:
        raise ConfigError("", "git is not installed: it merges your changes with the scaffold's") from error


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_base(project: Path, rendered: Mapping[str, bytes]) -> None:
    """The same bytes for the same scaffold, so that an update without news is no change."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(rendered.items()):
            if not _is_own(path):
                archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
    _write(project / BASE, buffer.getvalue())


def _read_base(project: Path) -> dict[str, bytes]:
    """What was rendered last; nothing when it is missing, so that every file that differs becomes a conflict.

    Raises:
        ConfigError: It is no such archive.
    """
    file = project / BASE
    if not file.is_file():
        return {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_BASE_BYTES:
                raise ConfigError(str(file), "is larger than any scaffold; take it back from your version control")
            content = {m.filename: archive.read(m) for m in members}
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(str(file), f"cannot be read: {error}; take it back from your version control") from error
    for path in content:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise ConfigError(str(file), f"names {path!r}, which is outside the project")
    return content
