"""`kubetwin mapper discover`: what a driver finds, as DeviceModel and Device manifests to start from."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from dmi.crd import device_to_crd, model_to_crd
from dmi.errors import ConfigError
from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, NodeName, Visitor
from mappers.sdk.driver import AnyDriver, Found
from mappers.sdk.settings import decode_settings

__all__ = ["discover", "manifests", "parse_settings"]


def parse_settings(driver: AnyDriver, texts: Iterable[str]) -> Any:
    """`key=value` texts → the driver's protocol struct.

    Raises:
        ConfigError: A text is not of that form, a key is unknown or missing, or a value is not accepted.
    """
    given: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(text, "write key=value, with the keys of spec.protocol.configData")
        given[key] = value
    config, unknown = decode_settings(given, driver.protocol_config)
    if unknown:
        raise ConfigError(unknown[0], f"is no key of {driver.protocol}; see kubetwin mapper explain {driver.protocol}")
    return driver.check_config(config)


async def discover(driver: AnyDriver, config: Any, into: list[Found], tell: Callable[[str], None]) -> None:
    """Collect what the driver finds, as it comes, so that an interrupted search keeps what it has.

    Raises:
        ConfigError: The driver cannot discover, or not with this config.
        DeviceError: Nothing answers.
    """
    search = driver.discover(config)
    try:
        async for found in search:
            into.append(found)
            what = f": {_line(found.description)}" if found.description else ""
            count = len(found.properties)
            tell(f"found {found.name}, {count} {'property' if count == 1 else 'properties'}{what}")
    finally:
        if isinstance(search, AsyncGenerator):
            await search.aclose()


def manifests(driver: AnyDriver, found: Sequence[Found], *, namespace: str, node: str) -> str:
    """YAML of the devices, and of one model for those that have the same properties."""
    models: dict[tuple[ModelProperty, ...], str] = {}
    names: set[str] = set()
    documents: list[str] = []
    for item in found:
        name = _unique(_dns_name(item.name), names)
        properties = tuple(
            ModelProperty(p.name, p.type, p.access_mode, description=p.description) for p in item.properties
        )
        shape = tuple(ModelProperty(p.name, p.type, p.access_mode) for p in item.properties)
        if shape not in models:
            models[shape] = name
            documents.append(_yaml(model_to_crd(DeviceModel(namespace, name, properties, driver.protocol))))
        declared = tuple(
            DeviceProperty(
                p.name, visitor=Visitor(driver.protocol, p.visitor), collect_cycle_ms=1000, report_to_cloud=True
            )
            for p in item.properties
        )
        device = Device(
            namespace,
            name,
            model=models[shape],
            node=NodeName(node),
            protocol=driver.protocol,
            protocol_config=item.config,
            properties=declared,
            report_state=True,
        )
        documents.append(_yaml(device_to_crd(device), comment=item.description))
    return "---\n".join(documents)


def _yaml(obj: Mapping[str, Any], comment: str = "") -> str:
    text: str = yaml.safe_dump(_trimmed(obj), sort_keys=False, allow_unicode=True)
    return f"# {_line(comment)}\n{text}" if comment else text


def _line(text: str) -> str:
    """What a device says of itself, on one line and without control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _trimmed(value: Any) -> Any:
    """Without what is empty: a manifest to be read and edited by people."""
    if isinstance(value, Mapping):
        kept = {key: _trimmed(child) for key, child in value.items()}
        return {
            key: child
            for key, child in kept.items()
            if child not in ("", None) and child != {} and child != [] and not (key == "reportCycle" and child == 0)
        }
    if isinstance(value, list):
        return [_trimmed(child) for child in value]
    return value


def _dns_name(name: str) -> str:
    """A Kubernetes name as close to the driver's as it gets."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "device"


def _unique(name: str, taken: set[str]) -> str:
    candidates = (name if index == 1 else f"{name[:58]}-{index}" for index in range(1, len(taken) + 2))
    chosen = next(c for c in candidates if c not in taken)
    taken.add(chosen)
    return chosen
