"""How a message to a node is delivered: upstream's table (channel contract 4.2), matched by path element.

Upstream looks for substrings there, and so gives a pod called `membership` no reliable delivery (contract 8.1 #4).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from cloudedge import Message
from cloudedge.resources import MEMBERSHIP

__all__ = ["Delivery", "classify", "object_type"]


class Delivery(Enum):
    ONCE = "once"
    """Sent once: whoever needs it asks again, or is brought up to date, after a reconnect."""
    KEPT = "kept"
    """Sent once; what was not sent when the connection ended goes out on the next."""
    ANSWER = "answer"
    """Again until acknowledged, a few times: the edge core may have stopped waiting for it, and upstream's never
    acknowledges it then (contract 8.1 #5)."""
    OBJECT = "object"
    """Again until acknowledged, the newest of each object."""


_CSI: Final = frozenset({"createvolume", "deletevolume", "controllerpublishvolume", "controllerunpublishvolume"})
_TASKS: Final = frozenset({"taskmanager", "nodeupgradejobcontroller"})
_ONCE_TYPES: Final = frozenset({"podlist", "serviceaccounttoken"})
_OBJECT_RESPONSES: Final = frozenset({"lease", "nodepatch", "podpatch", "podstatus", "certificatesigningrequest"})
"""Types whose answers of the EdgeController are ObjectResps, which edge cores do not acknowledge."""


def classify(message: Message) -> Delivery:
    route = message.route
    if route.group == "user" or route.source in _TASKS or route.operation in _CSI:
        return Delivery.KEPT
    if route.group != "resource":  # the edge core's metamanager acknowledges this group alone
        return Delivery.ONCE
    if _is_once(message):
        return Delivery.ONCE
    return Delivery.ANSWER if message.header.parent_msg_id else Delivery.OBJECT


def object_type(resource: str) -> str:
    """The type element of `<namespace>/<type>[/<name>]`; empty: it has none."""
    parts = resource.split("/")
    return parts[1] if 2 <= len(parts) <= 3 else ""


def _is_once(message: Message) -> bool:
    route = message.route
    if route.operation in ("applicationResponse", "error"):
        return True
    if route.operation == "response" and message.is_ok:
        return True
    parts = route.resource.split("/")
    if parts[0] == MEMBERSHIP or parts[-2:] == ["twin", "cloud_updated"] or parts == ["k8s", "ca.crt"]:
        return True
    type_ = object_type(route.resource)
    if type_ in _ONCE_TYPES:
        return True
    if route.source != "edgecontroller":
        return False
    if type_ == "node":
        return route.operation != "update"
    return type_ in _OBJECT_RESPONSES or (type_ == "pod" and route.operation == "response")
