"""`kubetwin mapper check`: what is wrong with manifests, before a node has to find out.

Three readings of the same objects: the schema that the API server will apply, what a device's model allows, and what
the driver of its protocol takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dmi.checks import check_device, merge_model
from dmi.crd import device_from_crd, model_from_crd
from dmi.errors import ConfigError, ConversionError
from dmi.types import PIN, Config, Device, DeviceModel
from dmi.values import parse_value
from kubetwin.manifest_schema import check_metadata, check_schema, missing_library, suggestion
from kubetwin.manifests import Finding, Source, read_manifests
from mappers.sdk.declaration import Declaration, declare
from mappers.sdk.driver import AnyDriver
from mappers.sdk.keys import ReportKeys
from mappers.sdk.options import find_driver
from mappers.sdk.settings import setting_problems
from mappers.sdk.sinks.declared import read_push_method

__all__ = ["Report", "check"]

_CONFIG: Final = "spec.protocol.configData"
_VISITOR: Final = "visitors.configData"


class Report(Struct, frozen=True):
    """All that was found, in the order of the files."""

    findings: tuple[Finding, ...]
    devices: int
    models: int
    schema_skipped: str = ""
    """The library without which the API server's schema could not be applied."""

    @property
    def errors(self) -> int:
        return sum(f.level == "error" for f in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors


def check(paths: Iterable[Path]) -> Report:
    """Check YAML or JSON files, and all such files in folders."""
    sources, findings = read_manifests(paths)
    read: list[tuple[Source, Device | None, list[Finding]]] = []
    models: dict[str, DeviceModel | None] = {}
    files: dict[str, str] = {}
    for source in sources:
        if source.name in files:
            again = source.finding(f"metadata.name: is declared in {files[source.name]} already")
            read.append((source, None, [again]))
            continue
        files[source.name] = source.file
        own, device = list(check_schema(source)), None
        try:
            if source.kind == "DeviceModel":
                models[source.name] = None  # stays when it cannot be read
                models[source.name] = model_from_crd(source.content)
            else:
                device = device_from_crd(source.content)
            own += check_metadata(source)
        except ConfigError as error:
            own.append(source.finding(str(error)))
        read.append((source, device, own))
    for source, device, own in read:
        if device is not None:
            own += _check_device(source, device, models)
        findings += _uncovered(own)
    kinds = [source.kind for source in sources]
    return Report(tuple(findings), kinds.count("Device"), kinds.count("DeviceModel"), missing_library())


def _uncovered(findings: Iterable[Finding]) -> Iterator[Finding]:
    """One finding a place: where something is wrong, the other readings stumble over the same, or over what is below
    it."""
    errors: list[str] = []
    for finding in findings:
        path = finding.path
        if path and any(path == e or path.startswith((f"{e}.", f"{e}[")) for e in errors):
            continue
        if path and finding.level == "error":
            errors.append(path)
        yield finding


def _check_device(source: Source, device: Device, models: dict[str, DeviceModel | None]) -> Iterator[Finding]:
    model_name = f"model {device.model_id}"
    model = models.get(model_name)
    if model is None:
        if model_name in models:
            text = f"model {device.model_id!r} has errors: the device is checked when they are gone"
            yield source.finding(f"spec.deviceModelRef.name: {text}", "warning")
        else:
            text = f"model {device.model_id!r} is not among these files: check it together with them"
            yield source.finding(f"spec.deviceModelRef.name: {text}")
        return
    if not device.node:
        yield source.finding("spec.nodeName: is missing, so no node runs the device", "warning")
    merged = _merged(device, model)
    for problem in check_device(merged, model):
        yield source.finding(problem.message)
    yield from _check_methods(source, device)
    if not device.protocol:
        text = "is missing: no mapper runs the device, its twins are for MQTT clients alone"
        yield source.finding(f"spec.protocol.protocolName: {text}", "warning")
        return
    try:
        driver = find_driver(device.protocol)
    except ConfigError as error:
        yield source.finding(f"spec.protocol.protocolName: {error.problem}")
        return
    if model.protocol and model.protocol != device.protocol:
        text = f"the model is for {model.protocol!r}, and the device speaks {device.protocol!r}"
        yield source.finding(f"spec.protocol.protocolName: {text}", "warning")
    yield from _check_settings(source, merged, driver)
    declaration = declare(driver, merged, model)
    for text in declaration.errors():
        yield source.finding(text)
    yield from _check_desired(source, declaration, driver)
    yield from _check_push_methods(source, device)
    for text in declaration.warnings:
        yield source.finding(text, "warning")


def _merged(device: Device, model: DeviceModel) -> Device:
    """As a mapper gets it, except that properties the model does not know keep their place."""
    merged = merge_model(device, model)
    known = iter(merged.properties)
    properties = tuple(next(known) if model.find(p.name) else p for p in device.properties)
    return msgspec.structs.replace(merged, properties=properties)


def _check_methods(source: Source, device: Device) -> Iterator[Finding]:
    names = [p.name for p in device.properties]
    for i, method in enumerate(device.methods):
        for j, name in enumerate(method.property_names):
            if name not in names:
                text = f"the device has no property {name!r}{suggestion(name, names)}"
                yield source.finding(f"spec.methods[{i}].propertyNames[{j}]: {text}")


def _check_settings(source: Source, device: Device, driver: AnyDriver) -> Iterator[Finding]:
    """Every key that is wrong, where the runtime is content with the first, and those that nobody reads, which the
    runtime has to put up with."""
    config = {key: value for key, value in device.protocol_config.items() if key != PIN}
    yield from _check_keys(source, config, _CONFIG, driver, driver.protocol_config)
    for index, property_ in enumerate(device.properties):
        path = f"spec.properties[{index}].{_VISITOR}"
        yield from _check_keys(source, property_.visitor.config, path, driver, ReportKeys, driver.visitor_config)


def _check_keys(
    source: Source, config: Config, path: str, driver: AnyDriver, *structs: type[Struct]
) -> Iterator[Finding]:
    """Settings that several structs share; each takes its own."""
    for struct in structs:
        problems, unused = setting_problems(config, struct)
        for problem in problems:
            yield source.finding(f"{path}.{problem}")
        config = {key: config[key] for key in unused}
    names = [field.encode_name for struct in structs for field in msgspec.structs.fields(struct)]
    for key in config:
        meant = suggestion(key, names, otherwise=f"; `kubetwin mapper explain {driver.protocol}` lists the keys")
        yield source.finding(f"{path}.{key}: is not used by {driver.protocol}{meant}")


def _check_desired(source: Source, declaration: Declaration, driver: AnyDriver) -> Iterator[Finding]:
    """What the device's own encoding cannot hold. Whether the model allows it was looked at before."""
    for index, declared in enumerate(declaration.device.properties):
        property_ = declaration.properties.get(declared.name)
        if property_ is None or declared.desired.value == "":
            continue
        path = f"spec.properties[{index}].desired.value"
        try:
            driver.held_value(property_, parse_value(declared.desired.value, property_.model.type))
        except ConversionError as error:
            yield source.finding(f"{path}: {error}")
        except Exception as error:  # noqa: BLE001  # a driver's bug is not the end of the check
            yield source.finding(f"{path}: the driver failed on it: {error!r}")


def _check_push_methods(source: Source, device: Device) -> Iterator[Finding]:
    for index, property_ in enumerate(device.properties):
        if not property_.push_method:
            continue
        path = f"spec.properties[{index}].pushMethod"
        for text in read_push_method(property_.push_method, path, device.id, property_.name)[1]:
            # It has to be where the mapper runs, which need not be here.
            yield source.finding(text, "warning" if "needs the library" in text else "error")
