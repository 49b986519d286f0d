"""Edge core as the client of one broker, whatever the broker does.

Two connections, as upstream has: reading pauses while edge core is busy, and would hold back the acknowledgements of
what it publishes if both went over one. Each is made again for ever, with growing pauses; what is to be published waits
in a bounded box meanwhile, and what is to be subscribed to is a list that every new connection is brought to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from dmi import ConfigError
from dmi.metrics import Metrics
from edgecore.eventbus.outbox import Outbox, Outgoing
from edgecore.eventbus.settings import BrokerTarget

if TYPE_CHECKING:
    import aiomqtt

    from edgecore.eventbus.link import Link

__all__ = ["BrokerClient", "Incoming"]

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
IN_FLIGHT: Final = 8
"""Messages under way to the broker at once; their order is kept."""
TAKEN_AT_ONCE: Final = 64
"""Messages from the broker that are dealt with at once; in order too. The device twin has room for those of two."""
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
MAX_ATTEMPTS: Final = 5
STABLE_AFTER_S: Final = 10.0
SUBSCRIBE_AGAIN_S: Final = 30.0
_FILTERS_AT_ONCE: Final = 50


class Incoming(Struct, frozen=True):
    topic: str
    payload: bytes
    retained: bool
    """It was there before we subscribed, and comes again with every subscription."""


class BrokerClient:
    """`target` is asked for at each dial: the internal broker may come back elsewhere. None: there is none now."""

    def __init__(
        self,
        label: str,
        target: Callable[[], BrokerTarget | None],
        *,
        take: Callable[[Incoming], Awaitable[None]],
        connected: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self.label = label
        self._target = target
        self._take = take
        self._connected = connected
        dropped = metrics.counter(
            "kubetwin_edgecore_mqtt_dropped_total", "Messages that were given up.", "where", "reason"
        )
        self._published = metrics.counter(
            "kubetwin_edgecore_mqtt_published_total", "Messages that a broker has taken.", "broker"
        )
        self._dropped = dropped
        self.outbox: Outbox[Outgoing] = Outbox(
            max_items=MAX_WAITING,
            max_bytes=MAX_WAITING_BYTES,
            size=lambda one: len(one.payload) + len(one.topic),
            dropped=lambda: dropped.add(label, "full"),
        )
        self._desired: frozenset[str] = frozenset()
        self._applied: set[str] = set()
        self._changed = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._up: set[str] = set()
        self.reading: Link | None = None
        """The connection that messages come over now."""

    @property
    def is_up(self) -> bool:
        return len(self._up) == 2

    @property
    def trouble(self) -> str:
        """Why it does not work now; empty: it does, or it has only just begun."""
        return next(iter(self._troubles.values()), "")

    def want(self, filters: Collection[str]) -> None:
        """What is to be subscribed to from now on."""
        self._desired = frozenset(filters)
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep("sub", self._subscribe), name=f"mqtt {self.label} sub")
            tasks.create_task(self._keep("pub", self._publish), name=f"mqtt {self.label} pub")

    async def _keep(self, role: str, use: Callable[[Link, BrokerTarget], Awaitable[None]]) -> None:
        from edgecore.eventbus.link import MqttError, linked

        loop = asyncio.get_running_loop()
        delays = _delays()
        while True:
            target = self._target()
            if target is not None:
                client_id = target.sub_id if role == "sub" else target.pub_id
                since = loop.time()
                try:
                    async with linked(
                        target, client_id=client_id, keep_session=role == "sub" and target.qos > 0
                    ) as link:
                        self._note_up(role, target)
                        await use(link, target)
                except* (MqttError, ConfigError) as lost:
                    self._note_trouble(role, target, _first(lost))
                except* Exception as unexpected:
                    logger.exception("MQTT, %s broker: failed in an unexpected way; connecting again", self.label)
                    self._note_trouble(role, target, _first(unexpected))
                finally:
                    self._up.discard(role)
                if loop.time() - since >= STABLE_AFTER_S:
                    delays = _delays()
            await asyncio.sleep(next(delays))

    # Publishing

    async def _publish(self, link: Link, target: BrokerTarget) -> None:
        self._connected()
        unsent: list[tuple[int, object, Outgoing]] = []
        numbers = itertools.count()
        turn = asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.until_lost(), name=f"mqtt {self.label} watch")
                for worker in range(IN_FLIGHT):
                    sending = self._send(link, target, numbers, unsent, turn)
                    tasks.create_task(sending, name=f"mqtt {self.label} send {worker}")
        finally:
            for _, slot, message in sorted(unsent, key=lambda one: one[0], reverse=True):
                self._put_back(slot, message)

    def _put_back(self, slot: object, message: Outgoing) -> None:
        """For the next connection; but some brokers close it over a message they do not like, such as a large one."""
        if message.attempts + 1 < MAX_ATTEMPTS:
            self.outbox.put_back(slot, msgspec.structs.replace(message, attempts=message.attempts + 1))
            return
        self._dropped.add(self.label, "refused")
        logger.warning(
            "MQTT, %s broker: %s (%d bytes) is given up: %d connections ended over it",
            self.label,
            message.topic,
            len(message.payload),
            MAX_ATTEMPTS,
        )

    async def _send(
        self,
        link: Link,
        target: BrokerTarget,
        numbers: Iterator[int],
        unsent: list[tuple[int, object, Outgoing]],
        turn: asyncio.Lock,
    ) -> None:
        while True:
            async with turn:
                slot, message = await self.outbox.get()
                number = next(numbers)
                if message.attempts:  # alone, so that the others do not suffer if it is the one
                    await self._send_one(link, target, (number, slot, message), unsent)
                    continue
            await self._send_one(link, target, (number, slot, message), unsent)

    async def _send_one(
        self,
        link: Link,
        target: BrokerTarget,
        taken: tuple[int, object, Outgoing],
        unsent: list[tuple[int, object, Outgoing]],
    ) -> None:
        message = taken[2]
        qos = target.qos if message.qos is None else message.qos
        retain = target.retain if message.retain is None else message.retain
        try:
            # Since `get` returned no other task has run, so messages go out in the order of the box.
            await link.publish(message.topic, message.payload, qos, retain)
        except ValueError as error:  # paho: no such topic, or more than MQTT can carry
            self._dropped.add(self.label, "refused")
            logger.warning("MQTT, %s broker: %s cannot be published: %s", self.label, message.topic, error)
        except BaseException:
            unsent.append(taken)
            raise
        else:
            self._published.add(self.label)

    # Subscribing

    async def _subscribe(self, link: Link, target: BrokerTarget) -> None:
        self._applied.clear()
        self.reading = link
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(link), name=f"mqtt {self.label} receive")
                tasks.create_task(self._keep_subscribed(link, target), name=f"mqtt {self.label} subscribe")
        finally:
            self.reading = None
            self._dropped.add(self.label, "malformed", amount=link.malformed)

    async def _receive(self, link: Link) -> None:
        room = asyncio.Semaphore(TAKEN_AT_ONCE)
        last: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks, contextlib.aclosing(link.received()) as messages:
            async for message in messages:
                await room.acquire()
                last = tasks.create_task(self._receive_one(link, message, last, room), name=f"mqtt {self.label} take")

    async def _receive_one(
        self, link: Link, message: aiomqtt.Message, before: asyncio.Task[None] | None, room: asyncio.Semaphore
    ) -> None:
        payload = message.payload
        incoming = Incoming(
            str(message.topic),
            payload if isinstance(payload, bytes) else bytes(str(payload), "utf-8"),
            message.retain,
        )
        try:
            await self._take(incoming)
        except Exception:  # one bad message must not end the connection
            self._dropped.add(self.label, "failed")
            logger.exception("MQTT, %s broker: a message on %s was dropped", self.label, incoming.topic)
        if before is not None and not before.done():  # acknowledged in the order they came (MQTT 3.1.1, 4.6)
            await asyncio.wait([before])
        link.acknowledge(message)
        room.release()

    async def _keep_subscribed(self, link: Link, target: BrokerTarget) -> None:
        while True:
            self._changed.clear()
            desired = self._desired
            refused: set[str] = set()
            for filters in _chunks(sorted(desired - self._applied), _FILTERS_AT_ONCE):
                codes = await link.subscribe([(one, target.qos) for one in filters])
                for filter_, code in zip(filters, codes, strict=True):
                    (refused if _is_refusal(code) else self._applied).add(filter_)
            for filters in _chunks(sorted(self._applied - desired), _FILTERS_AT_ONCE):
                await link.unsubscribe(filters)
                self._applied.difference_update(filters)
            self._note_refused(refused)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUBSCRIBE_AGAIN_S if refused else None):
                    await self._changed.wait()

    # What is said

    def _note_up(self, role: str, target: BrokerTarget) -> None:
        self._up.add(role)
        self._troubles.pop(role, None)
        if self.is_up:
            logger.info("MQTT: connected to the %s broker at %s", self.label, target.url)

    def _note_trouble(self, role: str, target: BrokerTarget, error: BaseException) -> None:
        """Log on the change, not at every try, and not once for each connection."""
        problem = f"{self.label} broker {target.url}: {_words(error)}"
        before = self.trouble
        self._troubles[role] = problem
        if problem != before:
            logger.warning("MQTT: %s; trying again until it works", problem)

    def _note_refused(self, filters: set[str]) -> None:
        self._troubles.pop("filters", None)
        if filters:
            self._troubles["filters"] = f"{self.label} broker: it refuses subscriptions to {', '.join(sorted(filters))}"
            logger.warning("MQTT: %s; check the broker's access rules", self._troubles["filters"])


def _delays() -> Iterator[float]:
    """Seconds before each next try, never two edge cores in step."""
    delay = FIRST_RETRY_S
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets
        delay = min(delay * 2, MAX_RETRY_S)


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_refusal(code: object) -> bool:
    """0x80 in SUBACK (MQTT 3.1.1, 3.9.3), which paho shows as an object of its own."""
    number = getattr(code, "value", code)
    return isinstance(number, int) and number >= 0x80


def _words(error: BaseException) -> str:
    if str(error) == "Disconnected during message iteration":
        return f"the connection is lost ({error.__cause__ or 'closed'})"
    return str(error) or type(error).__name__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
