"""What can go wrong on the channel."""

from __future__ import annotations

__all__ = ["ChannelError", "ConnectionLost", "ConnectionRefused", "MalformedMessage"]


class ChannelError(Exception):
    """Base of everything the channel raises."""


class MalformedMessage(ChannelError):
    """A frame that is no message, or a resource that is no path. It is dropped; the connection goes on."""


class ConnectionRefused(ChannelError):
    """The other end could not be reached, or did not let us in."""


class ConnectionLost(ChannelError):
    """The connection is gone. What was not acknowledged may or may not have arrived."""
