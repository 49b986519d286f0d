"""Looks at what a node says before it is let in, and at the paths of what it sends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloudedge import Message
from cloudedge.listening import Refusal
from cloudedge.tls import NODE_NAME

__all__ = ["MAX_ID", "node_of_upgrade", "wrong_with"]

MAX_ID: Final = 128
"""Characters of a message id; they are 36."""
_MAX_RESOURCE: Final = 1024
"""Two names of 253 characters, and what is between them."""
_MAX_TOPIC: Final = 64 * 1024
"""Of an upload's resource: MQTT topics have no more."""
_MAX_WORD: Final = 64
"""Of source, group and operation."""


def node_of_upgrade(headers: Mapping[str, str]) -> str:
    """The node's name, of a request that is right (channel contract 2.3).

    Raises:
        Refusal: What is wrong with it. Its text is for the log too: what comes from the node is quoted and short.
    """
    nodes = _all(headers, "node_id")
    node = nodes[0] if nodes else ""
    if len(nodes) > 1 or not NODE_NAME.fullmatch(node):
        raise Refusal(400, f"header node_id {', '.join(nodes)[:64]!r} is not a node name")
    uses = _all(headers, "ConnectionUse")
    if uses != ["msg"]:
        raise Refusal(400, f"header ConnectionUse is {', '.join(uses)[:64]!r}, not 'msg'")
    origins = _all(headers, "Origin")
    if origins and not _same_origin(origins, headers.get("Host", "")):
        raise Refusal(403, f"header Origin {', '.join(origins)[:64]!r} is not this host")
    return node


def wrong_with(message: Message, node: str) -> str:
    """Why a message of `node` must not be passed on, in words for counting; empty: nothing.

    A path is the node's own: it starts with a namespace, and whoever reads it puts `node/<node>/` before it. One that
    brings such a beginning along, or climbs, would be another node's to a reader that is not careful.
    """
    if not message.id or len(message.id) > MAX_ID or len(message.header.parent_msg_id) > MAX_ID:
        return "message id"
    route, resource = message.route, message.route.resource
    words = (route.source, route.group, route.operation)
    if max(map(len, words)) > _MAX_WORD or not "".join((*words, message.id)).isprintable():
        return "route"
    if route.group == "user":
        return "" if len(resource) <= _MAX_TOPIC else "resource"  # topics and URLs
    if len(resource) > _MAX_RESOURCE:  # not to be taken apart
        return "resource"
    parts = resource.split("/")
    if not resource.isprintable() or ".." in parts or "." in parts:
        return "resource"
    if parts[0] == "node" and len(parts) > 3 and parts[1] != node:
        return "resource of another node"
    return ""


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    """Every value of a header. One sent twice means one thing to a proxy and another to us."""
    getall = getattr(headers, "getall", None)
    if getall is not None:
        return list(getall(name, []))
    return [headers[name]] if name in headers else []


def _same_origin(origins: list[str], host: str) -> bool:
    _, separator, authority = origins[0].partition("://")
    return len(origins) == 1 and bool(separator) and bool(host) and authority.lower() == host.lower()
