"""`kubetwin mapper …`: from an empty folder to a running mapper. What a command needs is imported when it runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from kubetwin.needs import needs

__all__ = ["mapper"]

_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_EXISTING = click.Path(path_type=Path, exists=True)


@click.group()
def mapper() -> None:
    """Write, check and run mappers."""


@mapper.command("run", short_help="Run the drivers of one or several protocols.")
@click.argument("protocols", nargs=-1, required=True, metavar="PROTOCOL...")
@click.option("--config", type=_FILE, required=True, help="config.yaml of the mapper.")
def run(protocols: tuple[str, ...], config: Path) -> None:
    """Run the drivers of one or several protocols in this process."""
    options = needs("mappers.sdk.options", " or ".join(protocols))
    options.become_mapper(options.read_options(protocols, config))


@mapper.command("new", short_help="Make a project for a mapper of your own.")
@click.argument("name")
@click.option("--dir", "directory", type=_PATH, default=Path(), help="Where to make the folder NAME. [default: here]")
@click.option("--protocol", default="", help="protocolName of its devices. [default: NAME]")
def new(name: str, directory: Path, protocol: str) -> None:
    """Make a project for a mapper of your own: driver, simulator, tests, manifests, image, CI."""
    project = needs("kubetwin.mapper_project", "scaffold")
    target = project.create(project.Answers(name, protocol), directory)
    package = name.replace("-", "_")
    click.echo(f"{target} is ready. Yours are {package}/config.py and {package}/driver.py. Next:\n")
    click.echo(f"  cd {target}\n  pip install -e '.[test]'\n  pytest")


@mapper.command("update", short_help="Bring a project to the current scaffold.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path())
@click.option("--force", is_flag=True, help="Also when the project has changes that are not committed.")
def update(directory: Path, force: bool) -> None:
    """Bring a project to the current scaffold; your driver, config, simulator and manifests stay as they are."""
    changes = needs("kubetwin.mapper_project", "scaffold").update(directory, force=force)
    for change in changes:
        click.echo(f"{change.fate:9} {change.path}")
    if not changes:
        click.echo("up to date")
    if conflicts := [c.path for c in changes if c.fate == "conflict"]:
        raise click.ClickException(f"resolve what is between <<<<<<< and >>>>>>> in {', '.join(conflicts)}")


@mapper.command("check", short_help="Say what is wrong with manifests.")
@click.argument("paths", nargs=-1, required=True, type=_EXISTING, metavar="FILE|FOLDER...")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(paths: tuple[Path, ...], output: str) -> None:
    """Say what is wrong with Device and DeviceModel manifests: against the API's schema, the model and the driver.

    Exits with 1 when there is an error; warnings do not count.
    """
    report = needs("kubetwin.mapper_check", "mapper").check(paths)
    if output == "json":
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        for finding in report.findings:
            click.echo(str(finding))
        click.echo(
            f"{_count(report.devices, 'device')}, {_count(report.models, 'model')}: "
            f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"
        )
    if report.schema_skipped:
        missing = f"{report.schema_skipped} is not installed: pip install 'kubetwin[check]'"
        click.echo(f"not checked against the API's schema: {missing}", err=True)
    if not report.devices and not report.models and not report.errors:
        raise click.ClickException("there is no Device and no DeviceModel in these files")
    sys.exit(1 if report.errors else 0)


@mapper.command("discover", short_help="Look for devices and print manifests for them.")
@click.argument("protocol")
@click.argument("settings", nargs=-1, metavar="KEY=VALUE...")
@click.option("-o", "--output", type=_PATH, help="File for the manifests; must not exist. [default: standard output]")
@click.option("--namespace", default="default", show_default=True)
@click.option("--node", default="edge-1", show_default=True, help="nodeName of the devices.")
def discover(protocol: str, settings: tuple[str, ...], output: Path | None, namespace: str, node: str) -> None:
    """Look for devices and print manifests for them; KEY=VALUE are keys of the protocol's configData.

    Ctrl-C ends the search, and what was found so far is printed.
    """
    import asyncio

    from mappers.sdk.errors import DeviceError

    part = needs("kubetwin.mapper_discover", protocol)
    driver = needs("mappers.sdk.options", protocol).find_driver(protocol)
    found: list[object] = []
    problem = ""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(output.open("x")) if output else sys.stdout
        try:
            config = part.parse_settings(driver, settings)
            asyncio.run(part.discover(driver, config, found, lambda text: click.echo(text, err=True)))
        except DeviceError as error:
            problem = error.problem
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        finally:
            if output and not found:
                output.unlink()
        stream.write(part.manifests(driver, found, namespace=namespace, node=node))
    if problem or not found:
        raise click.ClickException(problem or "nothing was found")


@mapper.command("drivers")
def drivers() -> None:
    """List the installed drivers."""
    found = needs("kubetwin.mapper_drivers", "mapper").installed()
    rows = [(d.protocol, d.distribution, d.problem or ", ".join(d.can)) for d in found]
    rows.insert(0, ("PROTOCOL", "DISTRIBUTION", "CAN"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for protocol, distribution, can in rows:
        click.echo(f"{protocol:{widths[0]}}  {distribution:{widths[1]}}  {can}".rstrip())


@mapper.command("explain", short_help="Print the keys of a driver's manifests.")
@click.argument("protocol")
def explain(protocol: str) -> None:
    """Print the keys that a driver's manifests may have, with types, ranges and defaults."""
    driver = needs("mappers.sdk.options", protocol).find_driver(protocol)
    click.echo(needs("kubetwin.reference", protocol).driver_text(driver), nl=False)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
