"""Metadata: names, labels, times and the fields every object carries.

Reference: Kubernetes documentation, "Object Names and IDs", "Labels and Selectors"; apimachinery's util/validation.
"""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from kubetwin.apiserver.items import JsonObject
from kubetwin.apiserver.kinds import Problem

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_TEXT = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so that no word comes out
_NAME_MAX, _LABEL_MAX, _ANNOTATIONS_MAX = 253, 63, 256 << 10
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue', or 'my_value', or '12345')"
)


class OwnerReference(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One owner, as clients may write it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(msgspec.Struct, omit_defaults=True, rename="camel"):
    """`metadata` as clients may write it; what it does not name is dropped."""

    name: str | None = None
    generate_name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None
    finalizers: list[str] | None = None


_KNOWN = frozenset(ObjectMeta.__struct_encode_fields__) | {"managedFields", "selfLink"}


def read_metadata(obj: JsonObject) -> tuple[JsonObject, list[str]]:
    """The object's metadata, checked for types and cut to the known fields, and the paths of what was cut.

    Raises:
        ValueError: A field has the wrong type; the text names it.
    """
    given: Any = obj.get("metadata")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise ValueError("metadata: expected an object")
    try:
        meta = msgspec.convert(given, ObjectMeta)
    except msgspec.ValidationError as exc:
        raise ValueError(_metadata_error(str(exc))) from None
    unknown = [f"metadata.{key}" for key in given if key not in _KNOWN]
    return {key: value for key, value in msgspec.to_builtins(meta).items() if value not in ({}, [], "")}, unknown


def _metadata_error(text: str) -> str:
    what, sep, path = text.partition(" - at `$")
    return f"metadata{path.rstrip('`')}: {what}" if sep else f"metadata: {what}"


def random_suffix() -> str:
    """Five characters for `generateName`."""
    return "".join(random.choices(_SUFFIX, k=5))  # noqa: S311 (a name, not a secret)


def now_stamp() -> str:
    """The time as `metadata` carries it: RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_metadata(meta: JsonObject, *, label_name: bool = False) -> list[Problem]:
    """What is wrong with names, labels, annotations and finalizers. `label_name`: the name may have no dots."""
    problems: list[Problem] = []
    name = meta["name"]
    rule = _DNS_LABEL if label_name else _SUBDOMAIN
    limit = _LABEL_MAX if label_name else _NAME_MAX
    if len(name) > limit:
        problems.append(
            ("metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": must be no more than {limit} bytes')
        )
    elif not rule.fullmatch(name):
        problems.append(("metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": {_SUBDOMAIN_RULE}'))
    for key, value in (meta.get("labels") or {}).items():
        problems.extend(_check_key("metadata.labels", key))
        if value and (len(value) > _LABEL_MAX or not _LABEL_TEXT.fullmatch(value)):
            problems.append(("metadata.labels", "FieldValueInvalid", f'Invalid value: "{value}": {_LABEL_RULE}'))
    annotations = meta.get("annotations") or {}
    for key in annotations:
        problems.extend(_check_key("metadata.annotations", key.lower()))
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATIONS_MAX:
        problems.append(
            ("metadata.annotations", "FieldValueTooLong", f"Too long: may not be more than {_ANNOTATIONS_MAX} bytes")
        )
    for number, finalizer in enumerate(meta.get("finalizers") or ()):
        problems.extend(_check_key(f"metadata.finalizers[{number}]", finalizer))
    for number, owner in enumerate(meta.get("ownerReferences") or ()):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner[field]:
                path = f"metadata.ownerReferences[{number}].{field}"
                problems.append((path, "FieldValueInvalid", f'Invalid value: "": {field} must not be empty'))
    return problems


def _check_key(path: str, key: str) -> list[Problem]:
    prefix, slash, name = key.rpartition("/")
    good = len(name) <= _LABEL_MAX and bool(_LABEL_TEXT.fullmatch(name))
    if slash:
        good = good and len(prefix) <= _NAME_MAX and bool(_SUBDOMAIN.fullmatch(prefix))
    if good:
        return []
    rule = "must be alphanumeric with '-', '_' or '.' inside, at most 63 long, with an optional DNS prefix and '/'"
    return [(path, "FieldValueInvalid", f'Invalid value: "{key}": {rule}')]
