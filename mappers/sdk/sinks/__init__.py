"""The data plane: sinks for `pushMethod`, fed by the one read, with samples waiting on disk while a sink is away."""

from __future__ import annotations

from mappers.sdk.sinks.plane import DataPlane
from mappers.sdk.sinks.record import SinkStats

__all__ = ["DataPlane", "SinkStats"]
