"""What the server serves: kinds, their versions and columns, and the registry that finds them by path.

Built-in kinds are fixed (`builtin`); the others come and go with CustomResourceDefinitions (`crd`). Discovery, OpenAPI,
tables and routing are all made from this registry, so a kind is declared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.schema import StructuralSchema

Problem = tuple[str, str, str]  # field path, reason ("FieldValueInvalid"…), message


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    type: str = "string"  # string, integer, number, boolean, date
    description: str = ""
    format: str = ""
    priority: int = 0  # above 0: only with -o wide
    value: Callable[[JsonObject], Any] = field(default=lambda _obj: None, repr=False)


@dataclass(frozen=True, slots=True)
class Version:
    """One served shape of a kind."""

    name: str
    openapi: JsonObject  # openAPIV3Schema
    schema: StructuralSchema | None = None  # None: stored as given
    columns: tuple[Column, ...] = ()
    has_status: bool = False
    selectable: frozenset[str] = frozenset()  # field paths that fieldSelector may name besides metadata
    deprecation: str = ""  # text of the Warning header, if this version is deprecated


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type."""

    group: str
    kind: str
    plural: str
    versions: tuple[Version, ...]  # as served, the preferred one first
    storage_version: str
    namespaced: bool = True
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    builtin: bool = False
    counts_generations: bool = False  # metadata.generation moves when the spec changes
    prepare: Callable[[JsonObject, JsonObject | None], None] | None = (
        None  # (new, old): fill in what the server decides
    )
    check: Callable[[JsonObject, JsonObject | None], list[Problem]] | None = None  # (new, old): refuse

    @property
    def resource(self) -> str:
        """Name in storage and in messages: `secrets`, `devices.devices.kubeedge.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def group_version(self, version: str) -> str:
        """`apiVersion` of an object of this kind."""
        return f"{self.group}/{version}" if self.group else version

    def version(self, name: str) -> Version | None:
        """The served version of this name."""
        return next((version for version in self.versions if version.name == name), None)


class Registry:
    """The kinds served now."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._by_path: dict[tuple[str, str], Kind] = {}
        self.generation = 0  # moves on each change: caches of documents made from the registry compare it

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def by_resource(self, resource: str) -> Kind | None:
        """The kind stored under this name."""
        return self._kinds.get(resource)

    def find(self, group: str, version: str, plural: str) -> tuple[Kind, Version] | None:
        """The kind and version behind `/apis/<group>/<version>/<plural>`."""
        kind = self._by_path.get((group, plural))
        if kind is None:
            return None
        served = kind.version(version)
        return (kind, served) if served is not None else None

    def serve(self, kind: Kind) -> None:
        """Add a kind or replace it."""
        self._kinds[kind.resource] = kind
        self._by_path[kind.group, kind.plural] = kind
        self.generation += 1

    def withdraw(self, resource: str) -> None:
        """Stop serving a kind; nothing happens if it is not served."""
        kind = self._kinds.pop(resource, None)
        if kind is not None:
            del self._by_path[kind.group, kind.plural]
            self.generation += 1

    def groups(self) -> dict[str, list[str]]:
        """Served versions by group, preferred first, the core group as ""."""
        found: dict[str, list[str]] = {}
        for kind in self:
            versions = found.setdefault(kind.group, [])
            versions.extend(version.name for version in kind.versions if version.name not in versions)
        return {group: sorted(versions, key=version_priority) for group, versions in found.items()}


def version_priority(name: str) -> tuple[int, int, int, str]:
    """Sort key of API versions: v2 before v1 before v1beta2 before v1alpha1 before anything else."""
    for rank, stage in enumerate(("beta", "alpha")):
        head, sep, tail = name.partition(stage)
        if sep and head[:1] == "v" and head[1:].isdigit() and tail.isdigit():
            return rank + 1, -int(head[1:]), -int(tail), name
    if name[:1] == "v" and name[1:].isdigit():
        return 0, -int(name[1:]), 0, name
    return 3, 0, 0, name
