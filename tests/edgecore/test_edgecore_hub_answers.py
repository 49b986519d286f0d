"""Answers of the cloud: told, acknowledged when they are objects, also when they are late."""

import asyncio
import functools
from pathlib import Path

import pytest

from cloudedge import Message, new_message, reply
from edgecore.bus import Reply, Upstream
from edgecore.config import EdgeCoreConfig, EdgeHubConfig
from edgecore.edgehub import asked
from tests.edgecore.hub_world import Events, upload
from tests.edgecore.peers import FakeCloud


@pytest.fixture
def settings(config: EdgeCoreConfig) -> EdgeHubConfig:
    return config.modules.edge_hub


def question() -> Message:
    return new_message(source="edged", group="meta", operation="query", resource="default/configmap/x")


async def test_an_answer_is_told_and_acknowledged_also_when_it_is_late(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    """Upstream's cloud sends an answer that nobody acknowledges again for ever."""
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        ask = question()
        await events.bus.publish(Upstream(ask))
        for asked_for in (ask, question()):
            answer = reply(asked_for, source="edgecontroller", group="resource", content={"kind": "ConfigMap"})
            await cloud.send(answer)
            assert (await events.replies.get()).message.id == answer.id
            await cloud.until(functools.partial(cloud.acknowledged.__contains__, answer.id))
        sent = cloud.messages[-1]
        assert (sent.route.source, sent.route.group, sent.route.resource, sent.is_ok) == (
            "edgecontroller",
            "resource",
            "default/configmap/x",
            True,
        )
        assert events.count("cloud_late_replies_total") == 1


async def test_an_answer_that_failed_here_is_not_acknowledged_and_disturbs_nothing(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("not stored")

    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        events.bus.subscribe(Reply, fail)
        first = reply(question(), source="edgecontroller", group="resource", content={"kind": "ConfigMap"})
        await cloud.send(first)
        await events.replies.get()
        assert events.hub._connection is not None
        await events.hub._connection.probe()
        assert first.id not in cloud.acknowledged
        assert cloud.connected == 1


@pytest.mark.parametrize(
    ("operation", "group", "content"),
    (("error", "resource", "no"), ("error", "", "no"), ("response", "resource", "OK")),
)
async def test_failures_and_a_bare_ok_are_told_and_not_acknowledged(
    settings: EdgeHubConfig, cloud: FakeCloud, tmp_path: Path, operation: str, group: str, content: str
) -> None:
    async with Events(settings, tmp_path) as events, asyncio.timeout(10):
        await events.connected.get()
        ask = question()
        answer = new_message(source="", group=group, operation=operation, resource="x", content=content, parent=ask.id)
        await cloud.send(answer)
        assert (await events.replies.get()).message.id == answer.id
        assert events.hub._connection is not None
        await events.hub._connection.probe()
        assert answer.id not in cloud.acknowledged


def test_an_answer_is_late_after_a_minute_and_the_second_time() -> None:
    memory = asked.Asked()
    one, two = question(), question()
    memory.note(one, 0.0)
    memory.note(two, 0.0)
    memory.note(upload("x"), 0.0)
    assert not memory.is_late(reply(one), 59.0)
    assert memory.is_late(reply(one), 59.0)
    assert memory.is_late(reply(two), 61.0)
    for _ in range(3000):
        memory.note(question(), 0.0)
    assert len(memory._at) <= 1024
