"""What a core counts, and what can be asked of it at any moment: plain data, written out by its HTTP API.

A module makes its counters when it is made and adds to them; a gauge is read when somebody looks. Label values come
from a bounded set (reasons, mapper names), never from what a peer sends.
"""

from __future__ import annotations

from collections import Counter as _Counts
from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

__all__ = ["Counter", "Gauge", "Metrics"]


class Counter:
    """Counts by label values."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.values: _Counts[tuple[str, ...]] = _Counts()

    def add(self, *label_values: str, amount: float = 1) -> None:
        self.values[label_values] += amount  # type: ignore[assignment]  # Counter counts anything that adds up

    def forget(self, label: str, value: str) -> None:
        """Drop the counts under a label value that comes no more."""
        at = self.labels.index(label)
        for key in [key for key in self.values if key[at] == value]:
            del self.values[key]

    def total(self) -> float:
        return sum(self.values.values())


class Gauge(Struct, frozen=True, eq=False):
    labels: tuple[str, ...]
    read: Callable[[], Mapping[tuple[str, ...], float]]


class _Entry(Struct, frozen=True, eq=False):
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    source: Counter | Gauge


class Metrics:
    """Names begin with `kubetwin_edgecore_` or `kubetwin_cloudcore_`; counters end in `_total`, sizes in their unit."""

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}

    def counter(self, name: str, help_: str, *labels: str) -> Counter:
        """A new counter, or the one of that name."""
        entry = self.entries.get(name)
        if entry is None:
            entry = self.entries[name] = _Entry(name, "counter", help_, Counter(labels))
        assert isinstance(entry.source, Counter), name  # noqa: S101 - a name is one thing
        return entry.source

    def forget(self, label: str, value: str) -> None:
        """In every counter that has the label: else a gateway that runs for years keeps all names there ever were."""
        for entry in self.entries.values():
            if isinstance(entry.source, Counter) and label in entry.source.labels:
                entry.source.forget(label, value)

    def gauge(self, name: str, help_: str, *labels: str, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Without labels the mapping has the one key `()`."""
        self.entries[name] = _Entry(name, "gauge", help_, Gauge(labels, read))

    def counted(self, name: str, help_: str, *labels: str, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """A counter that is kept elsewhere, read when somebody looks."""
        self.entries[name] = _Entry(name, "counter", help_, Gauge(labels, read))
