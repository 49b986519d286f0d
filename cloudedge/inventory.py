"""What an edge core has stored of the cloud's objects, as it says when it asks for its membership.

It rides in the JSON text of `membership/detail` under the key `objects`, which an upstream cloud does not look at: the
request goes unanswered there. Ours sends what is missing, newer or to be deleted, and nothing else. An edge core that
does not say it, as upstream's, is sent everything.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from cloudedge.errors import MalformedMessage
from cloudedge.message import Message

__all__ = ["Inventory", "StoredVersion", "read_inventory"]


MAX_BYTES: Final = 12 * 1024 * 1024
"""Of a request. That is more than 50,000 objects take, and taking it in costs several times as much memory."""


MAX_OBJECTS: Final = 50_000


class StoredVersion(Struct, frozen=True, array_like=True, gc=False):
    """In JSON a list of two texts."""

    uid: str
    version: str
    """resourceVersion."""


class Inventory(Struct, frozen=True):
    objects: dict[str, StoredVersion] | None = None
    """By resource path, `<namespace|null>/<type>/<name>`; None: the node does not say."""


def read_inventory(request: Message) -> Inventory:
    """From the content of a `membership/detail` request.

    Raises:
        MalformedMessage: It is there and no inventory, or too large.
    """
    if len(request.content) > MAX_BYTES:
        raise MalformedMessage(f"inventory in {request.describe()}: more than {MAX_BYTES} bytes")
    content: Any = request.data()
    if not isinstance(content, dict):
        return Inventory()
    try:
        inventory = msgspec.convert(content, Inventory)
        if len(inventory.objects or ()) > MAX_OBJECTS:
            raise MalformedMessage(f"inventory in {request.describe()}: more than {MAX_OBJECTS} objects")
        return inventory
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"inventory in {request.describe()}: {error}") from error
