"""The `kubetwin` command. Every subcommand imports what it needs when it runs, so that `--help` is quick and an edge
box needs only its own extras.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from dmi.errors import ConfigError
from dmi.log_lines import log_to_stderr
from kubetwin.join import join
from kubetwin.join_commands import token
from kubetwin.mapper_commands import mapper
from kubetwin.needs import needs
from kubetwin.simulate import simulate

__all__ = ["main"]

_PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """A group whose commands say what is wrong with a file or an option in a sentence, not in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise  # whoever reads our output has enough
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(where + (error.strerror or str(error))) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kubetwin")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens in detail.")
def main(verbose: bool) -> None:
    """KubeEdge's device management in Python."""
    log_to_stderr(logging.DEBUG if verbose else logging.INFO, "%(asctime)s %(levelname)-7s %(name)s: %(message)s")


@main.command()
@click.option("--dir", "directory", type=_PATH, help="Where to keep everything. [default: a folder of yours in /tmp]")
@click.option("--seconds", type=click.FloatRange(min=0), help="End by itself after this long.")
def demo(directory: Path | None, seconds: float | None) -> None:
    """The whole path on one machine, with a simulated Modbus device."""
    sys.exit(needs("kubetwin.demo", "demo").run(directory, seconds))


@main.command(short_help="A Kubernetes API for one machine.")
@click.option("--data", type=_PATH, required=True, help="Folder of the database, the token and the certificates.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: the port of last time, or a free one.")
@click.option("--kubeconfig", type=_PATH, help="Where to write it. [default: kubeconfig in the data folder]")
def apiserver(data: Path, port: int, kubeconfig: Path | None) -> None:
    """A Kubernetes API for one machine: loopback, SQLite, one administrator."""
    needs("kubetwin.apiserver", "demo").run(data, port, kubeconfig)


main.add_command(join)
main.add_command(token)
main.add_command(mapper)
main.add_command(simulate)


@main.command(
    short_help="Name the first broken step between a device and kubectl.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def why(words: tuple[str, ...]) -> None:
    """As `kubectl twin why`: see there."""
    from kubetwin.why.command import why as command

    command.main(words, prog_name="kubetwin why")


@main.command(short_help="Print the CustomResourceDefinitions.")
def crds() -> None:
    """Print the CustomResourceDefinitions, for kubectl apply -f -."""
    from cloudcore.crds import render

    click.echo(render(), nl=False)


@main.command(short_help="Mint the certificates of the cloud-edge channel.")
@click.option("--dir", "directory", type=_PATH, required=True, help="Where the files go; a CA found there is kept.")
@click.option("--node", "nodes", multiple=True, help="A node to mint a client certificate for; may be repeated.")
@click.option(
    "--host", "hosts", multiple=True, default=("127.0.0.1", "localhost"), show_default=True,
    help="An address or name that edges dial; may be repeated.",
)  # fmt: skip
def certs(directory: Path, nodes: tuple[str, ...], hosts: tuple[str, ...]) -> None:
    """Mint the channel's certificates: a CA, the cloud's, and one per node."""
    try:
        needs("cloudedge.certificates", "cloud").mint(directory, nodes=nodes, names=hosts)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(sorted(str(p) for p in directory.glob("*.crt"))))


def kubectl_twin() -> None:
    """`kubectl twin`: kubectl runs any `kubectl-twin` on PATH as its own subcommand."""
    from kubetwin.plugin import main

    main()
