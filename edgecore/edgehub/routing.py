"""Where a message from the cloud goes: by its group, and by whether it answers something (channel contract 5.6)."""

from __future__ import annotations

from cloudedge import Message
from edgecore.bus import Confirmed, ObjectMessage, TwinMessage, UserMessage

__all__ = ["route"]


def route(message: Message) -> ObjectMessage | TwinMessage | UserMessage | Confirmed | None:
    """The event that carries it on; None for what no module here takes."""
    parent = message.header.parent_msg_id
    match message.route.group:
        case "resource" | "func":
            # A response here would be for a caller that waits; this edge core asks for nothing in that way.
            return None if parent else ObjectMessage(message)
        case "twin":
            return Confirmed(parent) if parent else TwinMessage(message)
        case "user":
            # With a parent it answers a caller that waits; of the router's two, EventBus is the one that is here.
            return UserMessage(message) if not parent and message.route.source == "router_eventbus" else None
    return None
