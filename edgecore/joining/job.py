"""What edge core and the child that asks the cloud say to each other: one JSON object each way."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from edgecore.joining.identity import NodeFiles

__all__ = ["BOOTSTRAP_FILE", "Job", "Outcome", "bootstrap_files"]

BOOTSTRAP_FILE: Final = "bootstrap-edgecore.conf"


class Job(Struct, frozen=True):
    what: Literal["join", "renew"]
    """With the join token, or with the certificate that is there."""
    node: str
    servers: str
    """`edgeHub.httpServer`: tried in turn."""
    files: NodeFiles
    config_file: str = ""
    """`edgecore.yaml`, with the token in it or `bootstrap-edgecore.conf` beside it; empty: there is none."""
    token: str = ""
    """Where there is no file."""


class Outcome(Struct, frozen=True):
    problem: str = ""
    """In words, with what to do; empty: done, the files are in place."""
    final: bool = False
    """Trying the same again will not help."""
    remark: str = ""
    """Done, but something is left to do."""


def bootstrap_files(config_file: Path) -> tuple[Path, ...]:
    """Where a file with the join token may be: beside the configuration; and where that lies in a folder `config`, as
    upstream's does, beside the folder.
    """
    folder = config_file.parent
    places = (folder, folder.parent) if folder.name == "config" else (folder,)
    return tuple(place / BOOTSTRAP_FILE for place in places)
