"""What was collected of a device from both ends of its path, as it came: the material that `walk` judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cloudedge.facts import DeviceFacts

__all__ = ["ApiEnd", "CloudEnd", "EdgeEnd", "Evidence", "Json"]

Json = Mapping[str, Any]


class ApiEnd(Struct, frozen=True):
    """The three objects of a device, as the Kubernetes API has them."""

    absent: str = ""
    """Why there is no API to ask from here; empty: there is."""
    trouble: str = ""
    """Why it could not be asked."""
    server: str = ""
    device: Json | None = None
    kinds_missing: frozenset[str] = frozenset()
    """Of `devices`, `devicemodels` and `devicestatuses`: those that the cluster does not serve."""
    model: Json | None = None
    model_trouble: str = ""
    """Why it could not be read, when that is not its absence."""
    status: Json | None = None
    """Read after what the other ends said, so never older than that."""
    status_trouble: str = ""

    @property
    def seen(self) -> bool:
        return not (self.absent or self.trouble)


class CloudEnd(Struct, frozen=True):
    """What came back on a question that was put into the DeviceStatus."""

    absent: str = ""
    """Why nothing was asked."""
    silent_s: float = 0.0
    """How long nobody answered; 0: somebody did."""
    error: str = ""
    """CloudCore's word, or through it edge core's, why there are no facts."""
    reason: str = ""
    """The same in one word, as in `cloudedge.queries`; may be empty."""
    facts: DeviceFacts | None = None
    clock_ahead_s: float | None = None
    """Of the edge's clock, measured with this answer."""

    @property
    def answered(self) -> bool:
        return self.facts is not None or bool(self.error)


class EdgeEnd(Struct, frozen=True):
    """What edge core's local API said."""

    absent: str = ""
    """Why there is no edge core to ask from here; empty: there is."""
    trouble: str = ""
    """Why it could not be asked."""
    socket: str = ""
    facts: DeviceFacts | None = None
    clock_ahead_s: float | None = None


class Evidence(Struct, frozen=True):
    namespace: str
    name: str
    now_ms: int
    """By the clock here, when all was collected."""
    api: ApiEnd
    cloud: CloudEnd
    edge: EdgeEnd
    driver_errors: tuple[str, ...] = ()
    """What the driver installed here, if it is, finds wrong with the declaration."""

    @property
    def device(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def nothing_asked(self) -> bool:
        return bool(self.api.absent) and bool(self.edge.absent)
