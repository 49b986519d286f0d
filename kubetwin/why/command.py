"""The command: `kubetwin why NS/NAME` and `kubectl twin why NAME`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import click
import msgspec

from kubetwin.kubectl import Kubectl, KubectlError
from kubetwin.twin.options import Cluster, Target, cluster_options, target
from kubetwin.why.collect import find_out
from kubetwin.why.ends import API_TIMEOUT_S, DEFAULT_SOCKET, Ends
from kubetwin.why.render import render
from kubetwin.why.steps import TITLES

__all__ = ["why"]

_EXIT_CODES = "\n".join(f"  {number.exit_code}  {title}" for number, title in TITLES.items())
_STATE_COLOURS = {"ok": "green", "broken": "red", "unknown": "yellow", "skipped": "bright_black"}


@click.command(
    short_help="Name the first broken step between a device and kubectl.",
    context_settings={"help_option_names": ["-h", "--help"]},  # as `kubetwin why` it has no parent to take them from
    epilog="\b\nExit codes: 0 nothing is broken, 2 wrong use, 3 nothing could be asked, else the first broken step:\n"
    + _EXIT_CODES,
)
@click.argument("device", metavar="[NAMESPACE/]NAME")
@click.option(
    "--edge", type=click.Path(path_type=Path), help=f"Edge core's socket. [default: {DEFAULT_SOCKET}, if it is there]"
)
@click.option("--no-edge", is_flag=True, help="Do not ask an edge core of this machine.")
@click.option("--no-api", is_flag=True, help="Do not ask the Kubernetes API.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "wide", "json"]), default="text", show_default=True,
    help="wide: every property at every step.",
)  # fmt: skip
@cluster_options
def why(
    device: str, edge: Path | None, no_edge: bool, no_api: bool, output: Literal["text", "wide", "json"], *,
    cluster: Cluster,
) -> None:  # fmt: skip
    """Walk the path of a device's values from both ends, and name the first step that is broken."""
    if no_api and no_edge:
        raise click.UsageError("with --no-api and --no-edge there is nobody to ask")
    if edge is not None and no_edge:
        raise click.UsageError("--edge and --no-edge exclude each other")
    kubectl = None if no_api else msgspec.structs.replace(cluster.kubectl, timeout_s=API_TIMEOUT_S)
    ends = Ends(kubectl, edge, ask_edge=not no_edge)
    sys.exit(asyncio.run(_run(ends, target(device), cluster.given_namespace, output)))


async def _run(ends: Ends, device: Target, namespace: str, output: str) -> int:
    if device.namespace and namespace not in ("", device.namespace):
        raise click.UsageError(f"{device.namespace}/{device.name} is not in namespace {namespace!r}")
    inside = device.namespace or namespace or await _namespace(ends.kubectl)
    verdict = await find_out(ends, inside, device.name)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(verdict)))
    else:
        _show(render(verdict, wide=output == "wide"))
    return verdict.exit_code


async def _namespace(kubectl: Kubectl | None) -> str:
    try:
        return await kubectl.namespace() if kubectl is not None else "default"
    except KubectlError:
        return "default"


def _show(lines: Iterable[str]) -> None:
    """In colours where there are some: click leaves them out of files and pipes."""
    for line in lines:
        word = line[3:11].strip()
        if line[:2].strip().isdigit() and word in _STATE_COLOURS:
            line = line[:3] + click.style(line[3:11], fg=_STATE_COLOURS[word]) + line[11:]
        click.echo(line)
