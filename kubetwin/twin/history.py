"""`kubectl twin history`: recent values of a device, from its node. Pure but for the asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kubetwin.kubectl import Kubectl
from kubetwin.twin.asking import NoAnswer, ask, new_query
from kubetwin.twin.edge import EdgeAway, edge_get, history_path
from kubetwin.twin.options import Failure, Target
from kubetwin.twin.text import NOTHING, Columns, cell, clock_text, safe

__all__ = ["History", "Point", "history_lines", "history_objects", "read_history"]


class Point(Struct, frozen=True):
    property: str
    value: str = ""
    type: str = ""
    collected: int = 0
    """Epoch milliseconds."""
    quality: str = "good"


class History(Struct, frozen=True):
    values: list[Point] = []
    """Newest first."""
    truncated: bool = False


async def read_history(
    kubectl: Kubectl, device: Target, *, property_name: str, since_s: float | None, limit: int, edge: Path | None
) -> History:
    """From edge core's socket where one is given, else through the cluster.

    Raises:
        Failure: There is no answer, or it is an error.
        KubectlError: The cluster could not be asked.
    """
    since_ms = int(time.time() * 1000 - since_s * 1000) if since_s is not None else 0
    raw: Any
    if edge is not None:
        path = history_path(device.namespace, device.name, property_name=property_name, since_ms=since_ms, limit=limit)
        try:
            raw = await asyncio.to_thread(edge_get, edge, path)
        except EdgeAway as away:
            raise Failure(safe(str(away))) from away
    else:
        await _check_property(kubectl, device, property_name)
        query = new_query(ask="history", property=property_name, since_ms=max(since_ms, 0), limit=limit)
        try:
            answer = await ask(kubectl, device, query)
        except NoAnswer as silent:
            raise Failure(f"{device.namespace}/{device.name}: {silent}") from silent
        if answer.error:
            raise Failure(safe(answer.error))
        raw = msgspec.json.decode(answer.result)
    try:
        return msgspec.convert(raw, History)
    except msgspec.ValidationError as error:
        raise Failure(f"the history that came cannot be read: {error}") from error


async def _check_property(kubectl: Kubectl, device: Target, property_name: str) -> None:
    """A wrong name is told before anybody is asked."""
    declared = await kubectl.get("devices", device.namespace, device.name)
    names = [str(p.get("name")) for p in (declared.get("spec") or {}).get("properties") or ()]
    if property_name and property_name not in names:
        raise Failure(f"device {device.name!r} has no property {property_name!r}; it has {', '.join(names) or 'none'}")


def history_lines(history: History, *, header: bool = True) -> list[str]:
    columns = Columns(("COLLECTED", "PROPERTY", "VALUE", "QUALITY"))
    rows = [
        (clock_text(p.collected) or NOTHING, cell(p.property), cell(p.value) or '""', cell(p.quality) or "good")
        for p in history.values
    ]
    return columns.lines(rows, header=header)


def history_objects(values: Sequence[Point], device: Target) -> list[Mapping[str, Any]]:
    """For programs: keys stay, and are always there."""
    return [
        {
            "namespace": device.namespace,
            "device": device.name,
            "property": p.property,
            "value": p.value,
            "type": p.type or None,
            "collected": clock_text(p.collected) or None,
            "quality": p.quality,
        }
        for p in values
    ]
