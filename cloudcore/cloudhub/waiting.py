"""What is kept for nodes between their connections, and how one waits for this replica to own its node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from cloudcore.cloudhub.ports import Owners
from cloudedge import Message
from cloudedge.connection import Connection

__all__ = ["Leftovers", "wait_for_owner"]

MAX_NODES: Final = 1024
MAX_MESSAGES: Final = 256
"""Kept for one node; the newest ones."""
MAX_BYTES: Final = 16 * 1024 * 1024
"""Kept for all nodes; the node that has been away longest gives way."""
KEEP_S: Final = 120.0


class Leftovers:
    """By node, messages that did not go out on the connection they were put into, for the next one."""

    def __init__(self) -> None:
        self.dropped = 0
        self._kept: dict[str, tuple[float, list[Message]]] = {}
        self._bytes = 0

    def keep(self, node: str, messages: Sequence[Message]) -> None:
        if not messages:
            return
        earlier = self.take(node)
        newest = [*earlier, *messages][-MAX_MESSAGES:]
        self.dropped += len(earlier) + len(messages) - len(newest)
        self._kept[node] = (asyncio.get_running_loop().time(), newest)
        self._bytes += _size(newest)
        while len(self._kept) > MAX_NODES or self._bytes > MAX_BYTES:
            self.dropped += len(self._pop(next(iter(self._kept)))[1])

    def take(self, node: str) -> list[Message]:
        """Nothing, if the node was away for too long."""
        if node not in self._kept:
            return []
        since, messages = self._pop(node)
        if asyncio.get_running_loop().time() - since > KEEP_S:
            self.dropped += len(messages)
            return []
        return messages

    def _pop(self, node: str) -> tuple[float, list[Message]]:
        since, messages = self._kept.pop(node)
        self._bytes -= _size(messages)
        return since, messages


def _size(messages: Sequence[Message]) -> int:
    return sum(message.size for message in messages)


async def wait_for_owner(owners: Owners, connection: Connection, *, silent_s: float) -> bool:
    """Until this replica owns the node; False when the node did not wait, or said nothing for `silent_s` though it was
    listened to. What it sends meanwhile is kept, as much as the connection holds.
    """
    if not connection.is_closed and owners.acquire_now(connection.peer):
        return True
    loop = asyncio.get_running_loop()
    acquire = asyncio.create_task(owners.acquire(connection.peer), name=f"own {connection.peer}")
    closed = asyncio.create_task(connection.wait_closed(), name=f"end of {connection.peer}")
    try:
        while not connection.is_closed:
            left_s = silent_s
            if not connection.is_full:
                left_s = connection.heard_at + silent_s - loop.time()
                if left_s <= 0:
                    return False
            await asyncio.wait([acquire, closed], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if acquire.done():
                acquire.result()
                return not connection.is_closed
        return False
    finally:
        for task in (acquire, closed):
            task.cancel()
        await asyncio.wait([acquire, closed])
        if not acquire.cancelled():
            acquire.exception()  # raised above, or of no interest any more
