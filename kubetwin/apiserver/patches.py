"""The patch formats: JSON merge patch (RFC 7396), JSON patch (RFC 6902) and strategic merge patch.

All take a tree and give a new one; the old tree may be shared with the result and must not be used again.

Strategic merge is only for built-in kinds, as upstream. Which lists merge by which key is a table by field name
(`MERGE_KEYS`), not by type; it covers Pod, Node, ServiceAccount, metadata and status conditions. Lists not named there
are replaced. `$patch: delete|replace`, `$deleteFromPrimitiveList/…`, `$retainKeys` and `$setElementOrder/…` (read,
not used for ordering) are understood.
"""

from __future__ import annotations

import copy
from typing import Any

from kubetwin.apiserver.items import encode
from kubetwin.apiserver.schema.node import same

MAX_OPERATIONS = 10_000  # of one JSON patch, as kube-apiserver
MAX_COPIED_BYTES = 3 << 20  # by all copies of one JSON patch: each can double what is there

MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "port"),
    "conditions": ("type",),
    "addresses": ("type",),
    "taints": ("key",),
    "ownerReferences": ("uid",),
    "secrets": ("name",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey",),
}
MERGED_SETS = frozenset({"finalizers", "podCIDRs"})


class PatchError(ValueError):
    """The patch does not fit the object or is none."""


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902. All operations apply or the patch fails.

    Raises:
        PatchError: An operation is malformed, its path does not exist, or a `test` fails.
    """
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        raise PatchError("a JSON patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise PatchError(f"the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}")
    copied = 0
    for number, op in enumerate(operations):
        try:
            if op.get("op") == "copy":
                copied += len(encode(_get(target, _pointer(op, "from"))))
                if copied > MAX_COPIED_BYTES:
                    raise PatchError(f"operation {number} (copy): more than {MAX_COPIED_BYTES} bytes are copied")
            target = _apply(target, op)
        except (KeyError, IndexError) as exc:
            missing = exc.args[0] if isinstance(exc, KeyError) else op.get("path")
            raise PatchError(f"operation {number} ({op.get('op')}): path does not exist: {missing}") from None
    return target


def _apply(target: Any, op: dict[str, Any]) -> Any:
    name = op.get("op")
    path = _pointer(op, "path")
    match name:
        case "test":
            if not same(_get(target, path), op.get("value")):
                raise PatchError(f"testing value {op['path']} failed")
            return target
        case "remove":
            return _remove(target, path)
        case "add" | "replace":
            if "value" not in op:
                raise PatchError(f"{name} of {op['path']} has no value")
            if name == "replace":
                _get(target, path)
            return _put(target, path, op["value"], replace=name == "replace")
        case "move" | "copy":
            source = _pointer(op, "from")
            value = copy.deepcopy(_get(target, source))
            if name == "move":
                if path[: len(source)] == source and path != source:
                    raise PatchError(f"cannot move {op['from']} into itself")
                target = _remove(target, source)
            return _put(target, path, value, replace=False)
    raise PatchError(f"unknown operation {name!r}")


def _pointer(op: dict[str, Any], field: str) -> list[str]:
    text = op.get(field)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise PatchError(f"{field} must be a JSON pointer, got {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(part: str, length: int) -> int:
    if not (part.isascii() and part.isdigit()) or (len(part) > 1 and part[0] == "0") or int(part) >= length:
        raise KeyError(part)
    return int(part)


def _get(target: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(target, dict):
            target = target[part]
        elif isinstance(target, list):
            target = target[_index(part, len(target))]
        else:
            raise KeyError(part)
    return target


def _put(target: Any, path: list[str], value: Any, *, replace: bool) -> Any:
    if not path:
        return value
    parent, last = _get(target, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list) and replace:
        parent[_index(last, len(parent))] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    else:
        raise KeyError(last)
    return target


def _remove(target: Any, path: list[str]) -> Any:
    if not path:
        raise PatchError("the whole object cannot be removed")
    parent, last = _get(target, path[:-1]), path[-1]
    if isinstance(parent, dict):
        del parent[last]
    elif isinstance(parent, list):
        del parent[_index(last, len(parent))]
    else:
        raise KeyError(last)
    return target


def strategic_merge(target: Any, patch: Any) -> Any:
    """Kubernetes' strategic merge patch, see the module's docstring.

    Raises:
        PatchError: A directive has no meaning, or an element of a keyed list has no key.
    """
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise PatchError(f"unknown $patch directive {directive!r}")
    retained = patch.get("$retainKeys")
    if isinstance(retained, list):
        target = {key: value for key, value in target.items() if key in retained}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            target[field] = [item for item in target.get(field) or () if item not in (value or ())]
        elif key in ("$patch", "$retainKeys") or key.startswith("$setElementOrder/"):
            continue
        elif value is None:
            target.pop(key, None)
        elif isinstance(value, list):
            target[key] = _merge_list(key, target.get(key), value)
        else:
            target[key] = strategic_merge(target.get(key), value)
    return target


def _merge_list(field: str, old: Any, patch: list[Any]) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" and len(item) == 1 for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    have = list(old) if isinstance(old, list) else []
    if field in MERGED_SETS:
        return have + [item for item in patch if item not in have]
    keys = MERGE_KEYS.get(field)
    if keys is None or not all(isinstance(item, dict) for item in (*patch, *have)):
        return patch
    for item in patch:
        key = next((key for key in keys if key in item), None)
        if key is None:
            raise PatchError(f"map: {item} does not contain declared merge key: {keys[0]}")
        at = next((i for i, element in enumerate(have) if element.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            have = [element for element in have if element.get(key) != item[key]]
        elif at is None:
            have.append(strategic_merge({}, item))
        else:
            have[at] = strategic_merge(have[at], item)
    return have
