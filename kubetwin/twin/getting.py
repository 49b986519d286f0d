"""`kubectl twin get`: the rows of many devices, once or as they change."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

import click
import yaml
from msgspec import Struct, structs

from kubetwin.kubectl import Kubectl
from kubetwin.rows import TwinRow, twin_rows
from kubetwin.twin.options import Failure, Target, did_you_mean
from kubetwin.twin.shapes import TITLES, WIDE_TITLES, cells, name_of, row_object
from kubetwin.twin.text import Columns
from kubetwin.twin.world import Away, Changed, Follower, Scope, World, nodes_away

__all__ = ["Output", "Picked", "changed_rows", "show", "watch"]

Output = Literal["", "wide", "json", "yaml", "name"]
NODE_CHECK_S: Final = 10.0
SETTLE_S: Final = 0.02
"""What changes within this time of each other is shown together,"""
GATHER_S: Final = 0.2
"""but nothing waits longer than this."""

RowKey = tuple[str, str]


class Picked(Struct, frozen=True):
    """What of the rows is shown, and how."""

    properties: tuple[str, ...] = ()
    """Empty: all."""
    output: Output = ""
    with_namespace: bool = False
    header: bool = True

    def of(self, world: World, away: set[str], keys: Collection[RowKey] | None = None) -> list[TwinRow]:
        """Rows of these devices; None: of all."""
        rows = twin_rows(
            world.get("devices", keys), world.get("devicemodels"), world.get("devicestatuses", keys),
            now_ms=time.time_ns() // 1_000_000, nodes_away=away,
        )  # fmt: skip
        return [row for row in rows if not self.properties or row.property_name in self.properties]

    def columns(self) -> Columns:
        wide = WIDE_TITLES if self.output == "wide" else ()
        return Columns((*(("NAMESPACE",) if self.with_namespace else ()), *TITLES, *wide))

    def cells(self, row: TwinRow) -> tuple[str, ...]:
        return cells(row, wide=self.output == "wide", namespace=self.with_namespace)

    def looks(self, row: TwinRow) -> object:
        """What of a row is worth a new line: all that is shown of it but its times."""
        timeless = structs.replace(row, age_s=None, collected_ms=0)
        return row_object(timeless) if self.output in ("json", "yaml") else self.cells(timeless)


async def show(kubectl: Kubectl, scope: Scope, picked: Picked) -> None:
    world, without = await World.read(kubectl, scope)
    if without:
        click.echo(f"Warning: {without}", err=True)
    rows = picked.of(world, await nodes_away(kubectl, world.nodes()))
    missing = _missing(world, scope, picked)
    match picked.output:
        case "json":
            click.echo(json.dumps([row_object(row) for row in rows], ensure_ascii=False, indent=2))
        case "yaml":
            click.echo(_yaml([row_object(row) for row in rows]), nl=False)
        case "name":
            for name in dict.fromkeys(name_of(row) for row in rows):
                click.echo(name)
        case _:
            _echo(picked.columns().lines([picked.cells(r) for r in rows], header=picked.header) if rows else [])
            if not rows and not missing:
                click.echo(_nothing(world, scope), err=True)
    if missing:
        raise Failure(missing)


async def watch(kubectl: Kubectl, scope: Scope, picked: Picked) -> None:
    """Print every row, then those that change in more than their age, until cancelled."""
    world, columns = World(scope), picked.columns()
    shown: dict[str, list[TwinRow]] = {}
    away, check_at, first = set[str](), 0.0, True
    heard: set[tuple[str, str]] = set()
    touched: set[RowKey] | None = None
    async with Follower(kubectl, scope) as follower:
        while True:
            for change in await _changes(follower):
                if isinstance(change, Away):
                    click.echo(change.trouble or "the Kubernetes API answers again", err=True)
                    continue
                heard.add((change.plural, change.place))
                about = world.take(change)
                touched = None if about is None or touched is None else touched | about
            if len(heard) < 3 * len(scope.places()):
                continue
            if time.monotonic() >= check_at:
                before, away = away, await nodes_away(kubectl, world.nodes())
                check_at = time.monotonic() + NODE_CHECK_S
                touched = touched if before == away else None
            if first and (missing := _missing(world, scope, picked)):
                raise Failure(missing)
            rows = picked.of(world, away, touched)
            new, gone = changed_rows(_take_rows(shown, rows, touched), rows, picked)
            _print_changes(picked, columns, new, gone, header=first and picked.header)
            first, touched = False, set()


async def _changes(follower: Follower) -> list[Changed | Away]:
    """What happened next, with what follows it closely. However much happens, it is shown several times a second."""
    changes: list[Changed | Away] = []
    change = await follower.next(within_s=NODE_CHECK_S)
    until = time.monotonic() + GATHER_S
    while change is not None:
        changes.append(change)
        change = await follower.next(within_s=SETTLE_S) if time.monotonic() < until else None
    return changes


def _take_rows(
    shown: dict[str, list[TwinRow]], rows: Sequence[TwinRow], touched: Collection[RowKey] | None
) -> dict[RowKey, TwinRow]:
    """The rows of the touched devices as they were shown; from now on they are as given."""
    names = list(shown) if touched is None else ["/".join(key) for key in touched]
    before = {(row.device, row.property_name): row for name in names for row in shown.pop(name, ())}
    for row in rows:
        shown.setdefault(row.device, []).append(row)
    return before


def changed_rows(
    shown: Mapping[RowKey, TwinRow], rows: Sequence[TwinRow], picked: Picked
) -> tuple[list[TwinRow], list[TwinRow]]:
    """Rows to print again, and those that are no more. A value confirmed as it was is no change."""
    now = {(row.device, row.property_name) for row in rows}
    new = [
        row
        for row in rows
        if (before := shown.get((row.device, row.property_name))) is None or picked.looks(before) != picked.looks(row)
    ]
    return new, [row for key, row in shown.items() if key not in now]


def _print_changes(
    picked: Picked, columns: Columns, new: Sequence[TwinRow], gone: Sequence[TwinRow], *, header: bool
) -> None:
    match picked.output:
        case "json" | "yaml":
            objects = [row_object(row) for row in new] + [{**row_object(row), "removed": True} for row in gone]
            for obj in objects:
                click.echo(
                    json.dumps(obj, ensure_ascii=False) if picked.output == "json" else "---\n" + _yaml(obj).rstrip()
                )
        case "name":
            for name in dict.fromkeys(name_of(row) for row in new):
                click.echo(name)
        case _:
            rows = [picked.cells(row) for row in new] + [_removed(picked, row) for row in gone]
            _echo(columns.lines(rows, header=header and bool(rows)))


def _removed(picked: Picked, row: TwinRow) -> tuple[str, ...]:
    index = TITLES.index("QUALITY") + picked.with_namespace
    shown = picked.cells(row)
    return (*shown[:index], "removed", *shown[index + 1 :])


def _missing(world: World, scope: Scope, picked: Picked) -> str:
    """What was asked for by name and is not there; empty: nothing."""
    found = {Target(d["metadata"]["namespace"], d["metadata"]["name"]) for d in world.get("devices")}
    for device in scope.names:
        if device not in found and not scope.labels and not scope.fields:
            near = did_you_mean(device.name, [t.name for t in found if t.namespace == device.namespace])
            where = f"in namespace {device.namespace}"
            return f"there is no device {device.name!r} {where}{near or f': kubectl get devices -n {device.namespace}'}"
    known = {p.get("name", "") for d in world.get("devices") for p in (d.get("spec") or {}).get("properties") or ()}
    for name in picked.properties if world.get("devices") else ():
        if name not in known:
            return f"no device shown has a property {name!r}{did_you_mean(name, known)}"
    return ""


def _nothing(world: World, scope: Scope) -> str:
    where = f" in namespace {scope.namespace}" if scope.namespace else ""
    if world.get("devices"):
        return "The devices declare no properties."
    return f"No devices found{where}."


def _echo(lines: Sequence[str]) -> None:
    if lines:
        click.echo("\n".join(lines))


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
