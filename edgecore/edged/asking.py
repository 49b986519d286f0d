"""Requests to the cloud that it answers: the answer is found by the id of the request."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from cloudedge import ConnectionLost, MalformedMessage, Message, new_message
from cloudedge.replies import result
from edgecore.bus import Bus, CloudLost, Reply, Upstream

__all__ = ["NoAnswer", "Questions"]

ANSWER_S: Final = 60.0
"""As upstream's `remoteQueryTimeout`. A later answer is acknowledged by EdgeHub and of no use."""


class NoAnswer(Exception):
    """Nothing came back in time; whether it was done is not known."""


class Questions:
    def __init__(self, bus: Bus, *, source: str) -> None:
        self._bus = bus
        self._source = source
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        bus.subscribe(Reply, self._take)
        bus.subscribe(CloudLost, self._give_up)

    async def ask(self, operation: str, resource: str, content: Any = None) -> dict[str, Any]:
        """The object that comes back; empty where the cloud answers no more than OK.

        Raises:
            RequestRefused: The cloud says no.
            NoAnswer: It says nothing.
            ConnectionLost: There is no channel, or it went away.
            MalformedMessage: The answer is none.
        """
        message = new_message(
            source=self._source, group="meta", operation=operation, resource=resource, content=content
        )
        answer = self._waiting[message.id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._bus.publish(Upstream(message))
                found = result(await answer)
        except TimeoutError as error:
            raise NoAnswer(f"the cloud does not answer {operation} {resource} within {ANSWER_S:g} s") from error
        finally:
            del self._waiting[message.id]
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at: the channel may have gone while the message was written
        if found is not None and not isinstance(found, dict):
            raise MalformedMessage(f"the answer to {operation} {resource} carries no object")
        return found or {}

    async def _take(self, reply: Reply) -> None:
        answer = self._waiting.get(reply.message.header.parent_msg_id)
        if answer is not None and not answer.done():
            answer.set_result(reply.message)

    async def _give_up(self, _: CloudLost) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost("the channel went away before the answer came"))
