"""The module: carries what the device twin, the cloud and the topic rules say to local apps, and back.

What a topic of a device twin means is the device twin's matter (`MqttIn`, `MqttOut`). Nothing here waits for a broker
except what is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from cloudedge import Message
from dmi import DeviceId, Reported, device_id
from dmi.metrics import Metrics
from edgecore.bus import Bus, MqttIn, MqttOut, ObjectsChanged, StateShown, TwinsGone, TwinsReported, UserMessage
from edgecore.config import EventBusConfig
from edgecore.eventbus.client import BrokerClient, Incoming
from edgecore.eventbus.outbox import Outgoing
from edgecore.eventbus.rules import Rules, refusal_payload
from edgecore.eventbus.settings import BOTH, BrokerTarget, external_broker, internal_broker
from edgecore.eventbus.supervisor import BrokerProcess
from edgecore.eventbus.topics import (
    TWIN_FILTERS,
    UPLOAD_FILTERS,
    destination,
    filter_problem,
    topic_problem,
)
from edgecore.eventbus.uploads import Uploads
from edgecore.store import Database, StoreError
from edgecore.store.topics import add_topic, list_topics, remove_topic, reported_values

__all__ = ["EventBus"]

logger = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
MAX_STORED_TOPICS: Final = 1000
_AT_ONCE: Final = 100
_LOGGED: Final = 100
"""Different complaints that are logged; after that they are only counted."""


class EventBus:
    """Raises:
    ConfigError: The configuration cannot work.
    """

    def __init__(
        self, config: EventBusConfig, bus: Bus, *, node: str, database: Database, metrics: Metrics | None = None
    ) -> None:
        metrics = metrics or Metrics()
        self._bus = bus
        self._node = node
        self._database = database
        self._rules = Rules(config.topic_rules)
        self._uploads = Uploads(bus, metrics)
        self._stored: tuple[str, ...] = ()
        self._logged: set[str] = set()
        self._received = metrics.counter(
            "kubetwin_edgecore_mqtt_received_total", "Messages of local apps, by who took them.", "taken_by"
        )
        self._dropped = metrics.counter(
            "kubetwin_edgecore_mqtt_dropped_total", "Messages that were given up.", "where", "reason"
        )
        self._process: BrokerProcess | None = None
        self._clients: list[BrokerClient] = []
        self._initial_due: dict[str, asyncio.Event] = {}
        self._since_ms: dict[DeviceId, int] = {}
        """Since when devices are in the state that their published values say."""
        if config.mqtt_mode <= BOTH:
            process = self._process = BrokerProcess(
                internal_broker(config, node),
                queue_size=config.mqtt_session_queue_size,
                answers=lambda: self._clients[0].is_up,
            )
            self._add_client("internal", lambda: process.target, metrics)
        if config.mqtt_mode >= BOTH:
            target = external_broker(config, node)
            self._add_client("external", lambda: target, metrics)
            if target.password and target.tls is None and not target.is_local:
                logger.warning("MQTT: the password goes to %s in the clear; use ssl://", target.url)
        metrics.gauge(
            "kubetwin_edgecore_mqtt_connected",
            "Whether edge core is connected to a broker.",
            "broker",
            read=lambda: {(client.label,): float(client.is_up) for client in self._clients},
        )
        metrics.gauge(
            "kubetwin_edgecore_mqtt_waiting",
            "Messages that wait for a broker.",
            "where",
            read=lambda: {(client.label,): len(client.outbox) for client in self._clients},
        )
        bus.subscribe(UserMessage, self._take_from_cloud)
        bus.listen(MqttOut, self._tell_apps)
        if self._rules.publishes:
            bus.listen(TwinsReported, self._publish_values)
            bus.listen(TwinsGone, self._clear_values)
            bus.listen(StateShown, self._publish_quality)
            bus.subscribe(ObjectsChanged, self._forget_devices)

    @property
    def trouble(self) -> str:
        """What is wrong with MQTT now, for people; empty: nothing."""
        process = self._process.trouble if self._process else ""
        return "; ".join(filter(None, [process, *(client.trouble for client in self._clients)]))

    @property
    def is_up(self) -> bool:
        """Whether every broker of the mode is connected."""
        return all(client.is_up for client in self._clients)

    @property
    def internal_port(self) -> int | None:
        """Where the internal broker listens now."""
        return self._process.target.port if self._process and self._process.target else None

    async def run(self) -> None:
        """Until cancelled."""
        try:
            self._stored = tuple(await self._database.run(list_topics))
        except StoreError as error:
            logger.error("MQTT: topics of the cloud's rules are not known: %s", error)
        self._subscribe_clients()
        async with asyncio.TaskGroup() as tasks:
            if self._process is not None:
                tasks.create_task(self._process.run(), name="mqtt broker")
            for client in self._clients:
                tasks.create_task(client.run(), name=f"mqtt {client.label}")
                if self._rules.publishes:
                    due = self._initial_due[client.label]
                    tasks.create_task(self._publish_initial(client, due), name=f"mqtt {client.label} initial")

    def _add_client(self, label: str, target: Callable[[], BrokerTarget | None], metrics: Metrics) -> None:
        due = self._initial_due[label] = asyncio.Event()
        self._clients.append(BrokerClient(label, target, take=self._take, connected=due.set, metrics=metrics))

    def _subscribe_clients(self) -> None:
        for client in self._clients:
            client.want((*TWIN_FILTERS, *UPLOAD_FILTERS, *self._rules.filters, *self._stored))

    # From apps

    async def _take(self, message: Incoming) -> None:
        """Raises nothing; what comes back to the broker waits in a box of its own."""
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            self._drop("too large", message.topic, f"{len(message.payload)} bytes are more than {MAX_PAYLOAD_BYTES}")
            return
        if await self._take_write(message):
            return
        match destination(message.topic, self._stored):
            case "twin":
                await self._take_twin(message)
            case "cloud":
                self._received.add("cloud")
                await self._uploads.put(message.topic, message.payload)
            case None:  # of a subscription that a session still has from before
                self._received.add("nobody")

    async def _take_twin(self, message: Incoming) -> None:
        refused = self._rules.refusal(message.topic)
        if refused is not None:
            asked, reason = refused
            self._drop("refused", message.topic, reason)
            if asked.action != "twin/cloud_updated":
                self._publish(Outgoing(asked.result(), refusal_payload(message.payload, reason)))
        elif message.retained and message.topic.endswith("/update"):
            self._drop("retained", message.topic, "a retained update would be done again at each connection")
        else:
            self._received.add("twin")
            await self._bus.publish(MqttIn(message.topic, message.payload))

    async def _take_write(self, message: Incoming) -> bool:
        """Whether it was on a rule's `write` topic."""
        try:
            write = self._rules.write(message.topic, message.payload)
        except UnicodeDecodeError as error:
            self._drop("malformed", message.topic, f"the value is no UTF-8: {error}")
            return True
        if write is None:
            return False
        if message.retained:
            self._drop("retained", message.topic, "a retained write would be done again at each connection")
            return True
        self._received.add("write")
        await self._bus.publish(MqttIn(write.topic, write.payload))
        return True

    # To apps

    def _tell_apps(self, event: MqttOut) -> None:
        if not self._rules.is_hidden(event.topic):
            self._publish(Outgoing(event.topic, event.payload), event.topic if event.latest else None)

    def _publish_values(self, event: TwinsReported) -> None:
        for twin in event.twins:
            publication = self._rules.publication(event.device, twin.property_name, twin.reported)
            if isinstance(publication, str):
                self._drop("topic", "", publication)
            elif publication is not None:
                self._publish(publication, publication.topic)

    def _clear_values(self, event: TwinsGone) -> None:
        """What a broker has retained of a value that there is no more."""
        for name in event.names:
            out = self._rules.clearance(event.device, name)
            if out is not None:
                self._publish(out, out.topic)

    def _publish_quality(self, event: StateShown) -> None:
        """In another state of the device its values are old, or are not any more."""
        device = event.device
        if self._since_ms.get(device) == event.since_ms or not self._rules.says_quality(device):
            return
        self._since_ms[device] = event.since_ms

        def then(rows: list[tuple[DeviceId, str, Reported]]) -> None:
            for client in self._clients:
                if client.outbox.is_roomy and len(rows) <= _AT_ONCE:
                    self._put_values(client, rows)
                else:
                    self._initial_due[client.label].set()

        self._database.post(lambda db: reported_values(db, device=device, limit=_AT_ONCE + 1), then=then)

    async def _forget_devices(self, event: ObjectsChanged) -> None:
        for change in event.changes:
            if change.kind == "device" and change.body is None:
                self._since_ms.pop(device_id(change.namespace, change.name), None)

    async def _publish_initial(self, client: BrokerClient, due: asyncio.Event) -> None:
        """All values that rules publish, after each connection: in the order of the commits, and as there is room."""
        while True:
            await due.wait()
            due.clear()
            after: tuple[str, str] | None = ("", "")
            while after is not None and not due.is_set():
                await client.outbox.has_room()
                after = await self._publish_page(client, after)

    async def _publish_page(self, client: BrokerClient, after: tuple[str, str]) -> tuple[str, str] | None:
        """The key to go on from; None: that was all."""
        try:
            rows = await self._database.run(
                lambda db: reported_values(db, after=after, limit=_AT_ONCE),
                # Right after the commit: what is reported later is told later, and is the newest in the box.
                then=lambda rows: self._put_values(client, rows),
            )
        except StoreError as error:
            logger.warning("MQTT: present values cannot be read: %s", error)
            return None
        return (rows[-1][0], rows[-1][1]) if len(rows) == _AT_ONCE else None

    def _put_values(self, client: BrokerClient, rows: list[tuple[DeviceId, str, Reported]]) -> None:
        for device, name, reported in rows:
            out = self._rules.publication(device, name, reported)
            if out is not None and not isinstance(out, str):
                client.outbox.put(out, out.topic)

    def _publish(self, message: Outgoing, key: str | None = None) -> None:
        for client in self._clients:
            client.outbox.put(message, key)

    # From the cloud

    async def _take_from_cloud(self, event: UserMessage) -> None:
        """Device contract 4.5. What cannot be done is logged: nobody waits for an answer."""
        message = event.message
        topic = message.route.resource
        match message.route.operation:
            case "publish":
                self._publish_for_cloud(topic, _payload(message))
            case "subscribe":
                await self._store_topic(topic)
            case "unsubscribe":
                self._stored = tuple(one for one in self._stored if one != topic)
                self._subscribe_clients()
                await self._database.run(lambda db: remove_topic(db, topic), sync=True)
            case "message":
                body = message.data()
                inner = body.get("message") if isinstance(body, dict) else None
                if isinstance(inner, dict) and isinstance(inner.get("topic"), str):
                    self._publish_for_cloud(inner["topic"], msgspec.json.encode(inner))
                else:
                    self._drop("malformed", topic, "a message of the cloud without message.topic")
            case "get_result" if topic == "auth_info":
                answer = f"$hw/events/node/{self._node}/authInfo/get/result"
                self._publish_for_cloud(answer, bytes(message.content))
            case other:
                self._drop("unknown", topic, f"the cloud asks for {other!r}, which there is not")

    def _publish_for_cloud(self, topic: str, payload: bytes) -> None:
        if problem := topic_problem(topic):
            self._drop("malformed", topic, f"the cloud cannot publish there: {problem}")
        elif len(payload) > MAX_PAYLOAD_BYTES:
            self._drop("too large", topic, f"{len(payload)} bytes are more than {MAX_PAYLOAD_BYTES}")
        else:
            self._publish(Outgoing(topic, payload))

    async def _store_topic(self, topic: str) -> None:
        if problem := filter_problem(topic):
            self._drop("malformed", topic, f"the cloud cannot subscribe to it: {problem}")
        elif topic not in self._stored:
            if len(self._stored) >= MAX_STORED_TOPICS:
                self._drop("full", topic, f"there are {MAX_STORED_TOPICS} topics of the cloud already")
                return
            # Stored first: whatever becomes of the brokers now, they are brought to it.
            await self._database.run(lambda db: add_topic(db, topic), sync=True)
            self._stored = (*self._stored, topic)
            self._subscribe_clients()

    def _drop(self, reason: str, topic: str, problem: str) -> None:
        self._dropped.add("edge", reason)
        line = f"{topic}: {problem}" if topic else problem
        known = line in self._logged
        if not known and len(self._logged) < _LOGGED:
            self._logged.add(line)
            logger.warning("MQTT: %s (not done; said once)", line)
        else:
            logger.debug("MQTT: %s (not done)", line)


def _payload(message: Message) -> bytes:
    """A JSON text is what it contains, anything else its JSON (channel contract 1.2)."""
    raw = bytes(message.content)
    return message.data(str).encode() if raw.startswith(b'"') else raw
