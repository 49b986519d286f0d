"""The process that `kubetwin mapper run` becomes. Its first argument is the descriptor of the options; the others are
what was typed, for `ps`.
"""

from __future__ import annotations

import os
import sys

import msgspec

from dmi.errors import ConfigError

try:
    from mappers.sdk.app import run_options
    from mappers.sdk.options import Options
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith(("mappers", "dmi")):
        raise
    sys.exit(f"mapper: {missing.name} is not installed: pip install 'kubetwin[mapper]'")


def main() -> None:
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        sys.exit("use: kubetwin mapper run PROTOCOL... --config FILE")
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        options = msgspec.json.decode(file.read(), type=Options)
    try:
        run_options(options)
    except ConfigError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
