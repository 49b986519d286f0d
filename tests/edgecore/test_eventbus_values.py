"""Values under topics of an app's own, at the internal broker: there when they are, gone when they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dmi import DeviceId, Reported, Twin
from edgecore.bus import ObjectChange, ObjectsChanged, StateShown, TwinsGone, TwinsReported
from edgecore.config import EventBusConfig, TopicRule
from edgecore.eventbus import client as client_module
from edgecore.eventbus import eventbus as eventbus_module
from edgecore.store import StateRow, TwinRow, put_state, put_twins
from tests.edgecore.mqtt_world import UPDATE, World, app, until, world

BOILER = DeviceId("default/boiler-1")


def config(rule: TopicRule) -> EventBusConfig:
    return EventBusConfig(
        enable=True, mqtt_mode=0, mqtt_server_internal="tcp://127.0.0.1:0", mqtt_qos=1, topic_rules=(rule,)
    )


def port_of(one: World) -> int:
    port = one.events.internal_port
    assert port is not None
    return port


def put(**values: Reported) -> Callable[[sqlite3.Connection], None]:
    rows = [TwinRow(Twin(name, value), 1) for name, value in values.items()]
    return lambda db: put_twins(db, BOILER, rows)


async def test_values_and_writes_under_topics_of_ones_own(tmp_path: Path) -> None:
    rule = TopicRule(
        publish="v/{namespace}/{device}/{property}", write="w/{namespace}/{device}/{property}", retain=True
    )

    async with world(config(rule), tmp_path, connect=False) as one:
        await one.database.run(put(old=Reported("7", "int", 5)))
        await one.up()
        await one.settled()
        one.bus.tell(TwinsReported(BOILER, (Twin("temp", Reported("21.5", "float", 9)), Twin("never"))))
        async with app(port_of(one), "v/#") as local:
            assert await local.hears("v/default/boiler-1/temp") == b"21.5"
            assert await local.hears("v/default/boiler-1/old") == b"7"
            await local.publish("w/default/boiler-1/temp", b"30")
            await until(lambda: one.twin, "it is an update")
            assert one.twin[0].topic == UPDATE
            update = msgspec.json.decode(one.twin[0].payload)
            assert update["twin"] == {"temp": {"expected": {"value": "30"}}}
            await local.publish("w/default/boiler-1/temp", b"\xff")
            await until(lambda: one.count("dropped_total", "edge", "malformed"), "no text")


async def test_nothing_that_is_over_stays_with_the_broker(tmp_path: Path) -> None:
    rule = TopicRule(publish="v/{namespace}/{device}/{property}", payload="json", retain=True)
    topic = "v/default/boiler-1/temp"
    async with world(config(rule), tmp_path) as one:
        await one.database.run(put(temp=Reported("21.5", "float", 9), other=Reported("1", "int", 9)))
        one.bus.tell(TwinsReported(BOILER, (Twin("temp", Reported("21.5", "float", 9)),)))
        async with app(port_of(one), "v/#") as local:
            assert msgspec.json.decode(await local.hears(topic))["quality"] == "good"
            away = StateRow("online", fault_state="unknown", fault_reason="no mapper", since_ms=1)
            await one.database.run(lambda db: put_state(db, BOILER, away))
            one.bus.tell(StateShown(BOILER, away.since_ms))
            old = msgspec.json.decode(await local.hears(topic, 2))
            assert (old["value"], old["quality"], old["reason"]) == (
                "21.5",
                "stale",
                "the device is unknown: no mapper",
            )
            await local.hears("v/default/boiler-1/other", 1)
            one.bus.tell(StateShown(BOILER, away.since_ms))  # as before: nothing to say
            await one.database.run(lambda db: put_state(db, BOILER, StateRow("online", since_ms=2)))
            one.bus.tell(StateShown(BOILER, 2))
            assert msgspec.json.decode(await local.hears(topic, 3))["quality"] == "good"
            one.bus.tell(TwinsGone(BOILER, ("temp",)))
            assert await local.hears(topic, 4) == b""
            await one.bus.publish(ObjectsChanged((ObjectChange("device", "default", "boiler-1", None),)))
            assert not one.events._since_ms, "nor with us"
        async with app(port_of(one), "v/#") as later:
            await later.hears("v/default/boiler-1/other")
            assert later.on(topic) == [], "nothing is retained"


async def test_many_states_at_once_lose_no_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_WAITING", 20)
    monkeypatch.setattr(eventbus_module, "_AT_ONCE", 5)
    rule = TopicRule(publish="v/{namespace}/{device}/{property}", payload="json")
    devices = [DeviceId(f"default/d-{number:03}") for number in range(100)]

    def fill(db: sqlite3.Connection) -> None:
        for device in devices:
            put_twins(db, device, [TwinRow(Twin("temp", Reported("1", "int", 9)), 1)])
            put_state(db, device, StateRow("offline", since_ms=1))

    async with world(config(rule), tmp_path) as one, app(port_of(one), "v/#") as local:
        await one.database.run(fill)
        for device in devices:
            one.bus.tell(StateShown(device, 1))
        await until(lambda: {topic for topic, _ in local.heard} == {f"v/{device}/temp" for device in devices}, "all")
        assert all(b'"stale"' in payload for _, payload in local.heard)
        assert one.count("dropped_total", "internal", "full") == 0
