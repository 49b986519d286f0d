"""Passwords and tokens of sinks: a file each, as Kubernetes mounts a Secret, or the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["Secrets"]

MAX_BYTES: Final = 64 * 1024


class Secrets:
    """Looked up when a connection is opened, so that a changed secret counts from the next one. Never in a repr."""

    def __init__(self, folder: Path | None, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ

    def find(self, *names: str) -> str | None:
        """The first of the names that has a file in the folder or, that failing, a variable in the environment.

        Raises:
            OSError: The file is there and cannot be read.
            ValueError: It holds more than 64 KiB, or no text.
        """
        for name in names:
            found = self._read(name)
            if found is None:
                found = self._environ.get(name)
            if found is not None:
                return found
        return None

    def _read(self, name: str) -> str | None:
        if self._folder is None:
            return None
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(content) > MAX_BYTES:
            raise ValueError(f"{self._folder / name} is larger than {MAX_BYTES} bytes")
        try:
            return content.decode().strip()
        except UnicodeDecodeError:
            raise ValueError(f"{self._folder / name} is not text") from None
