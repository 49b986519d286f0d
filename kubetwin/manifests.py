"""Devices and models out of YAML and JSON files as people keep them: several to a file, in lists, among other kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from msgspec import Struct

from dmi.crd import API_VERSION, GROUP
from dmi.errors import ConfigError

__all__ = ["KINDS", "Finding", "Source", "read_manifests"]

KINDS: Final = ("Device", "DeviceModel")
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_VALUES: Final = 1_000_000
_OTHER_KINDS: Final = ("DeviceStatus",)
"""Of the same API group; written by programs only."""
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


class Source(Struct, frozen=True):
    """One Device or DeviceModel as it was written."""

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
        """`text` is a path, a colon and a message, or a message alone."""
        path, separator, message = text.partition(": ")
        if not separator or " " in path:
            path, message = "", text
        return Finding(self.file, self.name, path, message, level)


def read_manifests(paths: Iterable[Path]) -> tuple[list[Source], list[Finding]]:
    """The devices and models of files, and of all YAML and JSON files in folders; and what keeps others from being
    read. What else there is in the files is not ours to judge."""
    sources: list[Source] = []
    findings: list[Finding] = []
    for file in _files(paths):
        try:
            for found in _ours(str(file), _read(file)):
                if isinstance(found, Source):
                    sources.append(found)
                else:
                    findings.append(found)
        except ConfigError as error:
            findings.append(Finding(error.path, "", "", error.problem))
    return sources, findings


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        else:
            yield path


def _read(file: Path) -> list[Any]:
    """The documents of a file.

    Raises:
        ConfigError: It cannot be read, or is no YAML.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(str(file), f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        documents = list(yaml.load_all(file.read_text(), _Loader))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(str(file), f"cannot be read: {_problem(error)}") from error
    if _is_endless(documents):
        raise ConfigError(str(file), f"holds more than {MAX_VALUES} values, its aliases written out")
    return documents


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice. YAML does, too; PyYAML takes the last one and drops the others silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def _problem(error: Exception) -> str:
    match error:
        case OSError(strerror=str(text)):
            return text
        case yaml.MarkedYAMLError(problem=str(text), problem_mark=yaml.Mark(line=line, column=column)):
            return f"line {line + 1}, column {column + 1}: {text}"
    return " ".join(str(error).split())


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


def _ours(file: str, documents: Iterable[Any]) -> Iterator[Source | Finding]:
    for document in documents:
        if not isinstance(document, Mapping):
            continue
        kind, version = document.get("kind"), str(document.get("apiVersion", ""))
        if kind == "List" and isinstance(document.get("items"), list):
            yield from _ours(file, document["items"])
        elif version.startswith(f"{GROUP}/") and kind not in (*KINDS, *_OTHER_KINDS):
            yield Finding(file, "", "kind", f"{kind!r} is no kind of {GROUP}; there are {' and '.join(KINDS)}")
        elif kind in KINDS and version != API_VERSION:
            ours = version.startswith(f"{GROUP}/")
            problem = (
                f"{version!r} is not served; write {API_VERSION}" if ours else f"is not {API_VERSION}: not checked"
            )
            yield Finding(file, "", "apiVersion", problem, "error" if ours else "warning")
        elif kind in KINDS:
            metadata = document.get("metadata")
            if isinstance(metadata, Mapping):  # kubectl fills in the namespace, too
                namespace = metadata.get("namespace") or "default"
                document = {**document, "metadata": {**metadata, "namespace": namespace}}
            yield Source(file, document)
