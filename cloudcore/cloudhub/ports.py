"""What the hub asks of others, and who is told of nodes. `app` puts the parts together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cloudcore.cloudhub.session import Session
from cloudedge import Message

__all__ = ["Admission", "Everybody", "NodeHandler", "Owners", "SoleOwner"]


class NodeHandler(Protocol):
    """Who is told of nodes and gets their messages. None of these waits."""

    def node_connected(self, session: Session, /) -> None:
        """Also called when a newer connection takes over; the session before it is then forgotten without a word."""

    def node_disconnected(self, session: Session, /) -> None: ...

    def take(self, session: Session, message: Message, /) -> None:
        """A message of this handler's."""

    def acknowledged(self, session: Session, message: Message, /) -> None:
        """The node has stored the object that `message`, one sent with `Session.put_object`, carried."""


class Admission(Protocol):
    """Whether a node may come in, or stay."""

    def refusal(self, node: str, certificate: Mapping[str, Any] | None, /) -> str:
        """Why not, in words; empty: it may. `certificate` is what `tls.peer_certificate` gives."""


class Owners(Protocol):
    """Which replica of the cloud core a node is served by."""

    def acquire_now(self, node: str, /) -> bool:
        """Whether this replica owns the node already: most nodes come back to where they were."""

    async def acquire(self, node: str, /) -> None:
        """Returns when this replica owns the node: at once, or when the API server answers again."""

    def released(self, node: str, /) -> None:
        """Its last session here is over."""


class Everybody:
    """Admits every node whose certificate is of our CA."""

    def refusal(self, node: str, certificate: Mapping[str, Any] | None, /) -> str:  # noqa: ARG002 - the port's
        return ""


class SoleOwner:
    """A cloud core that is alone owns every node."""

    def acquire_now(self, node: str, /) -> bool:  # noqa: ARG002 - the port's
        return True

    async def acquire(self, node: str, /) -> None: ...

    def released(self, node: str, /) -> None: ...
