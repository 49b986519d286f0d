"""Reading requests: which object a path names, what the query asks, what the body holds."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import yaml

from kubetwin.apiserver import errors, protobuf
from kubetwin.apiserver.admission import FieldValidation, Target, WriteOptions
from kubetwin.apiserver.items import Key
from kubetwin.apiserver.kinds import Registry
from kubetwin.apiserver.objects import DeleteOptions

MAX_BODY_BYTES = 3 << 20
JSON_TYPE, YAML_TYPE = "application/json", "application/yaml"
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false", ""})


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Query parameters of list, watch and deletecollection."""

    label_selector: str
    field_selector: str
    watch: bool
    bookmarks: bool
    version: str
    version_match: str
    send_initial: bool | None
    limit: int
    next_page: str
    timeout_s: float | None


class PageToken(msgspec.Struct, frozen=True, array_like=True):
    """Where the next page of a list starts: after `key`, in the list as it was at `version`."""

    version: int
    namespace: str
    name: str

    @property
    def key(self) -> Key:
        return self.namespace, self.name


def find_target(registry: Registry, parts: list[str]) -> Target | None:
    """The target of a path below /api or /apis, or None when nothing is served there."""
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    inside = rest[0] == "namespaces" and len(rest) > 2 and not (group == "" and len(rest) == 3 and rest[2] == "status")
    if inside:
        namespace, rest = rest[1], rest[2:]
    found = registry.find(group, version, rest[0])
    if found is None or len(rest) > 3 or not all(rest):
        return None
    kind, served = found
    if inside and not kind.namespaced:
        return None
    if kind.namespaced and not namespace and len(rest) > 1:
        return None
    subresource = rest[2] if len(rest) == 3 else ""
    if subresource and not (subresource == "status" and served.has_status):
        return None
    return Target(kind, served, namespace, rest[1] if len(rest) > 1 else "", subresource)


def flag(query: Mapping[str, str], name: str) -> bool | None:
    """A boolean query parameter; None when absent."""
    text = query.get(name)
    if text is None:
        return None
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise errors.bad_request(f'{name}: "{text}" is not a boolean')


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}", text):
        raise errors.bad_request(f'{name}: "{text}" is not a number')
    return int(text)


def version_number(text: str, what: str = "resourceVersion") -> int:
    """A resourceVersion as a number; "" is 0.

    Raises:
        ApiError: 400 when it is none of ours.
    """
    if text and not re.fullmatch(r"\d{1,18}", text):
        raise errors.bad_request(f'Invalid value: "{text}": {what} must be a non-negative number')
    return int(text or 0)


def list_options(query: Mapping[str, str]) -> ListOptions:
    """Query parameters of a list or watch, checked against each other."""
    options = ListOptions(
        query.get("labelSelector", ""),
        query.get("fieldSelector", ""),
        bool(flag(query, "watch")),
        bool(flag(query, "allowWatchBookmarks")),
        query.get("resourceVersion", ""),
        query.get("resourceVersionMatch", ""),
        flag(query, "sendInitialEvents"),
        _number(query, "limit") or 0,
        query.get("continue", ""),
        _number(query, "timeoutSeconds"),
    )
    match = options.version_match
    if options.watch:
        if options.send_initial is not None and match != "NotOlderThan":
            raise errors.bad_request("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        if options.send_initial is None and match:
            raise errors.bad_request("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
        if options.send_initial and not options.bookmarks:
            raise errors.bad_request("sendInitialEvents requires allowWatchBookmarks")
    elif options.send_initial is not None:
        raise errors.bad_request("sendInitialEvents is forbidden for list")
    elif match and match not in ("Exact", "NotOlderThan"):
        raise errors.bad_request(f'resourceVersionMatch: "{match}": supported values: "Exact", "NotOlderThan"')
    elif match and (not options.version or options.next_page):
        raise errors.bad_request(
            "resourceVersionMatch is forbidden unless resourceVersion is provided, and with continue"
        )
    elif match == "Exact" and options.version == "0":
        raise errors.bad_request('resourceVersionMatch "Exact" is forbidden for resourceVersion "0"')
    return options


def write_options(query: Mapping[str, str]) -> WriteOptions:
    """Query parameters of a write."""
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise errors.bad_request(
            f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"'
        )
    dry_run = query.get("dryRun", "")
    if dry_run not in ("", "All"):
        raise errors.bad_request(f'dryRun: Unsupported value: "{dry_run}": supported values: "All"')
    return WriteOptions(cast(FieldValidation, validation), dry_run == "All")


def page_token(text: str) -> PageToken:
    """Decode a `continue` parameter."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=PageToken)
    except (binascii.Error, ValueError):
        raise errors.bad_request("continue key is not valid") from None


def page_text(token: PageToken) -> str:
    """Encode a `continue` value."""
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def media_type(header: str) -> str:
    """The media type of a Content-Type header; JSON when there is none."""
    return header.partition(";")[0].strip().lower() or JSON_TYPE


def read_body(content_type: str, body: bytes) -> Any:
    """The tree in a JSON, YAML or protobuf body.

    Raises:
        ApiError: 415 for other formats, 400 for what does not parse.
    """
    media = media_type(content_type)
    if media == YAML_TYPE:
        return read_yaml(body)
    if media == protobuf.MEDIA_TYPE:
        try:
            return protobuf.read_protobuf(body)
        except (protobuf.ProtobufError, UnicodeDecodeError) as exc:
            raise errors.unsupported_media_type(f"{media}: {exc}", (JSON_TYPE, YAML_TYPE)) from None
    if media != JSON_TYPE:
        raise errors.unsupported_media_type(media, (JSON_TYPE, YAML_TYPE))
    return read_json(body)


def read_json(body: bytes) -> Any:
    """The tree in a JSON body."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise errors.bad_request(f"the object provided is unrecognized: {exc}") from None
    except RecursionError:
        raise errors.bad_request("the object provided is nested too deeply") from None


class _Loader(yaml.CSafeLoader):
    """Plain YAML: times stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(body: bytes) -> Any:
    """The tree in a YAML body. Aliases are refused: a few lines of them can stand for gigabytes."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(body, Loader=yaml.CSafeLoader)):
            raise errors.bad_request("YAML aliases are not accepted")
        return _as_json(yaml.load(body, Loader=_Loader))  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError) as exc:
        raise errors.bad_request(f"error converting YAML to JSON: {exc}") from None
    except RecursionError:
        raise errors.bad_request("the object provided is nested too deeply") from None


def _as_json(tree: Any) -> Any:
    """What YAML has and JSON has not: keys that are no text become text, sets and binaries are refused."""
    match tree:
        case dict():
            return {_key_text(key): _as_json(value) for key, value in tree.items()}
        case list():
            return [_as_json(value) for value in tree]
        case None | str() | bool() | int() | float():
            return tree
    raise ValueError(f"a {type(tree).__name__} has no place in JSON")


def _key_text(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, str | int | float):
        return str(key)
    raise ValueError(f"{key!r} cannot be a key in JSON")


def delete_options(query: Mapping[str, str], content_type: str, body: bytes) -> DeleteOptions:
    """The options of a delete, from its body or, as older clients send them, from the query."""
    tree: dict[str, Any] = {}
    if body.strip():
        given = read_body(content_type, body)
        if not isinstance(given, dict):
            raise errors.bad_request("DeleteOptions must be an object")
        tree = {key: value for key, value in given.items() if value is not None}
    if query.get("propagationPolicy"):
        tree["propagationPolicy"] = query["propagationPolicy"]
    orphan = flag(query, "orphanDependents")
    if orphan is not None:
        tree["orphanDependents"] = orphan
    if query.get("dryRun"):
        tree["dryRun"] = [query["dryRun"]]
    try:
        return msgspec.convert(tree, DeleteOptions)
    except msgspec.ValidationError as exc:
        raise errors.bad_request(f"DeleteOptions cannot be read: {exc}") from None
