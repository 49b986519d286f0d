"""What is declared of a device, and what is wrong with it that one object alone cannot show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from cloudcore.devicecontroller.kinds import desired_values, model_key, node_name, property_names
from cloudcore.kube import Key, Object
from dmi import ConfigError, Device, DeviceModel, Problem, check_device, device_from_crd, model_from_crd

__all__ = ["Declaration", "Declarations", "examine"]

MAX_PROBLEM_CHARACTERS: Final = 512
"""A message quotes what is wrong, which may be a megabyte of a model that thousands of devices have."""


class Declaration(Struct, frozen=True):
    """A Device together with its DeviceModel."""

    node: str
    properties: tuple[str, ...]
    units: Mapping[str, str] = {}
    desired: Mapping[str, str] = {}
    """Desired values by property, of those that have one."""
    problems: tuple[Problem, ...] = ()
    blocked: str = ""
    """Why the device cannot run at all, in words; empty: it can."""
    deliverable: bool = False
    """Whether device and model are such that an edge core can take them."""


def examine(key: Key, device: Object, find_model: Callable[[Key], Object | None]) -> Declaration:
    """Look at a Device and its model as they are now. Never raises: what cannot be read is a problem."""
    declared = Declaration(node=node_name(device), properties=property_names(device), desired=desired_values(device))
    problems: list[Problem] = []
    if not declared.node:
        problems.append(Problem("NoNode", "spec.nodeName: is empty: name the edge node that reaches the device"))
    try:
        value = device_from_crd(device)
    except ConfigError as error:
        problems.append(Problem("InvalidDevice", str(error)))
        return _blocked(declared, problems)
    model = _model(key, device, find_model)
    if isinstance(model, Problem):
        problems.append(model)
        return _blocked(declared, problems)
    declared = msgspec.structs.replace(
        declared, units={p.name: p.unit for p in model.properties if p.unit}, deliverable=True
    )
    if problems:
        return _blocked(declared, problems)
    return msgspec.structs.replace(declared, problems=_short((*_protocol(value, model), *check_device(value, model))))


def _blocked(declared: Declaration, problems: list[Problem]) -> Declaration:
    short = _short(problems)
    return msgspec.structs.replace(declared, problems=short, blocked=short[0].message)


def _short(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(
        problem
        if len(problem.message) <= MAX_PROBLEM_CHARACTERS
        else msgspec.structs.replace(problem, message=problem.message[: MAX_PROBLEM_CHARACTERS - 1] + "…")
        for problem in problems
    )


def _model(key: Key, device: Object, find_model: Callable[[Key], Object | None]) -> DeviceModel | Problem:
    wanted = model_key(key, device)
    if wanted is None:
        return Problem("NoModel", "spec.deviceModelRef.name: is empty: name a DeviceModel of the same namespace")
    model = find_model(wanted)
    if model is None:
        return Problem("MissingModel", f"spec.deviceModelRef.name: there is no DeviceModel {wanted}")
    try:
        return model_from_crd(model)
    except ConfigError as error:
        return Problem("InvalidModel", f"DeviceModel {wanted}: {error}")


def _protocol(device: Device, model: DeviceModel) -> list[Problem]:
    if not device.protocol:
        return [Problem("NoProtocol", "spec.protocol.protocolName: is empty, so no mapper takes the device")]
    if model.protocol and model.protocol != device.protocol:
        return [
            Problem(
                "ProtocolMismatch",
                f"spec.protocol.protocolName: {device.protocol!r} is not {model.protocol!r}, "
                f"which DeviceModel {model.id} is for",
            )
        ]
    return []


class Declarations:
    """Declarations by device, looked at once after each change."""

    def __init__(self, find_device: Callable[[Key], Object | None], find_model: Callable[[Key], Object | None]) -> None:
        self._find_device = find_device
        self._find_model = find_model
        self._known: dict[Key, Declaration] = {}

    def get(self, key: Key) -> Declaration | None:
        """None: there is no such device."""
        declared = self._known.get(key)
        if declared is None and (device := self._find_device(key)) is not None:
            declared = self._known[key] = examine(key, device, self._find_model)
        return declared

    def forget(self, key: Key) -> None:
        """The device or its model has changed."""
        self._known.pop(key, None)
