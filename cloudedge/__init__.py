"""The channel between cloud core and edge core: envelope, resource paths, framing, TLS, certificates.

Upstream calls its two ends CloudHub and EdgeHub; both stand on this package, and neither imports the other.
"""

from cloudedge.connection import Connection, Refusal, connect, serve
from cloudedge.errors import ChannelError, ConnectionLost, ConnectionRefused, MalformedMessage
from cloudedge.message import Message, decode, encode, new_message, reply

__all__ = [
    "ChannelError",
    "Connection",
    "ConnectionLost",
    "ConnectionRefused",
    "MalformedMessage",
    "Message",
    "Refusal",
    "connect",
    "decode",
    "encode",
    "new_message",
    "reply",
    "serve",
]
