"""From API objects to the lines of the screen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from dmi.twins import Desired, Reported

__all__ = ["DeviceRow", "TwinRow", "age_text", "device_rows", "twin_rows"]

Json = Mapping[str, Any]


class TwinRow(Struct, frozen=True):
    device: str
    property_name: str
    value: str
    unit: str
    desired: str
    write: str
    """Write state of the desired value, or empty."""
    age_s: float | None
    """Since the value was collected; None: never."""
    quality: str
    reason: str


class DeviceRow(Struct, frozen=True):
    device: str
    state: str
    reason: str


def twin_rows(
    devices: Iterable[Json], models: Iterable[Json], statuses: Iterable[Json], *, now_ms: int
) -> list[TwinRow]:
    """One line per declared property, in the order of the manifest, whether or not anything was reported yet."""
    units = {
        (*_key(model), p["name"]): p.get("unit", "") for model in models for p in model["spec"].get("properties", ())
    }
    reported = {
        (*_key(status), twin["propertyName"]): twin
        for status in statuses
        for twin in status.get("status", {}).get("twins", ())
    }
    rows: list[TwinRow] = []
    for device in sorted(devices, key=_key):
        namespace, name = _key(device)
        model = device["spec"].get("deviceModelRef", {}).get("name", "")
        for property_ in device["spec"].get("properties", ()):
            twin = reported.get((namespace, name, property_["name"]), {})
            seen, wanted = _reported(twin), _desired(twin)
            declared = property_.get("desired", {}).get("value", "")
            rows.append(
                TwinRow(
                    device=f"{namespace}/{name}",
                    property_name=property_["name"],
                    value=seen.value,
                    unit=units.get((namespace, model, property_["name"]), ""),
                    desired=declared,
                    write=(wanted.write if wanted.value == declared else "pending") if declared else "",
                    age_s=max(0.0, (now_ms - seen.collected_ms) / 1000) if seen.collected_ms else None,
                    quality=seen.quality if seen.value or seen.collected_ms or seen.quality != "good" else "",
                    reason=seen.reason or wanted.reason,
                )
            )
    return rows


def device_rows(statuses: Iterable[Json]) -> list[DeviceRow]:
    return [
        DeviceRow(
            device="/".join(_key(status)),
            state=status.get("status", {}).get("state", ""),
            reason=status.get("status", {}).get("extensions", {}).get("reason", ""),
        )
        for status in sorted(statuses, key=_key)
    ]


def age_text(age_s: float | None) -> str:
    """Short, as kubectl's: 0.4s, 12s, 3m, 2h."""
    if age_s is None:
        return ""
    if age_s < 10:
        return f"{age_s:.1f}s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if age_s >= 2 * size:
            return f"{age_s / size:.0f}{unit}"
    return f"{age_s:.0f}s"


def _key(obj: Json) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _reported(twin: Json) -> Reported:
    side = twin.get("reported", {})
    return Reported.from_metadata(side.get("value", ""), side.get("metadata", {}))


def _desired(twin: Json) -> Desired:
    side = twin.get("observedDesired", {})
    return Desired.from_metadata(side.get("value", ""), side.get("metadata", {}))
