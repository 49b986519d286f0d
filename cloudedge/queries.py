"""Questions that somebody with kubectl asks a node, and its answers: carried by DeviceStatus and by the channel.

A question is put under `status.extensions.queries.<id>` of a DeviceStatus; CloudCore passes it on and puts the answer
beside it. On the channel it is one message each way, of group `twin` down and source `twin` up, resource
`device/NS/D/query`; stock peers drop it. See docs/adr/0015.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Raw, Struct

__all__ = [
    "ANSWER_TIMEOUT_S",
    "MAX_ANSWER_BYTES",
    "NODE_AWAY",
    "NODE_SILENT",
    "Answer",
    "Query",
    "query_device",
    "query_resource",
]

ANSWER_TIMEOUT_S: Final = 5.0
"""After this a node that did not answer will not."""
MAX_ANSWER_BYTES: Final = 128 * 1024
"""Of the result as JSON: it lies in the DeviceStatus for a while. Longer histories are cut, the newest values kept."""
NODE_AWAY: Final = "NodeNotConnected"
"""`Answer.reason`: CloudHub has no connection of the node."""
NODE_SILENT: Final = "NodeSilent"
"""`Answer.reason`: it has one, of an edge core that knows questions, and nothing comes back."""


class Query(Struct, frozen=True, omit_defaults=True):
    """`path`: a `DeviceFacts`. `history`: `{"values": [{"property", "value", "type", "collected", "quality"}...],
    "truncated": bool}`, newest first, `collected` in epoch ms."""

    id: str
    ask: Literal["path", "history"]
    property: str = ""
    """Empty: all."""
    since_ms: int = 0
    limit: int = 100
    asked_ms: int = 0


class Answer(Struct, frozen=True, omit_defaults=True):
    id: str
    result: Raw = Raw(b"null")
    error: str = ""
    """In words, when there is no result."""
    reason: str = ""
    """The error in one word for programs, where CloudCore knows one."""
    answered_ms: int = 0


def query_resource(namespace: str, name: str) -> str:
    return f"device/{namespace}/{name}/query"


def query_device(resource: str) -> tuple[str, str] | None:
    """Namespace and name; None for a resource that is something else."""
    match resource.split("/"):
        case ["device", namespace, name, "query"] if namespace and name:
            return namespace, name
    return None
