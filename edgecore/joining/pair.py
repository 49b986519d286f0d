"""Puts certificate, key and CA into their files so that a crash leaves the old set or the new one, never half of each.

Files cannot be replaced together. So the new set is first written into one file beside the key, and its rename is the
moment at which it counts; then each file is replaced, and the one file removed. Whoever starts finishes what was begun.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from edgecore.joining.identity import NodeFiles

__all__ = ["clear_up", "finish_install", "install", "set_file", "write_file"]

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n?", re.DOTALL)


def set_file(files: NodeFiles) -> Path:
    """Where the new set is while it is put in place."""
    key = Path(files.key)
    return key.with_name(f".{key.name}.new")


def install(files: NodeFiles, new_set: bytes) -> None:
    """`new_set`: PEM of the key, the certificate, and where the CA's file is to be replaced, of the CA.

    Raises:
        OSError: It cannot be written. `finish_install` goes on with it if it is there as a whole.
        ValueError: It is not a key and a certificate.
    """
    _parts(files, new_set)
    write_file(set_file(files), new_set, 0o600)
    finish_install(files)


def finish_install(files: NodeFiles) -> bool:
    """Whether a set was there, and is in place now. A damaged one is removed.

    Raises:
        OSError: A file cannot be written.
    """
    path = set_file(files)
    try:
        parts = _parts(files, path.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        path.unlink(missing_ok=True)
        return False
    for file, content in parts.items():
        write_file(file, content, 0o600 if b"PRIVATE KEY" in content else 0o644)
    path.unlink(missing_ok=True)  # somebody else may have finished it just now
    _sync(path.parent)
    return True


def clear_up(files: NodeFiles) -> None:
    """Remove what a process that was killed while it wrote has left beside the files."""
    for file in {Path(files.ca), Path(files.key), Path(files.certificate)}:
        for left in (*file.parent.glob(f".{file.name}.[0-9]*"), *file.parent.glob(f".{file.name}.trial*")):
            with contextlib.suppress(OSError):
                left.unlink()


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and on the disk when it returns.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _parts(files: NodeFiles, new_set: bytes) -> dict[Path, bytes]:
    """What goes into which file.

    Raises:
        ValueError: Not a key followed by a certificate.
    """
    blocks = [(match[1], match[0]) for match in _BLOCK.finditer(new_set)]
    labels = [label for label, _ in blocks]
    if len(blocks) < 2 or not labels[0].endswith(b"PRIVATE KEY") or set(labels[1:]) != {b"CERTIFICATE"}:
        raise ValueError("not a key followed by certificates")
    parts: dict[Path, bytes] = {}
    for file, content in (
        (files.ca, b"".join(block for _, block in blocks[2:])),
        (files.key, blocks[0][1]),
        (files.certificate, blocks[1][1]),
    ):
        if content:
            parts[Path(file)] = parts.get(Path(file), b"") + content  # key and certificate may share a file
    return parts


def _sync(directory: Path) -> None:
    """Make renames in it last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
