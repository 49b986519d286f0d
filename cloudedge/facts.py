"""What edge core knows of the path of one device's values: asked over its local API, or through the cloud.

Times are epoch milliseconds of the edge's clock, 0 where something never happened.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from msgspec import Struct

__all__ = ["MAX_VALUE_CHARS", "DeviceFacts", "MapperFacts", "PropertyFacts", "RefusedReport", "spec_digest"]

MAX_VALUE_CHARS: Final = 256


class MapperFacts(Struct, frozen=True, omit_defaults=True):
    """The mapper that runs the device, or would."""

    name: str
    protocol: str
    answering: bool = False
    registered_ms: int = 0
    heard_ms: int = 0
    """It called, or answered, last."""
    away_since_ms: int = 0
    trouble: str = ""
    """Why it does not answer, and what to do; empty: it does."""
    refusal: str = ""
    """Why it does not take the device."""
    handed: str = ""
    """`current`: it has the declaration as it is; `pending`: it is to get a newer one, or may have it; empty: no."""


class PropertyFacts(Struct, frozen=True, omit_defaults=True):
    collected_ms: int = 0
    """0: never read."""
    quality: str = "good"
    reason: str = ""
    value: str = ""
    """The last one read, cut at `MAX_VALUE_CHARS`."""
    desired: str = ""
    """What the mapper was told last, as far as it said; cut likewise."""
    write: str = ""
    """What became of it: `pending`, `applied`, `failed`, or empty where the mapper does not say."""
    write_reason: str = ""
    unsent: bool = False
    """The cloud has not confirmed the newest of it."""


class RefusedReport(Struct, frozen=True, omit_defaults=True):
    """Something of the device that edge core did not take."""

    what: str
    """A property's name, `state`, a topic; or `twins` of a device that was not here."""
    reason: str
    count: int = 1
    at_ms: int = 0


class DeviceFacts(Struct, frozen=True, omit_defaults=True):
    node: str
    device: str
    now_ms: int
    declared: bool = False
    """The Device object is here."""
    declared_version: str = ""
    """Its resourceVersion."""
    spec_digest: str = ""
    """Of the Device's spec as it is here (`spec_digest`)."""
    model_digest: str = ""
    """Of its DeviceModel's."""
    problem: str = ""
    """Why it cannot be run as declared, with the path in the YAML."""
    protocol: str = ""
    model: str = ""
    store_trouble: str = ""
    """Why nothing is written to disk; empty: it is."""
    store_trouble_since_ms: int = 0
    cloud_url: str = ""
    cloud_connected: bool = False
    cloud_since_ms: int = 0
    """Since when it is connected, or is not."""
    cloud_trouble: str = ""
    mapper: MapperFacts | None = None
    other_mappers: tuple[str, ...] = ()
    """Registered ones of any protocol, as `protocol/name`."""
    last_report_ms: int = 0
    """A mapper reported twins of the device."""
    last_state_ms: int = 0
    state: str = ""
    state_reason: str = ""
    state_since_ms: int = 0
    in_flight_since_ms: int = 0
    """Since then the cloud is told something, once or again, that it does not confirm."""
    refused: tuple[RefusedReport, ...] = ()
    properties: dict[str, PropertyFacts] = {}
    """All that are declared."""
    left_out: int = 0
    """Of them, for lack of room."""
    mqtt_trouble: str = ""
    """Why local apps over MQTT see nothing; empty: they do, or MQTT is off."""


def spec_digest(spec: object) -> str:
    """Tells whether two specs, decoded from JSON, ask for the same, in whatever order their keys come.

    A property with an empty `desired` asks for what one without asks for: a Device on its way to a node never leaves
    it out (device contract 1.4), and at the API most do.
    """
    return hashlib.sha256(msgspec.json.encode(_without_empty_desired(spec), order="sorted")).hexdigest()[:16]


def _without_empty_desired(spec: object) -> object:
    properties = spec.get("properties") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(properties, list):
        return spec
    return {**spec, "properties": [_wish_or_none(p) if isinstance(p, dict) else p for p in properties]}


def _wish_or_none(property_: dict[str, Any]) -> dict[str, Any]:
    desired = property_.get("desired")
    if isinstance(desired, dict) and any(desired.values()):
        return property_
    return {key: value for key, value in property_.items() if key != "desired"}
