"""Importing a part of kubetwin whose libraries may not be installed."""

from __future__ import annotations

import importlib
from typing import Any

import click

__all__ = ["needs"]

_OURS = ("kubetwin", "mappers", "cloudcore", "cloudedge", "edgecore", "dmi")


def needs(module: str, extra: str) -> Any:
    """Import a module when its command runs.

    Raises:
        ClickException: A library is missing; it names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise click.ClickException(f"{error.name} is not installed: pip install 'kubetwin[{extra}]'") from error
