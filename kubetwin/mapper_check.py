"""`kubetwin mapper check`: what is wrong with manifests, before a node has to find out.

Three readings of the same objects: the schema that the API server will apply, what a device's model allows, and what
the driver of its protocol takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import yaml
from msgspec import Struct

from dmi.checks import check_device, merge_model
from dmi.crd import GROUP, device_from_crd, model_from_crd
from dmi.errors import ConfigError
from dmi.types import Device, DeviceModel, ModelId
from mappers.sdk.declaration import declare
from mappers.sdk.options import find_driver
from mappers.sdk.sinks.declared import read_push_method

if TYPE_CHECKING:
    from kubetwin.apiserver.schema import StructuralSchema

__all__ = ["Finding", "Report", "check"]

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_VALUES: Final = 1_000_000
_KINDS: Final = ("Device", "DeviceModel")
_SUFFIXES: Final = (".json", ".yaml", ".yml")


class Finding(Struct, frozen=True):
    """One thing that is wrong, and where. A `warning` is odd but harmless."""

    file: str
    object: str
    """Such as `device default/boiler-1`; empty when the file itself is at fault."""
    path: str
    """In the object, as `spec.properties[2].visitors.configData.offset`."""
    message: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = ": ".join(filter(None, (self.file, self.object, self.path)))
        return f"{where}: {'warning: ' if self.level == 'warning' else ''}{self.message}"


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


class _Source(Struct, frozen=True):
    file: str
    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.content["kind"])

    @property
    def name(self) -> str:
        metadata = self.content.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        word = "model" if self.kind == "DeviceModel" else "device"
        return f"{word} {metadata.get('namespace', '?')}/{metadata.get('name', '?')}"

    def finding(self, text: str, level: Literal["error", "warning"] = "error") -> Finding:
        path, separator, message = text.partition(": ")
        if not separator or " " in path:
            path, message = "", text
        return Finding(self.file, self.name, path, message, level)


def check(paths: Iterable[Path]) -> Report:
    """Check YAML or JSON files, and all such files in folders."""
    findings: list[Finding] = []
    sources: list[_Source] = []
    for file in _files(paths):
        try:
            sources += _read(file)
        except ConfigError as error:
            findings.append(Finding(error.path, "", "", error.problem))
    report = _check_together(sources)
    return msgspec.structs.replace(report, findings=(*findings, *report.findings))


def _check_together(sources: Sequence[_Source]) -> Report:
    findings: list[Finding] = []
    schemas, missing = _schemas()
    models: dict[ModelId, DeviceModel] = {}
    devices: list[tuple[_Source, Device]] = []
    seen: dict[str, str] = {}
    for source in sources:
        schema = list(_check_schema(source, schemas[source.kind])) if schemas else []
        findings += schema
        if source.name in seen:
            findings.append(source.finding(f"metadata.name: is declared in {seen[source.name]} already"))
            continue
        seen[source.name] = source.file
        try:
            if source.kind == "DeviceModel":
                model = model_from_crd(source.content)
                models[model.id] = model
            else:
                devices.append((source, device_from_crd(source.content)))
        except ConfigError as error:
            if not any(f.path == error.path for f in schema):
                findings.append(source.finding(str(error)))
    for source, device in devices:
        findings += _check_device(source, device, models.get(device.model_id))
    return Report(tuple(dict.fromkeys(findings)), len(devices), len(models), missing)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        else:
            yield path


def _read(file: Path) -> list[_Source]:
    """The devices and models of a file; what else it holds is not ours to judge.

    Raises:
        ConfigError: It cannot be read, or is no YAML.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(str(file), f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        documents = list(yaml.safe_load_all(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(str(file), f"cannot be read: {problem}") from error
    if _is_endless(documents):
        raise ConfigError(str(file), f"holds more than {MAX_VALUES} values, its aliases written out")
    return list(_ours(file, documents))


def _is_endless(documents: list[Any]) -> bool:
    """Aliases can make a small file hold billions of values, or itself."""
    count, rest = 0, list(documents)
    while rest and count <= MAX_VALUES:
        value = rest.pop()
        count += 1
        if isinstance(value, Mapping):
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return count > MAX_VALUES


def _ours(file: Path, documents: Iterable[Any]) -> Iterator[_Source]:
    for document in documents:
        if not isinstance(document, Mapping):
            continue
        if document.get("kind") == "List" and isinstance(document.get("items"), list):
            yield from _ours(file, document["items"])
            continue
        if document.get("kind") not in _KINDS or not str(document.get("apiVersion", "")).startswith(f"{GROUP}/"):
            continue
        if document["apiVersion"] != f"{GROUP}/v1beta1":
            raise ConfigError(str(file), f"apiVersion: {document['apiVersion']} is not served; write {GROUP}/v1beta1")
        metadata = document.get("metadata")
        if isinstance(metadata, Mapping):  # kubectl fills in the namespace, too
            namespace = metadata.get("namespace") or "default"
            document = {**document, "metadata": {**metadata, "namespace": namespace}}
        yield _Source(str(file), document)


def _check_schema(source: _Source, schema: StructuralSchema) -> Iterator[Finding]:
    kept, unknown = schema.prune(dict(source.content))
    for path in unknown:
        yield source.finding(f"{path}: no such field; the API server would drop it")
    for problem in schema.validate(schema.default(kept)):
        yield Finding(source.file, source.name, problem.path, problem.message)


@cache
def _schemas() -> tuple[Mapping[str, StructuralSchema], str]:
    """Those of the CustomResourceDefinitions, by kind; on a small install none, and the name of what is missing."""
    try:
        from cloudcore import crds
        from kubetwin.apiserver.schema import compile_schema

        definitions = {d["spec"]["names"]["kind"]: d["spec"]["versions"][0]["schema"] for d in crds.load()}
        return {kind: compile_schema(definitions[kind]["openAPIV3Schema"]) for kind in _KINDS}, ""
    except ModuleNotFoundError as error:
        return {}, str(error.name)


def _check_device(source: _Source, device: Device, model: DeviceModel | None) -> Iterator[Finding]:
    if model is None:
        text = (
            f"spec.deviceModelRef.name: model {device.model_id!r} is not among these files: check it together with them"
        )
        yield source.finding(text)
        return
    merged = _merged(device, model)
    problems = check_device(merged, model)
    for problem in problems:
        yield source.finding(problem.message)
    try:
        driver = find_driver(device.protocol)
    except ConfigError as error:
        yield source.finding(f"spec.protocol.protocolName: {error.problem}")
        return
    declaration = declare(driver, merged, model)
    unknown = {p.property_name for p in problems if p.reason == "UnknownProperty"}
    for text in declaration.errors():
        if not any(_index_of(device, name) == _index_in(text) for name in unknown):
            yield source.finding(text)
    for text in _push_problems(device):
        yield source.finding(text)
    for text in declaration.warnings:
        yield source.finding(text, "warning")


def _push_problems(device: Device) -> Iterator[str]:
    for index, property_ in enumerate(device.properties):
        if property_.push_method:
            path = f"spec.properties[{index}].pushMethod"
            yield from read_push_method(property_.push_method, path, device.id, property_.name)[1]


def _merged(device: Device, model: DeviceModel) -> Device:
    """As a mapper gets it, except that properties the model does not know keep their place."""
    merged = merge_model(device, model)
    known = iter(merged.properties)
    properties = tuple(next(known) if model.find(p.name) else p for p in device.properties)
    return msgspec.structs.replace(merged, properties=properties)


def _index_of(device: Device, property_name: str) -> int:
    return next(i for i, p in enumerate(device.properties) if p.name == property_name)


def _index_in(text: str) -> int | None:
    found = re.match(r"spec\.properties\[(\d+)\]\.", text)
    return int(found[1]) if found else None
