"""EventBus: local apps over MQTT, on an external broker or one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecore.eventbus.eventbus import EventBus

__all__ = ["EventBus"]


def __getattr__(name: str) -> object:
    # The broker's process is of this package too, and needs nothing of the rest.
    if name == "EventBus":
        from edgecore.eventbus.eventbus import EventBus

        return EventBus
    raise AttributeError(name)
