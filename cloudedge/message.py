"""The envelope: one message is one JSON object of header, route and content, in one WebSocket text message.

Member names, order and omissions are upstream's (`beehive/pkg/core/model/message.go`; channel contract 1.1, 1.2).
Content stays encoded until somebody asks for it, so a hop that only passes a message on does not parse an object.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final, TypeVar, overload

import msgspec
from msgspec import Raw, Struct

from cloudedge.errors import MalformedMessage

__all__ = [
    "MAX_MESSAGE_BYTES",
    "OK",
    "Header",
    "Message",
    "Route",
    "decode",
    "encode",
    "new_message",
    "now_ms",
    "reply",
]

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Router bodies reach 12 MiB and grow by a third in base64 (channel contract 2.8)."""

ENVELOPE_BYTES: Final = 1024
"""At the most, what encoding adds to a message's `size`."""
MAX_ANY_CASE_BYTES: Final = 256 * 1024
"""Looking for members in other letters takes them all apart: for 16 MiB of them that was 5 s and 500 MB."""

OK: Final = "OK"
"""Content of an acknowledgement."""

_T = TypeVar("_T")
_NULL: Final = Raw(b"null")
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The last is what nesting deeper than the interpreter's stack comes to."""


class Header(Struct, frozen=True, omit_defaults=True):
    msg_id: str
    parent_msg_id: str = ""
    """Id of the message this one answers; not empty means response."""
    timestamp: int = 0
    """Epoch milliseconds of creation."""
    resourceversion: str = ""
    """resourceVersion of the Kubernetes object in the content; only the cloud sets and reads it."""


class Route(Struct, frozen=True, omit_defaults=True):
    source: str = ""
    group: str = ""
    operation: str = ""
    resource: str = ""


class Message(Struct, frozen=True):
    header: Header
    route: Route
    content: Raw = _NULL

    @property
    def id(self) -> str:
        return self.header.msg_id

    @property
    def size(self) -> int:
        """About how many bytes it holds: of the content and of all texts, which have the length that a peer likes."""
        header, route = self.header, self.route
        return (
            len(self.content)
            + len(header.msg_id)
            + len(header.parent_msg_id)
            + len(header.resourceversion)
            + len(route.source)
            + len(route.group)
            + len(route.operation)
            + len(route.resource)
        )

    @property
    def is_ok(self) -> bool:
        """A plain acknowledgement."""
        return bytes(self.content) == b'"OK"'

    @overload
    def data(self) -> Any: ...
    @overload
    def data(self, type_: type[_T]) -> _T: ...
    def data(self, type_: Any = Any) -> Any:
        """The content as a value. A JSON text is what it contains: upstream sends patches and some events as text.

        Raises:
            MalformedMessage: Not JSON, or not of the type asked for; says where.
        """
        raw: bytes = bytes(self.content)
        try:
            if raw.startswith(b'"') and type_ is not str:
                raw = msgspec.json.decode(raw, type=str).encode()
            return msgspec.json.decode(raw, type=type_)
        except _UNREADABLE as error:
            raise MalformedMessage(f"content of {self.describe():.512}: {error}") from error

    def describe(self) -> str:
        """For logs: what the message is, without its content."""
        return f"{self.route.operation} {self.route.resource} from {self.route.source} ({self.header.msg_id})"


_decoder: Final = msgspec.json.Decoder(Message)
_members: Final = msgspec.json.Decoder(dict[str, Raw])
_encoder: Final = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """One line of compact JSON, newline included, as Go's encoder writes it."""
    return _encoder.encode(message) + b"\n"


def decode(frame: bytes | str) -> Message:
    """One WebSocket message → envelope. Unknown members are ignored, and names of members may be in any case, as in Go;
    only in Go's own letters in a message of more than `MAX_ANY_CASE_BYTES`.

    Raises:
        MalformedMessage: Not JSON, not an envelope, or larger than `MAX_MESSAGE_BYTES`.
    """
    if len(frame) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{len(frame)} bytes are more than the {MAX_MESSAGE_BYTES} a message may have")
    try:
        try:
            message = _decoder.decode(frame)
        except msgspec.ValidationError:
            if len(frame) > MAX_ANY_CASE_BYTES:
                raise
            return _decode_any_case(frame)
        lacking = message.content is _NULL or not message.route.operation  # neither is ever left out
        return _decode_any_case(frame) if lacking and len(frame) <= MAX_ANY_CASE_BYTES else message
    except _UNREADABLE as error:
        raise MalformedMessage(f"not an envelope: {error}") from error


def _decode_any_case(frame: bytes | str) -> Message:
    """Go matches names of members in any case, so a peer may write them so; none is known to."""
    envelope = _lower(_members.decode(frame))
    whole = {name: _lower(_members.decode(envelope.get(name, b"{}"))) for name in ("header", "route")}
    return _decoder.decode(_encoder.encode({**whole, "content": envelope.get("content", _NULL)}))


def _lower(members: dict[str, Raw]) -> dict[str, Raw]:
    return {name.lower(): value for name, value in members.items()}


def new_message(
    *,
    source: str,
    group: str,
    operation: str,
    resource: str,
    content: Any = None,
    parent: str = "",
    resource_version: str = "",
) -> Message:
    """A message with a fresh id and the present time. `content`: anything msgspec encodes, or `Raw` as it is."""
    return Message(
        header=Header(
            msg_id=str(uuid.uuid4()), parent_msg_id=parent, timestamp=now_ms(), resourceversion=resource_version
        ),
        route=Route(source=source, group=group, operation=operation, resource=resource),
        content=content if isinstance(content, Raw) else Raw(_encoder.encode(content)),
    )


def reply(to: Message, *, source: str | None = None, group: str | None = None, content: Any = OK) -> Message:
    """A response: the other message's id as parent, its resource, and its source and group unless others are given."""
    return new_message(
        source=to.route.source if source is None else source,
        group=to.route.group if group is None else group,
        operation="response",
        resource=to.route.resource,
        content=content,
        parent=to.header.msg_id,
    )


def now_ms() -> int:
    """Epoch milliseconds."""
    return time.time_ns() // 1_000_000
