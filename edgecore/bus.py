"""What edge core's modules say to each other, and the in-process bus that carries it.

A module publishes and subscribes by type; only `app` knows who is there. Publishing awaits every subscriber in turn, so
order is kept, a slow subscriber slows its publisher, and nothing piles up in between. A subscriber that must not hold
its publisher keeps a bounded queue or a set of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from msgspec import Struct

from cloudedge import Message
from dmi import DeviceId, Twin

__all__ = [
    "Bus",
    "CertificateRenewed",
    "CloudConnected",
    "CloudLink",
    "CloudLost",
    "Confirmed",
    "MqttIn",
    "MqttOut",
    "ObjectChange",
    "ObjectMessage",
    "ObjectsChanged",
    "Reply",
    "StateShown",
    "TwinMessage",
    "TwinsGone",
    "TwinsReported",
    "Upstream",
    "UpstreamKept",
    "UserMessage",
]


class CloudConnected(Struct, frozen=True):
    """The channel is up and the first keepalive is sent. Whoever owes the cloud something sends it now."""

    url: str
    most_bytes: int = 0
    """The cloud takes no larger message, as it said when one came; 0: it did not say."""


class CloudLost(Struct, frozen=True):
    """The channel is gone, or was changed for another. What was not confirmed may or may not have arrived."""


class CertificateRenewed(Struct, frozen=True):
    """The node's certificate and key are others now, and in their files. Whoever has a connection with the old ones
    makes a new one first (the cloud takes the newest of a node for the one that counts), and lets the old one go when
    nothing is in flight on it; whoever has none dials at once. Returns when that is noted, not when it is done.
    """


class CloudLink(Struct, frozen=True):
    """How the channel is at this moment; asked, not told."""

    url: str
    """The address that is in use; without a connection all there are, with commas between."""
    connected: bool = False
    since_ms: int = 0
    """Since when it is up, or is not: epoch milliseconds."""
    trouble: str = ""
    """Why it is not, and what to do; empty while it is, or before the first try ended."""


class ObjectMessage(Struct, frozen=True):
    """From the cloud, unasked: a Kubernetes object to store (group `resource`, no parent)."""

    message: Message


class TwinMessage(Struct, frozen=True):
    """From the cloud, unasked: about membership (group `twin`, no parent)."""

    message: Message


class UserMessage(Struct, frozen=True):
    """From the cloud's router, for local apps (group `user`, no parent)."""

    message: Message


class Reply(Struct, frozen=True):
    """The cloud's answer to a request of this edge core (group `resource`, with a parent): `cloudedge.replies` says
    what it means. It may come late, twice, or for a request of before a restart; EdgeHub acknowledges it in any case,
    after every subscriber has taken it.
    """

    message: Message


class Confirmed(Struct, frozen=True):
    """The cloud has what message `message_id` carried (group `twin`, with a parent)."""

    message_id: str


class Upstream(Struct, frozen=True):
    """For the cloud. Publishing it waits while the channel is busy. One that is larger than what the cloud takes
    (`CloudConnected.most_bytes`) is left out.

    Raises:
        ConnectionLost: There is no channel, or it went away; nothing is kept.
    """

    message: Message


class UpstreamKept(Struct, frozen=True):
    """For the cloud, and not to be lost: returns when it is stored, and is sent in order once there is a channel, again
    under the same id until it has arrived. A kill does not lose it, a power cut only what is less than a second old.
    Where more waits than may, the oldest is dropped.

    Raises:
        StoreError: It cannot be stored, or is larger than all that is kept may be.
    """

    message: Message
    key: str = ""
    """Of several that wait under one key only the newest is sent, after all that came before it; empty: each is, in
    order."""


class ObjectChange(Struct, frozen=True):
    """A stored object after a change. `kind` is the lower-case type in resource paths."""

    kind: str
    namespace: str
    name: str
    body: bytes | None
    """The object as JSON; None: deleted."""
    replaced: bool = False
    """It is another object of the same name than before (the uid differs)."""


class ObjectsChanged(Struct, frozen=True):
    """Committed changes, in order."""

    changes: tuple[ObjectChange, ...]


class MqttIn(Struct, frozen=True):
    """A local app published on one of the device twin's topics. Published, it is dealt with: stored and answered."""

    topic: str
    payload: bytes


class MqttOut(Struct, frozen=True):
    """For local apps; only told, never awaited: without a broker it goes nowhere."""

    topic: str
    payload: bytes
    latest: bool = False
    """Of several that wait under one topic only the newest counts (deltas: they say all), while an answer to an app
    must not be left out for a later one."""


class TwinsReported(Struct, frozen=True):
    """Committed: these properties of a device have new reported values, qualities or times, or new desired values. Only
    told, never awaited.
    """

    device: DeviceId
    twins: tuple[Twin, ...]
    """Those that changed, as they are now."""


class TwinsGone(Struct, frozen=True):
    """Committed: these properties of a device have no value any more. Only told."""

    device: DeviceId
    names: tuple[str, ...]


class StateShown(Struct, frozen=True):
    """Committed: what is shown of a device's state, perhaps as before. Only told."""

    device: DeviceId
    since_ms: int
    """Another one: it is another state."""


_Event = TypeVar("_Event", bound=Struct)
_Handler = Callable[[Any], Awaitable[None]]


class Bus:
    def __init__(self) -> None:
        self._handlers: dict[type[Struct], list[_Handler]] = {}
        self._listeners: dict[type[Struct], list[Callable[[Any], None]]] = {}

    def subscribe(self, type_: type[_Event], handler: Callable[[_Event], Awaitable[None]]) -> None:
        self._handlers.setdefault(type_, []).append(handler)

    async def publish(self, event: Struct) -> None:
        """Returns when every subscriber has taken it; what a subscriber raises comes out here."""
        for handler in self._handlers.get(type(event), ()):
            await handler(event)

    def listen(self, type_: type[_Event], listener: Callable[[_Event], None]) -> None:
        """For what is told: the listener neither waits nor fails."""
        self._listeners.setdefault(type_, []).append(listener)

    def is_heard(self, type_: type[Struct]) -> bool:
        """Whether anybody listens; what nobody hears need not be made."""
        return type_ in self._listeners

    def tell(self, event: Struct) -> None:
        """From a place that cannot wait, such as right after a commit."""
        for listener in self._listeners.get(type(event), ()):
            listener(event)
