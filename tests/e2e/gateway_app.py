"""A local app on the gateway, that stays connected as any MQTT client does: it dials again and subscribes again."""

import json
import threading
from collections.abc import Sequence
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.e2e.harness import wait_for


class GatewayApp:
    """What it heard last, by topic. Its client has a thread of its own from entering to leaving."""

    def __init__(self, port: int, topics: Sequence[str]) -> None:
        self._port = port
        self._topics = topics
        self._heard: dict[str, bytes] = {}
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_message = self._take

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def until_subscribed(self, within_s: float) -> None:
        assert self._subscribed.wait(within_s), f"the app is not at the broker within {within_s:g} s"

    def text(self, topic: str) -> str:
        assert topic in self._heard, f"nothing was heard under {topic}"
        return self._heard[topic].decode()

    def json(self, topic: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.text(topic))
        return content

    def ask(self, topic: str, within_s: float) -> dict[str, Any]:
        """The answer to a question of upstream's, which comes under the topic's `/result`."""
        answer = f"{topic}/result"
        self._heard.pop(answer, None)
        asked = self._client.publish(topic, b'{"event_id":"ask","timestamp":0}', qos=1)
        wait_for(lambda: answer in self._heard, within_s=within_s, what=f"{answer} is heard ({asked.rc=})")
        return self.json(answer)

    def _subscribe(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe([(topic, 1) for topic in self._topics])

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        self._heard[message.topic] = bytes(message.payload)
