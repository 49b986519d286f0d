"""What apps send to the cloud: it waits here while the cloud is away, bounded, and goes up in order."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from cloudedge import ConnectionLost, Message, new_message
from edgecore.bus import Bus, CloudConnected, Upstream
from edgecore.eventbus.outbox import Outbox
from edgecore.metrics import Metrics

__all__ = ["Uploads"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
"""As many as upstream's channel; what follows it keeps in memory without limit."""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
RETRY_S: Final = 5.0


class Uploads:
    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._connected = asyncio.Event()
        self._dropped = metrics.counter(
            "kubetwin_edgecore_mqtt_dropped_total", "Messages that were given up.", "where", "reason"
        )
        self._outbox: Outbox[Message] = Outbox(
            max_items=MAX_WAITING,
            max_bytes=MAX_WAITING_BYTES,
            size=lambda message: len(bytes(message.content)),
            dropped=self._note_dropped,
        )
        self._dropping = False
        bus.subscribe(CloudConnected, self._note_connected)

    def __len__(self) -> int:
        return len(self._outbox)

    def put(self, topic: str, payload: bytes) -> None:
        """Never waits. The cloud takes text: bytes that are none become U+FFFD, as upstream's JSON makes them."""
        content = payload.decode(errors="replace")
        self._outbox.put(new_message(source="bus", group="user", operation="upload", resource=topic, content=content))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            slot, message = await self._outbox.get()
            self._connected.clear()
            try:
                await self._bus.publish(Upstream(message))
                self._dropping = False
            except ConnectionLost:
                self._outbox.put_back(slot, message)
                await self._until_connected()
            except BaseException:
                self._outbox.put_back(slot, message)
                raise

    async def _until_connected(self) -> None:
        try:
            async with asyncio.timeout(RETRY_S):
                await self._connected.wait()
        except TimeoutError:
            return

    async def _note_connected(self, _: CloudConnected) -> None:
        self._connected.set()

    def _note_dropped(self) -> None:
        self._dropped.add("cloud", "full")
        if not self._dropping:
            self._dropping = True
            logger.warning("MQTT: more waits for the cloud than may; the oldest messages of apps are dropped")
