"""What apps send to the cloud: EdgeHub keeps it until it has arrived, through cuts and kills, and sends it in order."""

from __future__ import annotations

import logging

from cloudedge import new_message
from dmi.metrics import Metrics
from edgecore.bus import Bus, UpstreamKept
from edgecore.store import StoreError

__all__ = ["Uploads"]

logger = logging.getLogger(__name__)


class Uploads:
    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._dropped = metrics.counter(
            "kubetwin_edgecore_mqtt_dropped_total", "Messages that were given up.", "where", "reason"
        )
        self._failing = False

    async def put(self, topic: str, payload: bytes) -> None:
        """Returns when it is stored, or cannot be, which is counted. The cloud takes text: bytes that are none become
        U+FFFD, as upstream's JSON makes them.
        """
        content = payload.decode(errors="replace")
        message = new_message(source="bus", group="user", operation="upload", resource=topic, content=content)
        try:
            await self._bus.publish(UpstreamKept(message))
            self._failing = False
        except StoreError as error:
            self._dropped.add("cloud", "not stored")
            if not self._failing:
                self._failing = True
                logger.warning("MQTT: messages of apps for the cloud are dropped: %s", error)
