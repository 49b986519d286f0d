"""The command `edgecore`: reads the configuration, then becomes the process that runs.

That one is a fresh interpreter under the same process id: what parsing options and YAML needed, about 2 MB of an edge
box's memory, does not come along, and one malloc arena is enough for what its threads do.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from dmi import ConfigError
from edgecore.config import EdgeCoreConfig
from edgecore.configfile import load_config, to_yaml
from edgecore.logs import set_up_logs

DEFAULT_CONFIG = Path("/etc/kubeedge/config/edgecore.yaml")


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)
@click.option("--minconfig", is_flag=True, help="Print the settings one has to look at, and exit.")
@click.option("--defaultconfig", is_flag=True, help="Print all settings with their defaults, and exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log every message.")
def main(config: Path, minconfig: bool, defaultconfig: bool, verbose: bool) -> None:
    """Keeps the twins of this node's devices, and keeps the cloud informed."""
    if minconfig or defaultconfig:
        click.echo(to_yaml(EdgeCoreConfig(), minimal=minconfig), nl=False)
        return
    set_up_logs(logging.DEBUG if verbose else logging.INFO)
    try:
        settings = load_config(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    _become_app(settings, verbose=verbose)


def _become_app(config: EdgeCoreConfig, *, verbose: bool) -> NoReturn:
    """The settings go through a pipe: a command line would show them to every user of the machine."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(msgspec.json.encode(config))
    os.set_inheritable(reader, True)
    # -P and the path: the same edgecore as this one, and nothing from the working directory.
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-P", "-m", "edgecore.app", str(reader), *(["-v"] if verbose else [])]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter, no shell


if __name__ == "__main__":
    main()
