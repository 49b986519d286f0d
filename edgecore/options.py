"""Reads edge core's command line and configuration file, in a child process of the one that runs.

Option parsing and YAML cost 2 MB that would stay for years; as a child they cost a tenth of a second. The settings go
back as JSON through a pipe: a command line would show them to every user of the machine.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgecore.config import EdgeCoreConfig
from edgecore.embedded import Prepared
from edgecore.joining import Identity, NodeFiles, NoIdentity, read_identity

__all__ = ["Options", "read_options"]

DEFAULT_CONFIG: Final = Path("/etc/kubeedge/config/edgecore.yaml")
_PIPE: Final = "--settings-to"


class Options(msgspec.Struct, frozen=True):
    """What the command line and the file say."""

    config: EdgeCoreConfig
    verbose: bool
    file: str
    """Where they were read from."""
    version: str = ""
    """Of this program."""
    identity: Identity | None = None
    """What the node's certificate says, if it can be used."""
    mappers: Prepared | None = None
    """What runs inside this process besides."""


def read_options(arguments: list[str]) -> Options:
    """What to run with. Ends the process, with the child's exit code, when there is nothing to run."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        child = subprocess.Popen(  # noqa: S603 - ourselves, no shell
            # -P: what lies in the working directory is not ours to import, unless we came from there ourselves.
            [sys.executable, "-P", "-m", "edgecore.options", _PIPE, str(writer), *arguments],
            pass_fds=[writer],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        os.close(writer)
        settings = pipe.read()
    code = child.wait()
    if code or not settings:
        sys.exit(code)
    return msgspec.json.decode(settings, type=Options)


def _main() -> None:
    from importlib.metadata import version

    import click

    from dmi.errors import ConfigError
    from edgecore.configfile import load_config, to_yaml
    from edgecore.embedded import prepare
    from edgecore.logs import set_up_logs

    file = click.Path(path_type=Path, dir_okay=False)

    @click.command(context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--config", type=file, default=DEFAULT_CONFIG, show_default=True, help="The configuration file.")
    @click.option("--minconfig", is_flag=True, help="Print the settings one has to look at, and exit.")
    @click.option("--defaultconfig", is_flag=True, help="Print all settings with their defaults, and exit.")
    @click.option("-v", "--verbose", is_flag=True, help="Log every message.")
    @click.option(_PIPE, "pipe", type=int, hidden=True, required=True)
    def command(config: Path, minconfig: bool, defaultconfig: bool, verbose: bool, pipe: int) -> None:
        """Keeps the twins of this node's devices, and keeps the cloud informed."""
        if minconfig or defaultconfig:
            click.echo(to_yaml(EdgeCoreConfig(), minimal=minconfig), nl=False)
            return
        set_up_logs(logging.DEBUG if verbose else logging.INFO)
        try:
            settings = load_config(config)
            mappers = prepare(settings, where=f"{config}: modules.mappers")
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
        with os.fdopen(pipe, "wb") as answer:
            options = Options(
                settings, verbose, str(config.absolute()), version("kubetwin"), _identity(settings), mappers
            )
            answer.write(msgspec.json.encode(options))

    command(prog_name="edgecore")


def _identity(config: EdgeCoreConfig) -> Identity | None:
    hub = config.modules.edge_hub
    try:
        return read_identity(NodeFiles(hub.tls_ca_file, hub.tls_cert_file, hub.tls_private_key_file), config.node)
    except NoIdentity:
        return None


if __name__ == "__main__":
    _main()
