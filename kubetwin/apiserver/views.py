"""How objects are shown: as they are, as a Table, or as metadata only; chosen by the Accept header.

Reference: Kubernetes API concepts, "Receiving resources as Tables", "Metadata-only fetches".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kubetwin.apiserver import errors
from kubetwin.apiserver.admission import Target
from kubetwin.apiserver.items import Event, EventType, Item, JsonObject, decode, encode, watch_frame
from kubetwin.apiserver.kinds import Column

Shape: TypeAlias = Literal["object", "table", "metadata"]
IncludeObject: TypeAlias = Literal["None", "Metadata", "Object"]
JSON = "application/json"
_META_VERSIONS = ("v1", "v1beta1")


def accepted(header: str) -> list[tuple[str, dict[str, str]]]:
    """The media types of an Accept header with their parameters, best first."""
    found: list[tuple[float, str, dict[str, str]]] = []
    for part in header.split(",") if header.strip() else ("*/*",):
        media, *rest = (piece.strip() for piece in part.split(";"))
        params = dict(piece.split("=", 1) for piece in rest if "=" in piece)
        try:
            quality = float(params.pop("q", "1"))
        except ValueError:
            quality = 0.0
        if quality > 0:
            found.append((quality, media.lower(), params))
    found.sort(key=lambda entry: -entry[0])
    return [(media, params) for _, media, params in found]


def choose_shape(header: str) -> tuple[Shape, str]:
    """The shape to answer in and the version of `meta.k8s.io` to name.

    Raises:
        ApiError: 406 when nothing the client accepts can be made (protobuf only, for example).
    """
    for media, params in accepted(header):
        if media not in (JSON, "application/*", "*/*"):
            continue
        wanted = params.get("as")
        if wanted is None:
            return "object", "v1"
        version = params.get("v", "v1")
        if params.get("g") == "meta.k8s.io" and version in _META_VERSIONS:
            if wanted == "Table":
                return "table", version
            if wanted in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return "metadata", version
    raise errors.not_acceptable((JSON,))


@dataclass(frozen=True, slots=True)
class ListMeta:
    """`metadata` of a list."""

    version: int
    next_page: str = ""
    remaining: int | None = None

    def encode(self) -> bytes:
        """As JSON."""
        meta: JsonObject = {"resourceVersion": str(self.version)}
        if self.next_page:
            meta["continue"] = self.next_page
            if self.remaining is not None:
                meta["remainingItemCount"] = self.remaining
        return encode(meta)


@dataclass(frozen=True, slots=True)
class View:
    """Shows objects of one target in one shape."""

    target: Target
    shape: Shape = "object"
    meta_version: str = "v1"
    include: IncludeObject = "Metadata"

    @property
    def is_plain(self) -> bool:
        """Whether stored bytes can be sent as they are."""
        return self.shape == "object" and self.target.version.name == self.target.kind.storage_version

    def one(self, data: bytes) -> bytes:
        """One object, from its stored JSON."""
        if self.is_plain:
            return data
        obj = self._in_version(data)
        if self.shape == "table":
            return self._table([obj], encode({"resourceVersion": obj["metadata"].get("resourceVersion", "")}))
        return encode(self._partial(obj)) if self.shape == "metadata" else encode(obj)

    def many(self, items: Sequence[Item], meta: ListMeta) -> bytes:
        """A list."""
        if self.shape == "table":
            return self._table([self._in_version(item.data) for item in items], meta.encode())
        if self.shape == "metadata":
            kind, api_version = "PartialObjectMetadataList", f"meta.k8s.io/{self.meta_version}"
        else:
            kind, api_version = self.target.kind.list_kind, self.target.api_version
        head = b'{"kind":%s,"apiVersion":%s,"metadata":%s,"items":[' % (
            encode(kind),
            encode(api_version),
            meta.encode(),
        )
        return head + b",".join([self.one(item.data) for item in items]) + b"]}\n"

    def event(self, seen: EventType, event: Event) -> bytes:
        """One line of a watch. `seen` is the event's type through the watcher's selector."""
        if seen == "DELETED" and event.type != "DELETED" and event.previous is not None:
            # It left the view: what is shown is what it was, at the version at which it left.
            obj = event.previous.decode()
            obj["metadata"]["resourceVersion"] = str(event.version)
            return watch_frame(seen, self.one(encode(obj)))
        return event.frame(seen) if self.is_plain else watch_frame(seen, self.one(event.item.data))

    def bookmark(self, version: int, *, initial_end: bool = False) -> bytes:
        """A BOOKMARK line: everything up to `version` has been told."""
        meta: JsonObject = {"resourceVersion": str(version), "creationTimestamp": None}
        if initial_end:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj: JsonObject = {"kind": self.target.kind.kind, "apiVersion": self.target.api_version, "metadata": meta}
        if self.shape == "table":
            table = self._header(encode({"resourceVersion": str(version)}))
            row = encode({"cells": [None] * len(self.target.version.columns), "object": self._partial(obj)})
            return watch_frame("BOOKMARK", table + row + b"]}")
        return watch_frame("BOOKMARK", encode(self._partial(obj) if self.shape == "metadata" else obj))

    def _in_version(self, data: bytes) -> JsonObject:
        obj = decode(data)
        obj["apiVersion"] = self.target.api_version
        return obj

    def _partial(self, obj: JsonObject) -> JsonObject:
        return {
            "kind": "PartialObjectMetadata",
            "apiVersion": f"meta.k8s.io/{self.meta_version}",
            "metadata": obj["metadata"],
        }

    def _header(self, meta: bytes) -> bytes:
        columns = [
            {"name": c.name, "type": c.type, "format": c.format, "description": c.description, "priority": c.priority}
            for c in self.target.version.columns
        ]
        head = b'{"kind":"Table","apiVersion":"meta.k8s.io/%s","metadata":%s,"columnDefinitions":%s,"rows":['
        return head % (self.meta_version.encode(), meta, encode(columns))

    def _table(self, objects: Sequence[JsonObject], meta: bytes) -> bytes:
        columns = self.target.version.columns
        rows = []
        for obj in objects:
            row: JsonObject = {"cells": [_cell(column, obj) for column in columns]}
            if self.include != "None":
                row["object"] = obj if self.include == "Object" else self._partial(obj)
            rows.append(encode(row))
        return self._header(meta) + b",".join(rows) + b"]}"


def _cell(column: Column, obj: JsonObject) -> object:
    """What a column shows of an object: nothing, where the object is not what the column expects."""
    try:
        return column.value(obj)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        return None
