"""Apps, broker, edge core, mapper and cloud together: a twin over MQTT, and processes that end when they should."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import psutil
import pytest

from cloudedge import new_message
from edgecore.config import EdgeCoreConfig, EventBusConfig, TopicRule
from tests.edgecore.conftest import Edge, EdgeProcess
from tests.edgecore.mqtt_world import UPDATE, App, app, free_port, until
from tests.edgecore.peers import FakeCloud, FakeMapper

BOILER = "default/boiler-1"
GET = UPDATE.replace("update", "get")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def config(config: EdgeCoreConfig, port: int) -> EdgeCoreConfig:
    """The usual one, with an internal broker."""
    rule = TopicRule(publish="v/{namespace}/{device}/{property}", write="w/{namespace}/{device}/{property}")
    events = EventBusConfig(
        enable=True, mqtt_mode=0, mqtt_server_internal=f"tcp://127.0.0.1:{port}", mqtt_qos=1, topic_rules=(rule,)
    )
    modules = msgspec.structs.replace(config.modules, event_bus=events)
    return msgspec.structs.replace(config, modules=modules)


async def _listens(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def _ask(local: App, topic: str, content: Any) -> Any:
    """Ask until edge core, which may still be connecting, has heard it; the answer."""
    result = f"{topic}/result"
    async with asyncio.timeout(30):
        while not local.on(result):
            await local.publish(topic, content)
            await asyncio.sleep(0.1)
    return msgspec.json.decode(local.on(result)[-1])


async def test_a_twin_over_mqtt(edge: Edge, cloud: FakeCloud, boiler: FakeMapper, port: int) -> None:
    await boiler.report(BOILER, temperature="21.5")
    await cloud.until_value(BOILER, "temperature", "21.5")
    await _listens(port)
    async with app(port, "$hw/events/device/+/+/twin/#", "v/#") as local:
        got = await _ask(local, GET, {"event_id": "e1"})
        assert got["event_id"] == "e1"
        assert got["twin"]["temperature"]["actual"]["value"] == "21.5"
        await boiler.report(BOILER, temperature="22")
        await until(lambda: b"22" in local.on("v/default/boiler-1/temperature"), "the value by the rule")
        await local.hears(f"{UPDATE}/document")
        await local.publish("w/default/boiler-1/setpoint", b"60")
        await until(
            lambda: any(b'"60"' in one for one in local.on(f"{UPDATE}/document")), "the write is in the document"
        )
        await local.publish("default/user/x", b"hello")
        await cloud.until(lambda: any(m.route.operation == "upload" for m in cloud.messages), "an upload")
        for operation, resource, content in (("subscribe", "default/t", None), ("publish", "v/cloud", "on")):
            await cloud.send(
                new_message(
                    source="router_eventbus", group="user", operation=operation, resource=resource, content=content
                )
            )
        assert await local.hears("v/cloud") == b"on"


def _lives(process: psutil.Process) -> bool:
    # Without a parent it belongs to init, which in a container may leave it a zombie.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.e2e
@pytest.mark.parametrize(("end", "code"), ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)))
async def test_no_broker_outlives_its_edge_core(
    edge_process: Callable[[], EdgeProcess], port: int, end: signal.Signals, code: int
) -> None:
    process = edge_process()
    await process.start()
    await _listens(port)
    assert process.process is not None
    (broker,) = psutil.Process(process.process.pid).children()
    assert str(port) not in " ".join(broker.cmdline()), "no settings for every user of the machine to see"
    assert await process.end(end) == code, process.log
    await until(lambda: not _lives(broker), "it is gone")
