"""`kubectl twin`: device twins read and written in a line, through the kubectl that runs this plugin.

It asks kubectl itself for everything, so contexts, credentials and clusters are exactly the user's.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import click

from kubetwin.kubectl import kubectl_path
from kubetwin.rows import age_text, twin_rows

__all__ = ["main"]

_DEVICES = "devices.devices.kubeedge.io"
_MODELS = "devicemodels.devices.kubeedge.io"
_STATUSES = "devicestatuses.devices.kubeedge.io"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kubeconfig", help="As for kubectl.")
@click.option("--context", "context_name", help="As for kubectl.")
@click.option("-n", "--namespace", help="As for kubectl.")
@click.pass_context
def main(context: click.Context, kubeconfig: str | None, context_name: str | None, namespace: str | None) -> None:
    """Read and write device twins."""
    flags = {"--kubeconfig": kubeconfig, "--context": context_name, "--namespace": namespace}
    context.obj = [kubectl_path(), *(part for flag, value in flags.items() if value for part in (flag, value))]


@main.command()
@click.argument("name", required=False)
@click.pass_obj
def get(kubectl: list[str], name: str | None) -> None:
    """Show the twins of one device, or of all in the namespace."""
    devices = [d for d in _list(kubectl, _DEVICES) if name in (None, d["metadata"]["name"])]
    if name is not None and not devices:
        raise click.ClickException(f"there is no device {name!r} in this namespace: kubectl get devices")
    rows = twin_rows(devices, _list(kubectl, _MODELS), _list(kubectl, _STATUSES), now_ms=time.time_ns() // 1_000_000)
    table = [("DEVICE", "PROPERTY", "REPORTED", "UNIT", "DESIRED", "WRITE", "AGE", "QUALITY", "REASON")]
    table += [
        (r.device, r.property_name, r.value, r.unit, r.desired, r.write, age_text(r.age_s), r.quality, r.reason)
        for r in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@main.command("set")
@click.argument("name")
@click.argument("values", nargs=-1, required=True, metavar="PROPERTY=VALUE...")
@click.pass_obj
def set_(kubectl: list[str], name: str, values: tuple[str, ...]) -> None:
    """Change what a device's properties are wanted to be."""
    device = json.loads(_run([*kubectl, "get", _DEVICES, name, "-o", "json"]))
    properties = device["spec"].get("properties", [])
    index_of = {p["name"]: index for index, p in enumerate(properties)}
    patch: list[dict[str, Any]] = []
    for pair in values:
        property_name, equals, value = pair.partition("=")
        if not equals:
            raise click.ClickException(f"{pair!r} is not PROPERTY=VALUE")
        if property_name not in index_of:
            known = ", ".join(index_of) or "none"
            raise click.ClickException(f"device {name!r} has no property {property_name!r}; it has {known}")
        index = index_of[property_name]
        # The test keeps us from writing to a neighbour when somebody reorders the list meanwhile.
        patch.append({"op": "test", "path": f"/spec/properties/{index}/name", "value": property_name})
        path = f"/spec/properties/{index}/desired"
        desired = {**properties[index].get("desired", {}), "value": value}
        patch.append({"op": "add", "path": path, "value": desired})
    click.echo(_run([*kubectl, "patch", _DEVICES, name, "--type", "json", "-p", json.dumps(patch)]), nl=False)


def _list(kubectl: list[str], resource: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(_run([*kubectl, "get", resource, "-o", "json"]))["items"]
    return items


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise click.ClickException("kubectl is not on PATH") from error
    except subprocess.CalledProcessError as error:
        raise click.ClickException(error.stderr.strip()) from error
