"""The command `edgecore`."""

from __future__ import annotations

import logging
import sys

try:
    from edgecore.app import run
    from edgecore.logs import set_up_logs
    from edgecore.options import read_options
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith(("edgecore", "dmi", "cloudedge")):
        raise
    sys.exit(f"edgecore: {missing.name} is not installed: pip install 'kubetwin[edge]'")


def main() -> None:
    """Keep the twins of this node's devices until SIGTERM or SIGINT."""
    options = read_options(sys.argv[1:])
    set_up_logs(logging.DEBUG if options.verbose else logging.INFO)
    run(options.config, options.mappers)


if __name__ == "__main__":
    main()
