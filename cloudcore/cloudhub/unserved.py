"""Answers to what a stock edge core asks and this version does not serve yet: pods, nodes, leases, config maps, …"""

from __future__ import annotations

from typing import Final

from cloudedge import Message, new_message

__all__ = ["refusal", "turned_down"]

_NO_ANSWER: Final = frozenset({"event"})
"""Types that nobody waits for an answer about (channel contract 5.4)."""


def refusal(message: Message) -> Message | None:
    """Operation `error` and a text, which upstream's edge core turns into a failed call and stores nowhere.

    An answer with an API error as JSON would be stored as the ConfigMap asked for (channel contract 8.1 #14).
    None: nobody waits at the other end. An upload of a local app has nobody here who takes it: it is refused, so that
    an edge core that keeps it until it is answered can forget it; upstream's does not wait.
    """
    route = message.route
    if route.group == "user" and route.operation == "upload" and not message.header.parent_msg_id:
        return new_message(
            source="cloudhub",
            group="user",
            operation="error",
            resource=route.resource,
            parent=message.id,
            content="this cloud core has nobody who takes uploads",
        )
    parts = route.resource.split("/")
    if route.group != "meta" or (len(parts) > 1 and parts[1] in _NO_ANSWER):
        return None
    return new_message(
        source="edgecontroller",
        group="resource",
        operation="error",
        resource=route.resource,
        parent=message.id,
        content=f"this cloud core does not serve {route.operation} {route.resource}",
    )


def turned_down(message: Message, why: str, *, parent: str) -> Message:
    """Operation `error` for a message that is not passed on, whoever sent it. `parent`: its id, if that can be said.

    What was wrong with it is not sent back. Without a parent nobody waits, and it goes to no module.
    """
    group = "user" if message.route.group == "user" else "resource"
    return new_message(
        source="cloudhub" if parent else "",
        group=group if parent else "",
        operation="error",
        resource="",
        parent=parent,
        content=f"this cloud core turned it down: {why}",
    )
