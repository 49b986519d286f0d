"""The commands of `kubectl twin`: what they take, and what they ask for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import yaml

from kubetwin.kubectl import Forbidden, Kubectl, KubectlError, ObjectMissing
from kubetwin.lenient import text
from kubetwin.twin.describe import Described, describe
from kubetwin.twin.getting import Output, Picked, show, watch
from kubetwin.twin.history import history_lines, history_objects, read_history
from kubetwin.twin.options import USAGE, Cluster, Failure, Target, cluster_options, duration_s, run, target
from kubetwin.twin.setting import send_wishes, wait_for_wishes
from kubetwin.twin.wishes import RefusedWish, parse_wishes
from kubetwin.twin.world import Scope, is_ready

__all__ = ["describe_command", "get_command", "history_command", "set_command"]

WAIT: str = "30s"
"""How long `--wait` waits when it does not say."""
MAX_LIMIT = 10_000


@click.command("get", short_help="Show twins in a table, as they are or as they change.")
@click.argument("names", nargs=-1, metavar="[NAME|NS/NAME]...")
@click.option("-p", "--property", "properties", multiple=True, metavar="NAME", help="Only this property; repeatable.")
@click.option("-l", "--selector", "labels", default="", metavar="LABELS", help="Label selector, as for kubectl.")
@click.option("--field-selector", "fields", default="", metavar="FIELDS", help="Field selector, as for kubectl.")
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Devices of all namespaces.")
@click.option("-o", "--output", type=click.Choice(("wide", "json", "yaml", "name")), help="[default: a table]")
@click.option("-w", "--watch", "watching", is_flag=True, help="Then print every row that changes, until Ctrl-C.")
@click.option("--no-headers", is_flag=True, help="A table without its titles.")
@cluster_options
def get_command(
    names: tuple[str, ...],
    properties: tuple[str, ...],
    labels: str,
    fields: str,
    everywhere: bool,
    output: Output | None,
    watching: bool,
    no_headers: bool,
    *,
    cluster: Cluster,
) -> None:
    """Show the twins of devices: what each property is, and what it is wanted to be.

    QUALITY is stale where the device cannot be reached, whatever its last report said. Where a value has control
    characters they are escaped, and a table cuts long values; -o json and -o yaml give them whole.

    \b
    Examples:
      kubectl twin get                         all devices of the namespace
      kubectl twin get boiler-1 -p set-point   one property of one device
      kubectl twin get -A -l line=3 -o wide    by label, with state, write state and reasons
      kubectl twin get boiler-1 -w             rows as they change
      kubectl twin get -o json | jq -r '.[] | select(.inSync == false) | .device'
    """
    if everywhere and names:
        raise click.UsageError("name devices, or ask for all with -A; not both")
    devices = tuple(target(name) for name in names)

    async def work() -> None:
        scope = await _scope(cluster, devices, everywhere=everywhere, labels=labels, fields=fields)
        picked = Picked(
            properties=properties,
            output=output or "",
            with_namespace=everywhere or len(scope.places()) > 1,
            header=not no_headers,
        )
        await (watch if watching else show)(cluster.kubectl, scope, picked)

    run(work())


async def _scope(
    cluster: Cluster, devices: tuple[Target, ...], *, everywhere: bool, labels: str = "", fields: str = ""
) -> Scope:
    named = tuple(dict.fromkeys([await cluster.resolve(device) for device in devices]))
    namespace = "" if everywhere or named else await cluster.namespace()
    return Scope(namespace=namespace, names=named, labels=labels, fields=fields)


class _WaitFlag(click.Command):
    """`--wait` may stand alone anywhere, also before `PROPERTY=VALUE`; a time is joined to it with `=`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        joined = [f"--wait={WAIT}" if arg == "--wait" else arg for arg in args[:end]]
        return super().parse_args(ctx, joined + args[end:])


@click.command("set", cls=_WaitFlag, short_help="Say what properties are wanted to be, and wait for it.")
@click.argument("name", metavar="NAME|NS/NAME")
@click.argument("values", nargs=-1, required=True, metavar="PROPERTY=VALUE...")
@click.option("--wait", metavar="[=30s]", help="Until every value is applied, or failed.")
@click.option("--dry-run", is_flag=True, help="Check, and let the API check, but change nothing.")
@cluster_options
def set_command(name: str, values: tuple[str, ...], wait: str | None, dry_run: bool, *, cluster: Cluster) -> None:
    """Change what a device's properties are wanted to be.

    Each value is checked against the device's model (type, range, access) before anything is sent; then all are sent
    together. An empty value wants nothing any more.

    \b
    Examples:
      kubectl twin set boiler-1 set-point=42
      kubectl twin set plant/boiler-1 set-point=42 pump=true --wait
      kubectl twin set boiler-1 set-point=42 --wait=2m
      kubectl twin set boiler-1 label='Boiler 7' --dry-run
      kubectl twin set boiler-1 set-point=          nothing is wanted

    \b
    Exit codes:
      0  sent; with --wait: applied      3  the cluster could not be asked
      1  failed, or no such device       4  --wait: not applied in time
      2  it does not fit; nothing was sent
    """
    wanted_of = target(name)
    timeout_s = duration_s(wait) if wait is not None else None
    if dry_run and wait is not None:
        raise click.UsageError("--dry-run changes nothing that could be waited for")
    try:
        wishes = parse_wishes(values)
    except RefusedWish as refused:
        raise Failure(str(refused), USAGE) from refused

    async def work() -> None:
        device = await cluster.resolve(wanted_of)
        await send_wishes(cluster.kubectl, device, wishes, dry_run=dry_run)
        done = "patched (server dry run)" if dry_run else "patched"
        click.echo(f"device.devices.kubeedge.io/{device.name} {done}")
        if timeout_s is not None:
            await wait_for_wishes(cluster.kubectl, device, wishes, timeout_s=timeout_s)

    run(work())


@click.command("history", short_help="Recent values, where the edge keeps them.")
@click.argument("name", metavar="NAME|NS/NAME")
@click.argument("property_name", metavar="[PROPERTY]", default="")
@click.option("--since", metavar="10m", help="Not older than this.")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LIMIT), default=100, show_default=True, help="So many of the newest."
)
@click.option("-o", "--output", type=click.Choice(("json", "yaml")), help="[default: a table]")
@click.option(
    "--edge", type=click.Path(path_type=Path), metavar="SOCKET", help="Ask edge core on this machine instead."
)
@click.option("--no-headers", is_flag=True, help="A table without its titles.")
@cluster_options
def history_command(
    name: str,
    property_name: str,
    since: str | None,
    limit: int,
    output: str | None,
    edge: Path | None,
    no_headers: bool,
    *,
    cluster: Cluster,
) -> None:
    """Show recent values of a device, newest first.

    The device's node keeps them, where its edgecore.yaml says so (modules.deviceTwin.history.enable). It is asked
    through the cluster, which takes kubetwin's CloudCore; or, on the node itself, with --edge.

    \b
    Examples:
      kubectl twin history boiler-1 temperature --since 10m
      kubectl twin history boiler-1 --limit 20 -o json
      kubectl twin history default/boiler-1 --edge /etc/kubeedge/edgecore.sock
    """
    wanted_of = target(name)
    since_s = duration_s(since) if since is not None else None

    async def work() -> None:
        offline = edge is not None and not cluster.given_namespace  # a gateway has no kubectl to ask for a namespace
        device = (
            Target(wanted_of.namespace or "default", wanted_of.name) if offline else await cluster.resolve(wanted_of)
        )
        history = await read_history(
            cluster.kubectl, device, property_name=property_name, since_s=since_s, limit=limit, edge=edge
        )
        if output == "json":
            click.echo(json.dumps(history_objects(history.values, device), ensure_ascii=False, indent=2))
        elif output == "yaml":
            rows = history_objects(history.values, device)
            click.echo(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000), nl=False)
        elif history.values:
            click.echo("\n".join(history_lines(history, header=not no_headers)))
        else:
            click.echo("No values kept" + (f" of the last {since}" if since else "") + ".", err=True)
        if history.truncated:
            click.echo(f"There is more: these are the newest {len(history.values)}.", err=True)

    run(work())


@click.command("describe", short_help="Everything known of a device, for people.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|NS/NAME...")
@cluster_options
def describe_command(names: tuple[str, ...], *, cluster: Cluster) -> None:
    """Show everything the cluster knows of devices: node, state, conditions, problems, properties, Events.

    \b
    Examples:
      kubectl twin describe boiler-1
      kubectl twin describe plant/boiler-1 plant/boiler-2 | less
    """
    devices = [target(name) for name in names]

    async def work() -> None:
        for index, wanted_of in enumerate(devices):
            device = await cluster.resolve(wanted_of)
            seen = await _look(cluster.kubectl, device)
            node_away = seen.node is not None and not is_ready(seen.node)
            told = describe(seen, now_ms=time.time_ns() // 1_000_000, node_away=node_away)
            click.echo(("\n\n" if index else "") + told)

    run(work())


async def _look(kubectl: Kubectl, device: Target) -> Described:
    """Everything around a device; what may not be read is noted and left out."""
    notes: list[str] = []

    async def one(plural: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return await kubectl.get(plural, namespace, name) if name else None
        except ObjectMissing:
            return None
        except Forbidden as error:
            if plural != "nodes":  # few may read nodes, and little is missed
                notes.append(str(error))
            return None

    declared = await kubectl.get("devices", device.namespace, device.name)
    model = await one("devicemodels", device.namespace, text(declared, "spec", "deviceModelRef", "name"))
    status = await one("devicestatuses", device.namespace, device.name)
    node = await one("nodes", "", text(declared, "spec", "nodeName"))
    try:
        of_device = f"involvedObject.name={device.name},involvedObject.kind=Device"
        events = (await kubectl.list("events", device.namespace, fieldSelector=of_device)).items
    except KubectlError as error:
        notes.append(f"Events cannot be read: {error}")
        events = []
    return Described(declared, model, status, node, events, notes)
