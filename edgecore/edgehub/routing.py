"""Where a message from the cloud goes: by its group, and by whether it answers something (channel contract 5.6)."""

from __future__ import annotations

from cloudedge import Message
from edgecore.bus import Confirmed, ObjectMessage, Reply, TwinMessage, UserMessage

__all__ = ["route"]


def route(message: Message) -> ObjectMessage | TwinMessage | UserMessage | Confirmed | Reply | None:
    """The event that carries it on; None for what no module here takes."""
    parent = message.header.parent_msg_id
    match message.route.group:
        case "resource" | "func":
            return Reply(message) if parent else ObjectMessage(message)
        case "twin":
            return Confirmed(parent) if parent else TwinMessage(message)
        case "user":
            # With a parent it answers an upload; of the router's two, EventBus is the one that is here.
            return UserMessage(message) if not parent and message.route.source == "router_eventbus" else None
        case "":
            # Upstream's errors may come without source and group (channel contract 1.1).
            return Reply(message) if parent and message.route.operation == "error" else None
    return None
