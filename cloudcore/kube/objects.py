"""Kubernetes objects as plain JSON dictionaries, and the few things every user of them asks."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Struct

from cloudcore.kube.errors import Invalid

__all__ = [
    "Key",
    "Kind",
    "Object",
    "identity",
    "key_of",
    "label",
    "metadata_of",
    "resource_version",
    "spec_of",
    "version_number",
]

Object = dict[str, Any]
"""A decoded object. Shared by everybody who reads a cache, so nobody changes one."""


class Key(NamedTuple):
    """Which object of a kind."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Kind(Struct, frozen=True):
    """One namespaced kind of the API, in one version."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "") -> str:
        """URL path of an object, of a namespace's collection, or of the whole collection.

        Raises:
            Invalid: A name would lead to another place in the API.
        """
        for part in (namespace, name):
            if "/" in part or part in (".", ".."):
                raise Invalid(f"{part[:253]!r} is no name of an object of {self.plural}")
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        return "/" + "/".join(parts)


def metadata_of(obj: Object) -> Object:
    metadata = obj.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def key_of(obj: Object) -> Key:
    metadata = metadata_of(obj)
    return Key(str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))


def identity(obj: Object) -> str:
    """The UID: another one under the same name is another object."""
    return str(metadata_of(obj).get("uid") or "")


def resource_version(obj: Object) -> str:
    return str(metadata_of(obj).get("resourceVersion") or "")


def version_number(version: str) -> int:
    """A resource version for comparing: they are decimal numbers that only grow; 0 when this one is not."""
    return int(version) if version.isascii() and version.isdigit() and len(version) <= 20 else 0


def spec_of(obj: Object) -> Object:
    spec = obj.get("spec")
    return spec if isinstance(spec, dict) else {}


def label(obj: Object, name: str) -> str:
    labels = metadata_of(obj).get("labels")
    value = labels.get(name) if isinstance(labels, dict) else None
    return value if isinstance(value, str) else ""
