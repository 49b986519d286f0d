"""Questions to a node through a DeviceStatus: asked, answered, refused, removed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudcore.devicecontroller import ControllerSettings
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.devicecontroller.links import Links
from cloudcore.devicecontroller.queries import Queries, QuerySettings
from cloudcore.kube import Informer, Key
from cloudedge import Message
from cloudedge.facts import DeviceFacts
from cloudedge.queries import MAX_ANSWER_BYTES, NODE_AWAY, NODE_SILENT, Query, query_device
from tests.cloudcore.support import Cloud, Edge, Kubernetes, device, model, running_cloud, until

KEY = Key("default", "thermo-1")
ID = "abcdefgh1234"


@pytest.fixture
async def cloud(kube: Kubernetes, certs: Path) -> AsyncIterator[Cloud]:
    """With a device that has its DeviceStatus."""
    queries = QuerySettings(timeout_s=0.5, keep_s=60.0)
    settings = ControllerSettings(patch_interval_s=0.01, queries=queries)
    async with running_cloud(kube, certs, controller=settings) as running:
        await declare(kube)
        yield running


async def declare(kube: Kubernetes) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    await until(lambda: kube.created)


async def ask(kube: Kubernetes, id_: str = ID, /, **query: Any) -> None:
    await put(kube, {id_: {"ask": "path", "asked_ms": 1, **query}})


async def put(kube: Kubernetes, queries: dict[str, Any]) -> None:
    await kube.patch(STATUSES, KEY, {"status": {"extensions": {"queries": queries}}})


async def answer(kube: Kubernetes, id_: str = ID) -> Any:
    def there(status: dict[str, Any]) -> Any:
        entry = status["extensions"].get("queries", {}).get(id_)
        return entry.get("answer") if isinstance(entry, dict) else None

    found = dict(there(await kube.until_status("thermo-1", there)))
    assert found.pop("answered_ms") > 10**12
    return found


def questions(edge: Edge) -> list[Message]:
    return [m for m in edge.received if query_device(m.route.resource)]


async def say(edge: Edge, question: Message, content: Any) -> None:
    await edge.send(
        source="twin",
        group="resource",
        operation="update",
        resource=question.route.resource,
        content=content,
        parent=question.id,
    )


async def test_a_question_goes_to_the_node_and_its_answer_comes_back(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))
        before = len(kube.patched)
        await ask(kube, property="valve", limit=7)
        await until(lambda: questions(edge))
        (question,) = questions(edge)
        route = question.route
        assert (route.source, route.group, route.operation) == ("devicecontroller", "twin", "get")
        assert (route.resource, question.header.parent_msg_id) == ("device/default/thermo-1/query", "")
        assert question.data(Query) == Query(ID, "path", "valve", 0, 7, 1)
        facts = DeviceFacts(node="edge-1", device="default/thermo-1", now_ms=17, declared=True)
        await say(edge, question, {"id": ID, "result": msgspec.to_builtins(facts), "answered_ms": 5})
        got = await answer(kube)
        assert msgspec.convert(got["result"], DeviceFacts) == facts
        assert "error" not in got
        await edge.answer(await edge.report("thermo-1", {"valve": 6}))  # written beside it
        assert (await answer(kube))["result"] == got["result"]
        assert len(questions(edge)) == 1
        await put(kube, {ID: None})
        await until(lambda: not cloud.controller.queries._asked)
        assert (await kube.status("thermo-1"))["twins"][0]["reported"]["value"] == "6"
    assert len(kube.patched) == before + 4  # question, answer, twin, removal
    assert cloud.controller.queries.counts == {"asked": 1, "answered": 1}


@pytest.mark.parametrize(
    ("id_", "entry", "says"),
    (
        (ID, {"ask": "colour"}, "Invalid enum value 'colour' - at `$.ask`"),
        (ID, {"limit": 1}, "missing required field `ask`"),
        (ID, {"ask": "path", "limit": "x"}, "Expected `int`, got `str` - at `$.limit`"),
        (ID, {"ask": "history", "limit": 0}, "at `$.limit`"),
        (ID, {"ask": "path", "property": "x" * 300}, "property has more than 253 characters"),
        (ID, "path", "a question is an object with the key ask"),
        ("SHOUTING-8", {"ask": "path"}, "8 to 32 small letters and digits"),
    ),
)
async def test_a_malformed_question_is_told_what_is_wrong(
    kube: Kubernetes, cloud: Cloud, id_: str, entry: Any, says: str
) -> None:
    async with cloud.edge() as edge:
        await put(kube, {id_: entry})
        assert says in (await answer(kube, id_))["error"]
        assert not questions(edge)


async def test_a_node_that_is_away_or_silent_is_an_error(kube: Kubernetes, cloud: Cloud) -> None:
    cloud.controller._links.grace_s = 0.0
    await ask(kube)
    assert await answer(kube) == {"error": 'node "edge-1" is not connected to CloudHub', "reason": NODE_AWAY}
    cloud.controller.queries.why_away = lambda node: f"node {node} is revoked"
    await ask(kube, "revoked1")
    error = 'node "edge-1" is not connected to CloudHub: node edge-1 is revoked'
    assert await answer(kube, "revoked1") == {"error": error, "reason": NODE_AWAY}
    async with cloud.edge() as edge:
        await ask(kube, "silent12")
        error = 'node "edge-1" is connected, and its edge core did not answer within 0.5 s'
        stock = f"{error}; stock ones never do"
        assert await answer(kube, "silent12") == {"error": stock}
        (question,) = questions(edge)
        await say(edge, question, {"id": "silent12", "result": {"late": True}})
        await until(lambda: cloud.controller.queries.counts["answer to no question"])
        assert await answer(kube, "silent12") == {"error": stock}
        await edge.answer(await edge.report_state("thermo-1", "online", since=1))  # as no stock edge core does
        await ask(kube, "hanging1")
        assert await answer(kube, "hanging1") == {"error": error, "reason": NODE_SILENT}


async def test_a_node_that_was_here_just_now_gets_a_moment_to_be_back(kube: Kubernetes, cloud: Cloud) -> None:
    """As after a restart of cloud core."""
    await ask(kube)
    await until(lambda: cloud.controller.queries._held)
    async with cloud.edge() as edge:
        await until(lambda: questions(edge))
        await say(edge, questions(edge)[0], {"id": ID, "result": {"back": True}})
        assert await answer(kube) == {"result": {"back": True}}
    await ask(kube, "nobody12")
    assert (await answer(kube, "nobody12"))["reason"] == NODE_AWAY
    assert not any(cloud.controller.queries._held.values())


async def test_only_the_devices_own_node_answers(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge, cloud.edge("edge-2") as other:
        await ask(kube)
        await until(lambda: questions(edge))
        (question,) = questions(edge)
        await say(other, question, {"id": ID, "result": {"forged": True}})
        await until(lambda: cloud.controller.queries.counts["answer of another node"])
        await edge.send(
            source="twin", group="resource", operation="update", resource="device/default/other/query",
            content={"id": ID, "result": {"forged": True}}, parent=question.id,
        )  # fmt: skip
        await until(lambda: cloud.controller.queries.counts["answer to no question"])
        await say(edge, question, {"id": ID, "result": {"true": 1}})
        assert await answer(kube) == {"result": {"true": 1}}
        assert not questions(other)


@pytest.mark.parametrize(
    ("content", "says"),
    (
        ("{", "the node's answer cannot be read"),
        ({"result": 1}, "the node's answer cannot be read"),
        ({"id": ID, "error": "no history is kept here"}, "no history is kept here"),
        ({"id": ID}, "the node answered with nothing"),
        (msgspec.Raw(b'{"id":"x","result":"\xff"}'), "the node's answer cannot be read"),
        (msgspec.Raw(b'{"id":"x","result":[1e999]}'), "the node's answer cannot be read"),
        ({"id": ID, "result": "x" * (MAX_ANSWER_BYTES + 5000)}, f"larger than the {MAX_ANSWER_BYTES} bytes"),
    ),
)
async def test_answers_that_are_none(kube: Kubernetes, cloud: Cloud, content: Any, says: str) -> None:
    async with cloud.edge() as edge:
        await ask(kube)
        await until(lambda: questions(edge))
        await say(edge, questions(edge)[0], content)
        got = await answer(kube)
        assert says in got["error"]
        assert "result" not in got


async def test_answers_of_a_device_have_room_together(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        for number in range(5):
            await ask(kube, f"question{number}")
            await until(lambda: len(questions(edge)) == number + 1)  # noqa: B023 - awaited here
            await say(edge, questions(edge)[-1], {"id": "x", "result": "x" * (MAX_ANSWER_BYTES - 2)})
            got = await answer(kube, f"question{number}")
        assert got == {"error": "the answers to other questions take all the room; ask again in a minute"}


async def test_questions_about_a_device_are_bounded(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        await put(kube, {f"question{number:02}": {"ask": "path"} for number in range(40)})
        await until(lambda: cloud.controller.queries.counts["removed"] == 8)
        await kube.until_status("thermo-1", lambda s: len(s["extensions"]["queries"]) == 32)
        assert len(questions(edge)) == 8
        assert "8 questions about the device wait already" in (await answer(kube, "question20"))["error"]


async def test_questions_of_the_whole_cluster_are_rationed(kube: Kubernetes, certs: Path) -> None:
    settings = ControllerSettings(queries=QuerySettings(rate=0.01, burst=2, timeout_s=0.1))
    async with running_cloud(kube, certs, controller=settings) as cloud:
        await declare(kube)
        async with cloud.edge() as edge:
            await put(kube, {f"question{number}": {"ask": "path"} for number in range(5)})
            assert "too many questions in the cluster" in (await answer(kube, "question4"))["error"]
            assert len(questions(edge)) == 2


async def test_old_entries_are_removed_also_those_from_before_a_restart(kube: Kubernetes, certs: Path) -> None:
    settings = ControllerSettings(queries=QuerySettings(timeout_s=0.1, keep_s=0.6))
    async with running_cloud(kube, certs, controller=settings) as cloud:
        await declare(kube)
        await ask(kube, "question1")
        await answer(kube, "question1")
        await asyncio.sleep(0.2)
        await ask(kube, "question2")
        await answer(kube, "question2")
        # The second is removed at a time of its own, though nothing else wakes anybody.
        await kube.until_status("thermo-1", lambda s: set(s["extensions"]["queries"]) == {"question2"})
        await kube.until_status("thermo-1", lambda s: not s["extensions"]["queries"])
        assert not cloud.controller.queries._asked
    await ask(kube, "question3")
    await put(kube, {"question4": {"ask": "path", "answer": {"result": 1, "answered_ms": 1}}})
    async with running_cloud(kube, certs, controller=settings) as cloud:
        assert "error" in await answer(kube, "question3")  # and not that there is no such device
        assert "is not connected" in (await answer(kube, "question3"))["error"]
        await kube.until_status("thermo-1", lambda s: not s["extensions"]["queries"])


async def test_an_entry_that_its_asker_removed_is_not_brought_back(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        await ask(kube)
        await until(lambda: questions(edge))
        await put(kube, {ID: None})
        await until(lambda: not cloud.controller.queries._asked)
        await say(edge, questions(edge)[0], {"id": ID, "result": {"late": True}})
        await until(lambda: cloud.controller.queries.counts["answer to no question"])
        assert not (await kube.status("thermo-1"))["extensions"]["queries"]


async def test_an_answer_is_written_once_the_api_is_back(kube: Kubernetes, certs: Path) -> None:
    settings = ControllerSettings(queries=QuerySettings(retry_s=0.1))
    async with running_cloud(kube, certs, controller=settings) as cloud:
        await declare(kube)
        async with cloud.edge() as edge:
            await ask(kube)
            await until(lambda: questions(edge))
            kube.cut = True
            await say(edge, questions(edge)[0], {"id": ID, "result": {"x": 1}})
            await until(lambda: cloud.controller.queries.counts["writes failed"])
            kube.cut = False
            assert await answer(kube) == {"result": {"x": 1}}


async def test_anything_under_queries_harms_nobody(kube: Kubernetes, cloud: Cloud) -> None:
    for odd in (3, "x", [1], {"": None}, {"abcdefgh": [], "abcdefgi": 3, "x" * 500: {}}):
        await kube.patch(STATUSES, KEY, {"status": {"extensions": {"queries": odd}}})
    await put(kube, {ID: {"ask": "path"}})
    assert "error" in await answer(kube)
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))


async def test_nothing_is_decided_before_devices_are_known(kube: Kubernetes) -> None:
    statuses = Informer(kube, STATUSES)
    links = Links(asyncio.get_running_loop().time)
    queries = Queries(kube, lambda _: None, statuses, links, knows_questions=lambda _: True)
    status = {"metadata": {"namespace": "default", "name": "thermo-1", "resourceVersion": "1"}}
    statuses.observe({**status, "status": {"extensions": {"queries": {ID: {"ask": "path"}}}}})
    queries.look(KEY, statuses.get(KEY))
    assert (queries.counts, len(queries._queue)) == ({}, 0)
    running = asyncio.create_task(queries.run())
    await until(lambda: queries.counts["answered with an error"])
    running.cancel()
    await asyncio.wait([running])
    queries.close()
