"""What both ends say of one property, and how it is shown. Pure."""

from __future__ import annotations

from typing import Final

from cloudedge.facts import PropertyFacts
from dmi import Twin
from kubetwin.why.seen import Seen

__all__ = ["of_api", "of_edge", "short", "was_reported", "why_silent"]

MAX_SHOWN: Final = 40
"""Characters of a value."""


def of_edge(seen: Seen, name: str) -> PropertyFacts | None:
    return seen.facts.properties.get(name) if seen.facts is not None else None


def of_api(seen: Seen, name: str) -> Twin | None:
    return seen.status.twins.get(name) if seen.status is not None else None


def why_silent(seen: Seen, name: str) -> str:
    """Why nothing is to be expected of a property; empty: something is."""
    if seen.device is not None and seen.model is not None and seen.model.find(name) is None:
        return "the model does not know it"
    if seen.facts is not None and not seen.facts.declared:
        return "edge core does not know the device"
    if seen.facts is not None and seen.facts.left_out and name not in seen.facts.properties:
        return "is well; left out of a long answer"
    declared = seen.device.find(name) if seen.device is not None else None
    if declared is not None and not declared.report_to_cloud and not _is_anywhere(seen, name):
        return "its reportToCloud is false: mappers keep it to themselves"
    return ""


def _is_anywhere(seen: Seen, name: str) -> bool:
    edge, api = of_edge(seen, name), of_api(seen, name)
    return (edge is not None and was_reported(edge)) or (api is not None and api != Twin(name))


def was_reported(edge: PropertyFacts) -> bool:
    return bool(edge.collected_ms or edge.value or edge.reason or edge.quality != "good")


def short(value: str) -> str:
    return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "…")
