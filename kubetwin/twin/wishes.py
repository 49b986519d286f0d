"""From `PROPERTY=VALUE` to the JSON patch of a Device, checked against its model before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from dmi import ConfigError, check_desired, model_from_crd
from dmi.types import DeviceModel
from kubetwin.twin.options import did_you_mean

__all__ = ["RefusedWish", "Wish", "check_wishes", "is_index_moved", "parse_wishes", "wish_patch"]

Json = Mapping[str, Any]


class RefusedWish(Exception):
    """It cannot be wished for; the text says why and what would do."""


class Wish(Struct, frozen=True):
    property_name: str
    value: str
    """Empty: nothing is wanted any more."""

    def __str__(self) -> str:
        return f"{self.property_name}={self.value}"


def parse_wishes(pairs: Sequence[str]) -> tuple[Wish, ...]:
    """What stands behind the first `=` is the value, whatever it holds.

    Raises:
        RefusedWish: One is no pair, or a property is named twice.
    """
    wishes: dict[str, Wish] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            hint = "; write the time to wait as --wait=10s" if pair[-1:] == "s" and pair[:-1].isdigit() else ""
            raise RefusedWish(f"{pair!r} is not PROPERTY=VALUE{hint}")
        if name in wishes:
            raise RefusedWish(f"property {name!r} is set twice")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RefusedWish(f"the value for {name!r} is not UTF-8") from None
        wishes[name] = Wish(name, value)
    return tuple(wishes.values())


def check_wishes(wishes: Sequence[Wish], device: Json, model: Json | None) -> None:
    """`model`: None where it may not be read; then only the names are checked.

    Raises:
        RefusedWish: The device has no such property, or the model does not allow the value.
    """
    label = f"device {device['metadata']['name']!r}"
    names = [p.get("name", "") for p in _properties(device)]
    declared = _model(model) if model is not None else None
    for wish in wishes:
        in_model = declared.find(wish.property_name) if declared is not None else None
        if wish.property_name not in names:
            if in_model is not None:
                raise RefusedWish(
                    f"{label} does not list property {wish.property_name!r}, though its model has it: "
                    "add it to spec.properties of the Device"
                )
            hint = did_you_mean(wish.property_name, names)
            raise RefusedWish(
                f"{label} has no property {wish.property_name!r}; it has {', '.join(names) or 'none'}{hint}"
            )
        if declared is None:
            continue
        if in_model is None:
            raise RefusedWish(f"{wish}: model {declared.name!r} has no property {wish.property_name!r}")
        if problem := check_desired(wish.value, in_model, path=str(wish)):
            raise RefusedWish(problem.message)


def _model(model: Json) -> DeviceModel:
    """Only what limits values: the rest of a model may hold what only a stock edge core understands."""
    metadata = model.get("metadata") or {}
    kept = ("name", "type", "accessMode", "minimum", "maximum", "unit")
    properties = (model.get("spec") or {}).get("properties") or []
    bare = [{key: p[key] for key in kept if p.get(key) is not None} for p in properties]
    try:
        return model_from_crd({"metadata": metadata, "spec": {"properties": bare}})
    except ConfigError as error:
        raise RefusedWish(f"model {metadata.get('name')!r} cannot be read: {error}") from error


def wish_patch(wishes: Sequence[Wish], device: Json) -> list[dict[str, Any]]:
    """A JSON patch that fails, instead of writing to a neighbour, when the list was reordered or the Device is another
    one of the same name meanwhile.
    """
    index_of = {p.get("name"): (index, p) for index, p in enumerate(_properties(device))}
    patch: list[dict[str, Any]] = []
    if uid := device["metadata"].get("uid"):
        patch.append({"op": "test", "path": "/metadata/uid", "value": uid})
    for wish in wishes:
        index, property_ = index_of[wish.property_name]
        path = f"/spec/properties/{index}"
        patch.append({"op": "test", "path": f"{path}/name", "value": wish.property_name})
        if isinstance(property_.get("desired"), Mapping):  # what others keep beside the value stays
            patch.append({"op": "add", "path": f"{path}/desired/value", "value": wish.value})
        else:
            patch.append({"op": "add", "path": f"{path}/desired", "value": {"value": wish.value}})
    return patch


def is_index_moved(patch: Sequence[Json], device: Json) -> bool:
    """Whether the patch's tests fail on the Device as it is now: then it is to be made anew."""
    names = [p.get("name") for p in _properties(device)]
    for operation in patch:
        if operation["op"] == "test" and operation["path"].endswith("/name"):
            index = int(operation["path"].split("/")[3])
            if index >= len(names) or names[index] != operation["value"]:
                return True
    return False


def _properties(device: Json) -> list[Json]:
    properties = (device.get("spec") or {}).get("properties")
    return [p for p in properties if isinstance(p, Mapping)] if isinstance(properties, list) else []
