"""What went over connections, and how tasks wait for one: small enough for ten thousand of them."""

from __future__ import annotations

import asyncio

__all__ = ["Traffic", "tell", "told"]


class Traffic:
    """What went over the connections of one end, since it began."""

    __slots__ = ("broken", "malformed", "received_bytes", "sent_bytes", "too_big", "unanswered")

    def __init__(self) -> None:
        self.received_bytes = 0
        """Of payloads, as are the sent ones."""
        self.sent_bytes = 0
        self.malformed = 0
        """Messages dropped because they were not envelopes."""
        self.too_big = 0
        """Connections closed for a message over the cap."""
        self.broken = 0
        """Connections closed because they did not keep to RFC 6455."""
        self.unanswered = 0
        """Pings and control messages of peers that do not read the answers."""


async def told(waiting: list[asyncio.Future[None]]) -> None:
    """Wait for `tell`."""
    future = asyncio.get_running_loop().create_future()
    waiting.append(future)
    try:
        await future
    finally:
        waiting.remove(future)


def tell(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
