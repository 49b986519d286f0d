"""Devices by node and by model, kept beside the cache of devices."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TypeVar

from cloudcore.devicecontroller.kinds import model_key, node_name
from cloudcore.kube import Key, Object

__all__ = ["DeviceIndex"]

_K = TypeVar("_K", bound=Hashable)


class DeviceIndex:
    def __init__(self) -> None:
        self._by_node: dict[str, dict[Key, None]] = {}
        self._by_model: dict[Key, dict[Key, None]] = {}

    def change(self, key: Key, old: Object | None, new: Object | None) -> None:
        if old is not None:
            _discard(self._by_node, node_name(old), key)
            _discard(self._by_model, model_key(key, old), key)
        if new is not None:
            if node := node_name(new):
                self._by_node.setdefault(node, {})[key] = None
            if (model := model_key(key, new)) is not None:
                self._by_model.setdefault(model, {})[key] = None

    def of_node(self, node: str) -> Collection[Key]:
        """In the order in which they came."""
        return tuple(self._by_node.get(node, ()))

    def of_model(self, model: Key) -> Collection[Key]:
        return tuple(self._by_model.get(model, ()))


def _discard(index: dict[_K, dict[Key, None]], at: _K | None, key: Key) -> None:
    keys = index.get(at) if at is not None else None
    if at is not None and keys is not None:
        keys.pop(key, None)
        if not keys:
            del index[at]
