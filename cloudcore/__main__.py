"""The `cloudcore` command."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path

import click

from cloudcore import heap
from cloudcore.config import default_config, dump, load_config, minimal_config, without_effect
from dmi import ConfigError
from dmi.log_lines import log_to_stderr

__all__ = ["main"]

logger = logging.getLogger("cloudcore")

YOUNG_OBJECTS = 10_000
"""Made, and not yet freed, between two looks for garbage. A node that connects makes a hundred that stay."""
DEFAULT_FILE = Path("/etc/kubeedge/config/cloudcore.yaml")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_FILE,
    show_default=True,
    help="Configuration file.",
)
@click.option("--minconfig", is_flag=True, help="Print the settings most people change, and exit.")
@click.option("--defaultconfig", is_flag=True, help="Print all settings with their defaults, and exit.")
@click.option("-v", "--verbose", is_flag=True, help="Log every step.")
def main(*, file: Path, minconfig: bool, defaultconfig: bool, verbose: bool) -> None:
    """The cloud side: lets edge nodes in, and keeps devices and their twins in step with Kubernetes."""
    if minconfig or defaultconfig:
        click.echo(dump(minimal_config() if minconfig else default_config()), nl=False)
        return
    log_to_stderr(logging.DEBUG if verbose else logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not verbose:
        logging.getLogger("picows").setLevel(logging.WARNING)  # a line for every socket; CloudHub logs nodes
    sys.exit(_run(file))


def _run(file: Path) -> int:
    """The process's exit code: 0 when told to stop, 1 when the configuration cannot work."""
    try:
        config, unknown = load_config(file)
        if unknown:
            logger.warning("%s: keys not known here are left out: %s", file, ", ".join(unknown))
        if unused := without_effect(config):
            logger.warning("%s: keys that have no effect here: %s", file, ", ".join(unused))
        try:
            from cloudcore.app import run  # the rest is imported only to run: --minconfig answers at once
            from cloudcore.kube import KubeConfigError
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith(("cloudcore", "cloudedge", "dmi")):
                raise
            raise ConfigError("", f"{missing.name} is not installed: pip install 'kubetwin[cloud]'") from missing

        heap.set_up()
        gc.freeze()  # what is imported lives as long as the process
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        try:
            asyncio.run(run(config))
        except KubeConfigError as error:
            raise ConfigError(str(file), str(error)) from error
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    main()
