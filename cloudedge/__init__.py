"""The channel between cloud core and edge core: envelope, resource paths, framing, TLS, certificates.

Upstream calls its two ends CloudHub and EdgeHub; both stand on this package, and neither imports the other. What
needs a library of its own, the connection and the certificates, is in modules that are imported by name.
"""

from cloudedge.errors import ChannelError, ConnectionLost, ConnectionRefused, MalformedMessage
from cloudedge.message import Message, decode, encode, new_message, reply

__all__ = [
    "ChannelError",
    "ConnectionLost",
    "ConnectionRefused",
    "MalformedMessage",
    "Message",
    "decode",
    "encode",
    "new_message",
    "reply",
]
