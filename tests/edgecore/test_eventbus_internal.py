"""EventBus with the internal broker: a real one, in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import psutil
import pytest

from edgecore.config import EventBusConfig, TopicRule
from edgecore.eventbus import client as client_module
from edgecore.eventbus import link as link_module
from edgecore.eventbus import supervisor
from edgecore.eventbus.brokerwire import BrokerAnswer, BrokerSettings
from edgecore.eventbus.localbroker import LocalBroker
from edgecore.eventbus.settings import BrokerTarget
from tests.edgecore.mqtt_world import UPDATE, World, app, free_port, until, world


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_RETRY_S", 0.3)
    monkeypatch.setattr(supervisor, "MAX_RETRY_S", 0.5)


def config(*rules: TopicRule, **more: Any) -> EventBusConfig:
    settings: dict[str, Any] = {"mqtt_server_internal": "tcp://127.0.0.1:0", "mqtt_qos": 1, **more}
    return EventBusConfig(enable=True, mqtt_mode=0, topic_rules=rules, **settings)


def port_of(one: World) -> int:
    port = one.events.internal_port
    assert port is not None
    return port


async def test_apps_and_the_twin_reach_each_other(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one), "$hw/events/#") as local:
        await local.publish(UPDATE, {"event_id": "e1"})
        await until(lambda: one.twin, "the twin has it")
        assert (one.twin[0].topic, one.twin[0].payload) == (UPDATE, b'{"event_id":"e1"}')
        one.tell(f"{UPDATE}/result", b'{"event_id":"e1"}')
        one.tell(f"{UPDATE}/document", b"{}", latest=True)
        assert await local.hears(f"{UPDATE}/result") == b'{"event_id":"e1"}'
        assert await local.hears(f"{UPDATE}/document") == b"{}"
        assert len(one.twin) == 1, "what edge core says does not come back to it"
        assert one.events.trouble == ""


async def test_more_than_is_taken_at_once_is_taken_in_order(tmp_path: Path) -> None:
    async with world(config(mqtt_session_queue_size=500), tmp_path) as one, app(port_of(one)) as local:
        count = 2 * client_module.TAKEN_AT_ONCE + 1
        for number in range(count):
            await local.publish(UPDATE, b"%d" % number)
        await until(lambda: len(one.twin) >= count, "all")
        assert [event.payload for event in one.twin] == [b"%d" % number for number in range(count)]


async def test_the_other_topics_go_to_the_cloud(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one)) as local:
        for topic in ("$hw/events/upload/a", "SYS/dis/upload_records", "default/user/a/b"):
            await local.publish(topic, b"text \xff")
        await local.publish("plant/a", b"nobody wants it")
        await until(lambda: len(one.cloud) == 3, "all are there")
        assert [message.route.resource for message in one.cloud] == [
            "$hw/events/upload/a",
            "SYS/dis/upload_records",
            "default/user/a/b",
        ]
        for message in one.cloud:
            assert (message.route.source, message.route.group, message.route.operation) == ("bus", "user", "upload")
            assert message.data(str) == "text \ufffd"


async def test_an_upload_that_cannot_be_stored_is_counted_and_the_next_one_goes(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one)) as local:
        one.store_takes = False
        for number in range(3):
            await local.publish("default/user/a", b"%d" % number)
        await until(lambda: one.count("dropped_total", "cloud", "not stored") == 3, "they are counted")
        one.store_takes = True
        for number in range(3, 30):
            await local.publish("default/user/a", b"%d" % number)
        await until(lambda: len(one.cloud) >= 27, "the others are kept for the cloud")
        assert [message.data(str) for message in one.cloud] == [str(number) for number in range(3, 30)]


async def test_the_cloud_publishes_and_subscribes_and_that_outlives_a_restart(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one), "#") as local:
        await one.say("publish", "plant/light", "on")
        await one.say("publish", "plant/json", {"a": 1})
        assert await local.hears("plant/light") == b"on"
        assert await local.hears("plant/json") == b'{"a":1}'
        await one.say("subscribe", "default/temperature")
        await one.say("subscribe", "default/temperature")
        await one.say("subscribe", "default/pressure")
        await one.say("unsubscribe", "default/pressure")
        await one.say("subscribe", "default/#/x")
        await one.settled()
        await local.publish("default/pressure", b"1")
        await local.publish("default/temperature", b"21")
        await until(lambda: one.cloud, "it goes up")
        assert [message.route.resource for message in one.cloud] == ["default/temperature"]
        assert one.count("dropped_total", "edge", "malformed") == 1
    async with world(config(), tmp_path) as one, app(port_of(one)) as local:
        await local.publish("default/temperature", b"22")
        await until(lambda: one.cloud, "it still goes up")


async def test_what_the_cloud_cannot_mean_is_counted(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one), "#", "$hw/#") as local:
        await one.say("publish", "plant/#", "x")
        await one.say("publish", "plant/big", "x" * (4 * 1024 * 1024 + 1))
        await one.say("message", "x", {"message": {}})
        await one.say("dance", "x")
        await one.say("message", "x", {"message": {"topic": "plant/legacy"}})
        await one.say("get_result", "auth_info", {"token": "t"})
        assert await local.hears("plant/legacy") == b'{"topic":"plant/legacy"}'
        assert await local.hears("$hw/events/node/edge-1/authInfo/get/result") == b'{"token":"t"}'
        assert len(local.heard) == 2
        assert one.count("dropped_total", "edge", "malformed") == 2
        assert one.count("dropped_total", "edge", "too large") == 1
        assert one.count("dropped_total", "edge", "unknown") == 1


async def test_access_rules(tmp_path: Path) -> None:
    read, none = TopicRule(devices="default/boiler-1", access="read"), TopicRule(devices="secret/*", access="none")
    secret = "$hw/events/device/secret/x/twin/get"
    async with world(config(read, none), tmp_path) as one, app(port_of(one), "$hw/events/device/+/+/twin/#") as local:
        await local.publish(UPDATE, {"event_id": "e1"})
        await local.publish(secret, {"event_id": "e2"})
        await local.publish(UPDATE.replace("update", "get"), {"event_id": "e3"})
        refused = msgspec.json.decode(await local.hears(f"{UPDATE}/result"))
        assert (refused["event_id"], refused["code"]) == ("e1", 400)
        refused = msgspec.json.decode(await local.hears(f"{secret}/result"))
        assert (refused["event_id"], refused["code"]) == ("e2", 400)
        await until(lambda: one.twin, "what may be done is done")
        assert [event.topic for event in one.twin] == [UPDATE.replace("update", "get")]
        one.tell("$hw/events/device/secret/x/twin/update/document", b"hidden")
        one.tell(f"{UPDATE}/document", b"shown")
        await local.hears(f"{UPDATE}/document")
        assert not local.on("$hw/events/device/secret/x/twin/update/document")


async def test_a_retained_command_is_not_done_at_every_connection(tmp_path: Path) -> None:
    rule = TopicRule(write="w/{namespace}/{device}/{property}")
    port = free_port()
    server = f"tcp://127.0.0.1:{port}"
    process = supervisor.BrokerProcess(
        BrokerTarget("internal", server, "127.0.0.1", port, 1, False, "a", "b"), queue_size=100, answers=lambda: True
    )
    task = asyncio.create_task(process.run(), name="broker under test")
    try:
        await until(lambda: process.target, "it listens")
        async with app(port) as local:
            await local.publish(UPDATE, {"event_id": "old"}, retain=True)
            await local.publish("w/default/boiler-1/temp", b"1", retain=True)
            external = EventBusConfig(enable=True, mqtt_mode=2, mqtt_server_external=server, topic_rules=(rule,))
            async with world(external, tmp_path) as one:
                await until(lambda: one.count("dropped_total", "edge", "retained") == 2, "both are seen")
                await local.publish(UPDATE, {"event_id": "new"})
                await until(lambda: one.twin, "a new one is done")
                assert [event.payload for event in one.twin] == [b'{"event_id":"new"}']
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_broker_that_dies_comes_back_and_everything_goes_on(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one:
        assert one.events._process is not None
        first = one.events._process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: one.events._process and one.events._process.pid not in (None, first), "another one")
        await until(lambda: one.events.is_up and not one.events.trouble, "connected again")
        await one.settled()
        async with app(port_of(one), "t") as local:
            one.tell("t", b"1")
            await local.hears("t")
            await local.publish(UPDATE)
            await until(lambda: one.twin, "apps are heard")
        assert not psutil.pid_exists(first), "no zombie"


async def test_a_broker_that_hangs_is_ended_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "ANSWER_S", 0.5)
    monkeypatch.setattr(supervisor, "HANGS_AFTER_S", 3.0)
    monkeypatch.setattr(supervisor, "STOP_S", 0.2)
    async with world(config(), tmp_path) as one:
        process = one.events._process
        assert process is not None
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        one.tell("t", b"not acknowledged")
        await until(lambda: process.pid not in (None, first), "another one")
        assert not psutil.pid_exists(first)
        await one.up()
        second = process.pid
        await asyncio.sleep(2 * supervisor.HANGS_AFTER_S / 4)
        assert process.pid == second, "one that answers is left alone"


async def test_while_the_port_is_taken_it_says_so_and_tries_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = config(mqtt_server_internal=f"tcp://127.0.0.1:{port}")
        async with world(settings, tmp_path, connect=False) as one:
            await until(lambda: "mqttServerInternal" in one.events.trouble, "it says which setting")
            assert str(port) in one.events.trouble
            taken.close()
            await one.up()
            await until(lambda: not one.events.trouble, "all is well")


async def test_the_broker_ends_when_edge_core_is_killed(tmp_path: Path) -> None:
    """A parent that is killed cannot say good-bye; its end of the pipe closes."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'edgecore.eventbus.broker'], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE)\n"
        f"child.stdin.write({msgspec.json.encode(BrokerSettings('127.0.0.1', 0, 10))!r} + b'\\n')\n"
        "child.stdin.flush()\n"
        "sys.stdout.write(f'{child.pid} ' + child.stdout.readline().decode()); sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        pid, _, answer = (await parent.stdout.readline()).decode().partition(" ")
    assert msgspec.json.decode(answer.encode(), type=BrokerAnswer).port > 0
    assert psutil.pid_exists(int(pid))
    parent.kill()
    await parent.wait()
    await until(
        lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE, "it ends"
    )


async def test_sessions_are_kept_and_queues_are_bounded(tmp_path: Path) -> None:
    async with world(config(mqtt_session_queue_size=20), tmp_path) as one:
        port = port_of(one)
        session: dict[str, Any] = {"identifier": "app-1", "clean_session": False}
        async with app(port, "t", **session):
            pass
        for number in range(50):
            one.tell("t", b"%d" % number)
        await until(lambda: one.count("published_total", "internal") >= 50, "the broker has all")
        async with app(port, **session) as local:
            await local.hears("t", 20)
            assert [payload for _, payload in local.heard] == [b"%d" % number for number in range(30, 50)]


async def test_nobody_gets_a_better_quality_of_service_than_was_asked_for(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, aiomqtt.Client("127.0.0.1", port_of(one)) as client:
        for filter_, qos in (("a", 0), ("b", 1), ("c", 2)):
            await client.subscribe(filter_, qos)
            for published in range(3):
                await client.publish(filter_, qos=published)
                async with asyncio.timeout(20):
                    assert (await anext(client.messages)).qos == min(qos, published)


async def test_one_that_subscribes_gets_only_what_it_subscribed_to(tmp_path: Path) -> None:
    async with world(config(mqtt_retain=True), tmp_path) as one:
        one.tell("a", b"1")
        one.tell("b", b"2")
        await until(lambda: one.count("published_total", "internal") >= 2, "the broker has them")
        async with app(port_of(one), "a", "+") as first, app(port_of(one), "b") as second:
            await first.hears("a")
            await second.hears("b")
            one.tell("b", b"3")
            await second.hears("b", 2)
            assert second.heard == [("b", b"2"), ("b", b"3")]
            await first.hears("b", 2)
            assert first.on("b") == [b"2", b"3"], "two filters that fit, one copy"


async def test_a_filter_that_nobody_has_any_more_is_forgotten() -> None:
    """Apps that ask and listen for the answer under a topic of its own come again and again."""
    broker = LocalBroker(BrokerSettings("127.0.0.1", 0, 10))
    await broker.start()
    try:
        async with aiomqtt.Client("127.0.0.1", broker.port) as stays, aiomqtt.Client("127.0.0.1", broker.port) as asks:
            await stays.subscribe("shared")
            for number in range(3):
                await asks.subscribe("shared")
                await asks.subscribe(f"answers/{number}")
                await asks.unsubscribe(f"answers/{number}")
                await asks.unsubscribe("shared")
            await asks.unsubscribe("never")
            assert list(broker._subscriptions) == ["shared"]
            await asks.publish("shared", b"1")
            async with asyncio.timeout(20):
                assert (await anext(stays.messages)).payload == b"1"
    finally:
        await broker.shutdown()


async def test_a_client_that_breaks_the_rules_is_cut_off_and_nobody_else(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one), "t") as good:
        for garbage in (b"\x00" * 20, b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\x7f", os.urandom(200)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(one))
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(15):
                await reader.read()
            writer.close()
        for topic, payload in (("t", b"x" * (5 * 1024 * 1024)), ("$SYS/x", b"x")):
            with pytest.raises(aiomqtt.MqttError):
                await _publish_until_cut_off(port_of(one), topic, payload)
        await good.publish("t", b"fine")
        await until(lambda: b"fine" in good.on("t"), "the others go on")


async def _publish_until_cut_off(port: int, topic: str, payload: bytes) -> None:
    async with app(port, identifier="odd", timeout=2) as odd:
        await odd.publish(topic, payload)
        async with asyncio.timeout(20):
            while True:
                await odd.publish("other", b"")


async def test_a_subscriber_that_does_not_read_costs_the_others_a_moment(tmp_path: Path) -> None:
    async with world(config(), tmp_path) as one, app(port_of(one), "t") as good:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(one))
        writer.write(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04deaf")
        writer.write(b"\x82\x06\x00\x01\x00\x01t\x01")
        await reader.readexactly(4 + 5)
        for number in range(300):
            one.tell("t", b"%d" % number)
        await good.hears("t", 300)
        assert good.on("t") == [b"%d" % number for number in range(300)]
        writer.close()


class _Strict(LocalBroker):
    """Lets nobody subscribe to what goes to the cloud, until told."""

    strict = True

    async def _topic_filtering(self, session: Any, topic: str, action: Any) -> bool:
        return not (self.strict and topic == "+/user/#")


async def test_a_subscription_that_is_refused_is_said_and_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SUBSCRIBE_AGAIN_S", 0.2)
    broker = _Strict(BrokerSettings("127.0.0.1", 0, 100))
    await broker.start()
    try:
        url = f"tcp://127.0.0.1:{broker.port}"
        external = EventBusConfig(enable=True, mqtt_mode=2, mqtt_server_external=url)
        async with world(external, tmp_path, connect=False) as one, app(broker.port) as local:
            await until(lambda: "refuses" in one.events.trouble, "it is said")
            assert "+/user/#" in one.events.trouble
            assert "twin" not in one.events.trouble
            await local.publish(UPDATE, b"x")
            await until(lambda: one.twin, "what is permitted works")
            broker.strict = False
            await until(lambda: not one.events.trouble, "it is asked for again")
            await local.publish("default/user/a", b"x")
            await until(lambda: one.cloud, "and works")
    finally:
        await broker.shutdown()
