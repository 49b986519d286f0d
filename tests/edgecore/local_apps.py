"""Local apps at the place of the event bus: what they say, and all they hear, with what differs by run made equal."""

import asyncio
import json
from typing import Any

from cloudedge.message import now_ms
from edgecore.bus import Bus, MqttIn, MqttOut, StateShown, TwinsGone, TwinsReported
from tests.edgecore.peers import DEADLINE_S, NODE, Json

DEVICE = "$hw/events/device/default/boiler-1"
NODE_TOPIC = f"$hw/events/node/{NODE}/membership"
UPDATE, RESULT = f"{DEVICE}/twin/update", f"{DEVICE}/twin/update/result"
DOCUMENT, DELTA = f"{DEVICE}/twin/update/document", f"{DEVICE}/twin/update/delta"

TIME, UUID = "<time>", "<uuid>"
TYPES = {"temperature": "FLOAT", "setpoint": "INT", "label": "STRING", "big": "DOUBLE", "raw": "BYTES", "on": "BOOLEAN"}


class Apps:
    """All local apps together, at the place of the event bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.heard: list[MqttOut] = []
        self.reported: list[TwinsReported] = []
        self.gone: list[TwinsGone] = []
        self._more = asyncio.Event()
        bus.listen(MqttOut, self._hear)
        bus.listen(TwinsReported, self.reported.append)
        self.shown: list[StateShown] = []
        bus.listen(TwinsGone, self._note_gone)
        bus.listen(StateShown, self.shown.append)

    def _hear(self, event: MqttOut) -> None:
        self.heard.append(event)
        self._more.set()

    def _note_gone(self, event: TwinsGone) -> None:
        self.gone.append(event)
        self._more.set()

    async def until_gone(self, times: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.gone) < times:
                self._more.clear()
                await self._more.wait()

    async def say(self, topic: str, payload: Any) -> None:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self._bus.publish(MqttIn(topic, raw))

    async def hear(self, count: int) -> list[tuple[str, Json]]:
        """The next ones, with what differs from run to run made equal."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.heard) < count:
                self._more.clear()
                await self._more.wait()
        taken, self.heard = self.heard[:count], self.heard[count:]
        return [(event.topic, plain(json.loads(event.payload))) for event in taken]

    async def hear_raw(self) -> MqttOut:
        async with asyncio.timeout(DEADLINE_S):
            while not self.heard:
                self._more.clear()
                await self._more.wait()
        return self.heard.pop(0)

    async def ask(self, topic: str, payload: Any, count: int = 1) -> list[tuple[str, Json]]:
        await self.say(topic, payload)
        return await self.hear(count)

    async def has_heard_all(self) -> None:
        """Whatever was still to come comes before the answer to this."""
        await self.say("$hw/events/node/x/membership/get", {"event_id": "last"})
        (topic, content) = (await self.hear(1))[0]
        assert (topic, content["event_id"]) == (f"{NODE_TOPIC}/get/result", "last")


def plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: plain(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if key == "timestamp":
        assert abs(now_ms() - value) < 60_000
        return TIME
    if key == "event_id" and len(value) == 36:
        return UUID
    if key in ("lastOnlineTime", "last_online"):
        assert value.endswith("Z")
        return TIME
    return value


def side(value: str) -> Json:
    return {"value": value, "metadata": {"timestamp": TIME}}


def twin(type_: str, *, optional: bool = True, **sides: str) -> Json:
    return {**{k: side(v) for k, v in sides.items()}, "optional": optional, "metadata": {"type": type_}}


def answer(event_id: str, **content: Any) -> Json:
    return {"event_id": event_id, "timestamp": TIME, **content}
