"""The command `edgecore`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Final

_HEAPS: Final = "MALLOC_ARENA_MAX"


def main() -> None:
    """Keep the twins of this node's devices until SIGTERM or SIGINT."""
    _have_one_heap()
    _run()


def _have_one_heap() -> None:
    """Replace this process by itself with one heap for all threads; process id and standard streams stay.

    The C library reads the setting when a process starts. With a heap for each of gRPC's threads, of which only part is
    in use at any time, the process took 2 MB more, and 1.4 MB more each day.
    """
    if _HEAPS in os.environ:
        return
    with contextlib.suppress(OSError):  # it works without
        # What was typed, as it was; nothing is imported yet that would have to be imported twice.
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(command[0], command, {**os.environ, _HEAPS: "1"})  # noqa: S606 - ourselves


def _run() -> None:
    try:
        from edgecore.lean import lean_imports

        with lean_imports():
            from pathlib import Path

            from edgecore.app import run
            from edgecore.logs import set_up_logs
            from edgecore.options import read_options
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith(("edgecore", "dmi", "cloudedge")):
            raise
        sys.exit(f"edgecore: {missing.name} is not installed: pip install 'kubetwin[edge]'")
    options = read_options(sys.argv[1:])
    set_up_logs(logging.DEBUG if options.verbose else logging.INFO)
    run(options.config, options.mappers, file=Path(options.file), version=options.version, identity=options.identity)


if __name__ == "__main__":
    main()
