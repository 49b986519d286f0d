"""What can go wrong on the channel."""

from __future__ import annotations

__all__ = ["ChannelError", "ConnectionLost", "ConnectionRefused", "MalformedMessage", "without_frames"]


class ChannelError(Exception):
    """Base of everything the channel raises."""


class MalformedMessage(ChannelError):
    """A frame that is no message, or a resource that is no path. It is dropped; the connection goes on."""


class ConnectionRefused(ChannelError):
    """The other end could not be reached, or did not let us in."""


class ConnectionLost(ChannelError):
    """The connection is gone. What was not acknowledged may or may not have arrived."""


def without_frames(error: Exception) -> Exception:
    """The error of a connection that failed, without the frames it went through, and without its causes.

    A library's frames refer to their error and it to them, and so to the TLS buffers of a connection, 100 to 300 KB,
    until there is a full garbage collection: in an outage with a try every second, tens of megabytes.
    """
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None:
            chain += (one.__cause__, one.__context__, getattr(one, "os_error", None))  # the last is aiohttp's
            one.__traceback__ = one.__context__ = one.__cause__ = None
    return error
