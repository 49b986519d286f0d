"""A watch response: one JSON object a line, split and decoded as bytes arrive."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from cloudcore.kube.decoding import Decoding
from cloudcore.kube.errors import Unavailable, error_for
from cloudedge.errors import without_frames

__all__ = ["Event", "EventStream"]

MAX_EVENT_BYTES: Final = 32 * 1024 * 1024
"""etcd stores at most 1.5 MiB an object by default; what is far above it is no event."""


class Event(Struct, frozen=True):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK; an ERROR is raised instead."""

    type: str
    object: dict[str, Any]


_decoder: Final = msgspec.json.Decoder(Event)


class EventStream:
    """Use as `async with await client.watch(...) as stream`."""

    def __init__(self, response: aiohttp.ClientResponse, what: str, decoding: Decoding) -> None:
        self._response = response
        self._what = what
        self._decoding = decoding
        self._lines: list[bytes] = []
        self._rest = b""

    async def next(self) -> Event | None:
        """The next event, or None when the server has ended the watch.

        Raises:
            Gone: 410, as an ERROR event: list again.
            Unavailable: The connection broke, was silent for too long, or carried no JSON.
            KubeError: Any other ERROR event.
        """
        while True:
            while self._lines:
                line = self._lines.pop().strip()
                if line:
                    return self._event(line)
            try:
                chunk = await self._response.content.readany()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                problem = f"{self._what}: connection lost: {error or type(error).__name__}"
                raise Unavailable(problem) from without_frames(error)
            if not chunk:
                return None
            *whole, rest = chunk.split(b"\n")
            if whole:
                whole[0] = self._rest + whole[0]
                self._lines = whole[::-1]
                self._rest = rest
            else:
                self._rest += rest
            if len(self._rest) > MAX_EVENT_BYTES:
                raise Unavailable(f"{self._what}: an event is larger than {MAX_EVENT_BYTES} bytes")

    def _event(self, line: bytes) -> Event:
        try:
            event = self._decoding.decode(line, self._what, _decoder)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(f"{self._what}: not an event: {error}") from error
        if event.type == "ERROR":
            raise error_for(0, msgspec.json.encode(event.object), what=self._what)
        return event

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._response.close()  # not released: the rest of an endless answer is of no use
