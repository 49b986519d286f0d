"""What the demo shows: a live table in a terminal, a line per change anywhere else."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

import yaml
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kubetwin.demo.plan import NODE, Plan
from kubetwin.kubectl import kubectl_path
from kubetwin.rows import DeviceRow, TwinRow, age_text

__all__ = ["Picture", "Screen", "make_screen", "suggestions", "wrap_command"]

_COLOURS = {"good": "green", "stale": "yellow", "bad": "red", "applied": "green", "pending": "yellow", "failed": "red"}


class Picture(Struct, frozen=True):
    """One moment of the demo."""

    twins: list[TwinRow]
    devices: list[DeviceRow]
    pids: dict[str, int]
    endings: dict[str, str]
    connected: bool
    problem: str


class Screen(Protocol):
    def show(self, picture: Picture) -> None: ...


@contextlib.contextmanager
def make_screen(plan: Plan, out: TextIO) -> Iterator[Screen]:
    console = Console(file=out)
    if not console.is_terminal:
        yield _Lines(plan, console)
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield _Table(plan, live)


def suggestions(plan: Plan) -> list[str]:
    """Lines to paste into another terminal."""
    config = shlex.quote(str(plan.kubeconfig))
    kubectl = f"{_short(kubectl_path())} --kubeconfig {config}"
    device = next(d for d in yaml.safe_load_all(plan.manifests()) if d["kind"] == "Device")
    name = device["metadata"]["name"]
    wanted = [(i, p) for i, p in enumerate(device["spec"]["properties"]) if p.get("desired", {}).get("value")]
    plugin = _short(_beside("kubectl-twin"))
    lines = [
        f"{kubectl} get devicestatuses",
        f"{kubectl} get devicestatuses -w",
        f"{plugin} --kubeconfig {config} get {name} -w",
    ]
    if wanted:
        index, property_ = wanted[0]
        patch = f'[{{"op":"replace","path":"/spec/properties/{index}/desired/value","value":"42"}}]'
        lines.append(f"{kubectl} patch device {name} --type json -p '{patch}'")
        lines.append(f"{plugin} --kubeconfig {config} set {name} {property_['name']}=43 --wait")
    edge = shlex.quote(str(plan.edge))
    lines.append(f"{_short(_beside('kubetwin'))} why --kubeconfig {config} --edge {edge} default/{name}")
    return lines


def _beside(program: str) -> str:
    return str(Path(sys.executable).parent / program)


def wrap_command(command: str, width: int) -> list[str]:
    """Break a command over lines so that the shell, too, sees one command when they are copied from the screen.
    A word that is too long for a line stays whole.
    """
    lines = [" "]
    for word in re.findall(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""", command):
        if len(lines[-1]) + len(word) + 3 > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines


class _Table:
    def __init__(self, plan: Plan, live: Live) -> None:
        self._plan = plan
        self._live = live

    def show(self, picture: Picture) -> None:
        parts: list[RenderableType] = [_path_line(picture), Text()]
        reasons = {d.device: d.reason for d in picture.devices}
        parts.append(
            _twin_table(picture.twins, reasons) if picture.twins else Text("waiting for the first values …", "yellow")
        )
        parts += [Text(f"{d.device} is {d.state}: {d.reason}", "yellow") for d in picture.devices if d.reason]
        if picture.problem:
            parts.append(Text(picture.problem, "red"))
        for name, ending in picture.endings.items():
            parts.append(Text(f"{name} ended ({ending or 'not started'}). Start it again:", "red"))
            parts += self._pasteable(shlex.join(self._plan.command(name)) + " &", "red")
        parts += [Text(), Text("In another terminal:", "bold")]
        for line in suggestions(self._plan):
            parts += self._pasteable(line, "cyan")
        parts.append(
            Text(f"Modbus device at {self._plan.modbus} · files in {self._plan.directory} · Ctrl-C ends it", "dim")
        )
        self._live.update(Group(*parts), refresh=True)

    def _pasteable(self, command: str, style: str) -> list[Text]:
        return [Text(line, style, overflow="fold") for line in wrap_command(command, self._live.console.width)]


class _Lines:
    """For logs: the suggestions once, then every twin whose value, desired value or quality changed."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._console = console
        self._seen: dict[tuple[str, str], tuple[str, ...]] = {}
        self._endings: dict[str, str] = {}
        self._print("In another terminal:")
        for line in suggestions(plan):
            self._print(f"  {line}")
        self._print(f"Modbus device at {plan.modbus}, files in {plan.directory}")

    def show(self, picture: Picture) -> None:
        for row in picture.twins:
            state = (row.value, row.desired, row.write, row.quality)
            if self._seen.get((row.device, row.property_name)) != state and row.quality:
                self._seen[row.device, row.property_name] = state
                wanted = f" desired {row.desired} {row.write}" if row.desired else ""
                reason = f" ({row.reason})" if row.reason else ""
                self._print(f"{row.device} {row.property_name} = {row.value} {row.unit} {row.quality}{wanted}{reason}")
        for name in picture.endings.keys() - self._endings.keys():
            self._print(f"{name} ended ({picture.endings[name]})")
        self._endings = dict(picture.endings)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def _path_line(picture: Picture) -> Text:
    """The path of a value with the health of every hop."""
    text = Text("kubetwin demo   ", "bold")
    hops = ("simulator", "mapper-modbus", "edgecore", "cloudcore", "apiserver")
    for before, name in zip(("", *hops), hops, strict=False):
        if before:
            linked = {before, name} <= picture.pids.keys() and (name != "cloudcore" or picture.connected)
            text.append(" ── " if linked else " ╳╳ ", "green" if linked else "red")
        text.append(f"● {name}", "green" if name in picture.pids else "red")
    state = "connected" if picture.connected else "not connected"
    text.append(f"\n{NODE} is {state} to CloudHub", "green" if picture.connected else "red")
    return text


def _twin_table(rows: list[TwinRow], device_reasons: dict[str, str]) -> Table:
    """`device_reasons` are shown below the table, once, and not again on each of their lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("DEVICE", "left"), ("PROPERTY", "left"), ("VALUE", "right"), ("UNIT", "left"),
        ("DESIRED", "right"), ("WRITE", "left"), ("AGE", "right"), ("QUALITY", "left"), ("", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify)  # type: ignore[arg-type]  # rich narrows it to literals
    previous = ""
    for row in rows:
        table.add_row(
            row.device if row.device != previous else "",
            row.property_name,
            Text(row.value, "bold"),
            row.unit,
            row.desired,
            Text(row.write, _COLOURS.get(row.write, "")),
            age_text(row.age_s),
            Text(row.quality, _COLOURS.get(row.quality, "")),
            Text(row.reason if row.reason != device_reasons.get(row.device) else "", "dim"),
        )
        previous = row.device
    return table


def _short(command: str) -> str:
    """As somebody in this folder would type it."""
    if shutil.which("kubectl") == command:
        return "kubectl"
    path = Path(command)
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else command
