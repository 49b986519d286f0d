"""Questions that come through the cloud: answered, refused with a reason, or dropped and counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import Message, new_message
from cloudedge.facts import DeviceFacts, PropertyFacts
from cloudedge.message import now_ms
from cloudedge.queries import MAX_ANSWER_BYTES, Answer, Query, query_resource
from edgecore.config import EdgeCoreConfig, HistoryConfig
from edgecore.localapi.answers import QUEUE, fit_facts, fit_history
from tests.edgecore.api_client import get_text
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper

BOILER = "default/boiler-1"
RESOURCE = query_resource("default", "boiler-1")


class Asker:
    """Asks as CloudCore does."""

    def __init__(self, cloud: FakeCloud, socket: Path) -> None:
        self.cloud = cloud
        self._socket = socket

    def message(self, content: Any, *, resource: str = RESOURCE, operation: str = "get") -> Message:
        return new_message(
            source="devicecontroller", group="twin", operation=operation, resource=resource, content=content
        )

    def answers(self, to: Message) -> list[Message]:
        return [m for m in self.cloud.messages if m.header.parent_msg_id == to.id]

    async def ask(self, content: Any, *, resource: str = RESOURCE) -> Answer:
        question = self.message(content, resource=resource)
        await self.cloud.send(question)
        await self.cloud.until(lambda: self.answers(question), "an answer")
        (answer,) = self.answers(question)
        assert answer.route.resource == resource
        assert (answer.route.source, answer.route.group, answer.route.operation) == ("twin", "resource", "update")
        return answer.data(Answer)

    async def counted(self, outcome: str) -> int:
        _, text = await get_text(self._socket, "/metrics")
        key = f'kubetwin_edgecore_queries_total{{outcome="{outcome}"}} '
        return sum(int(float(line.removeprefix(key))) for line in text.splitlines() if line.startswith(key))

    async def until_counted(self, outcome: str, count: int) -> None:
        async with asyncio.timeout(15):
            while await self.counted(outcome) < count:  # noqa: ASYNC110 - of another program, as far as we see
                await asyncio.sleep(0.02)


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    """With history on."""
    modules = config.modules
    twin = msgspec.structs.replace(modules.device_twin, history=HistoryConfig(enable=True))
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(modules, device_twin=twin))


@pytest.fixture
def asker(edge: Edge, boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path) -> Asker:
    return Asker(cloud, tmp_path / "edgecore.sock")


async def test_the_path_of_a_device(asker: Asker, boiler: FakeMapper) -> None:
    await boiler.report(BOILER, temperature="21.5")
    answer = await asker.ask(Query("abcdefgh", "path", asked_ms=now_ms()))
    assert (answer.id, answer.error) == ("abcdefgh", "")
    assert now_ms() - 60_000 < answer.answered_ms <= now_ms()
    facts = msgspec.json.decode(answer.result, type=DeviceFacts)
    assert (facts.device, facts.declared, facts.properties["temperature"].value) == (BOILER, True, "21.5")
    assert await asker.counted("answered") == 1


async def test_the_path_of_a_device_that_is_not_here(asker: Asker) -> None:
    answer = await asker.ask(Query("abcdefgh", "path"), resource=query_resource("dev", "membership"))
    facts = msgspec.json.decode(answer.result, type=DeviceFacts)
    assert (facts.device, facts.declared) == ("dev/membership", False)


async def test_history(asker: Asker, boiler: FakeMapper) -> None:
    at = now_ms()
    for number in range(5):
        await boiler.report(BOILER, at_ms=at + number, temperature=str(number))
    await boiler.report(BOILER, at_ms=at, setpoint="9")
    answer = await asker.ask(Query("abcdefgh", "history", property="temperature", since_ms=at + 1, limit=2))
    assert msgspec.json.decode(answer.result) == {
        "values": [
            {"property": "temperature", "value": str(n), "type": "float", "collected": at + n, "quality": "good"}
            for n in (4, 3)
        ],
        "truncated": True,
    }
    nothing = await asker.ask({"id": "abcdefgh", "ask": "history", "since_ms": 2**80, "limit": -5})
    assert msgspec.json.decode(nothing.result) == {"values": [], "truncated": False}
    everything = msgspec.json.decode((await asker.ask(Query("abcdefgh", "history"))).result)
    assert (len(everything["values"]), everything["truncated"]) == (6, False)
    assert (await asker.ask(Query("abcdefgh", "history"), resource=query_resource("a", "b"))).error


async def test_history_that_is_off_is_said(config: EdgeCoreConfig, cloud: FakeCloud, tmp_path: Path) -> None:
    twin = msgspec.structs.replace(config.modules.device_twin, history=HistoryConfig())
    edge = Edge(msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, device_twin=twin)))
    await edge.start()
    answer = await Asker(cloud, tmp_path / "edgecore.sock").ask(Query("abcdefgh", "history"))
    await edge.stop()
    assert "modules.deviceTwin.history.enable" in answer.error
    assert bytes(answer.result) == b"null"


@pytest.mark.parametrize(
    ("content", "words"),
    (
        ({"id": "abcdefgh"}, "ask"),
        ({"id": "abcdefgh", "ask": "fortune"}, "fortune"),
        ({"id": "abcdefgh", "ask": "history", "limit": "many"}, "limit"),
    ),
)
async def test_a_question_that_makes_no_sense_is_answered_with_what_is_wrong(
    asker: Asker, content: Any, words: str
) -> None:
    answer = await asker.ask(content)
    assert answer.error
    assert words in answer.error


@pytest.mark.parametrize(
    "content", ({}, [], "text", {"id": 5, "ask": "path"}, {"id": "short"}, {"id": "UPPERCASE"}, {"id": "x" * 33})
)
async def test_what_nobody_could_match_an_answer_to_is_dropped(asker: Asker, content: Any) -> None:
    question = asker.message(content)
    await asker.cloud.send(question)
    await asker.until_counted("malformed", 1)
    assert (await asker.ask(Query("abcdefgh", "path"))).error == ""
    assert not asker.answers(question)


async def test_a_flood_is_bounded_and_what_follows_is_answered(asker: Asker, boiler: FakeMapper) -> None:
    flood = [asker.message(Query("abcdefgh", "path")) for _ in range(QUEUE * 10)]
    for question in flood:
        await asker.cloud.send(question)
    await boiler.report(BOILER, temperature="7")
    await asker.cloud.until_value(BOILER, "temperature", "7")
    await asker.until_counted("too many", 1)
    dropped = await asker.counted("too many")
    await asker.cloud.until(lambda: sum(len(asker.answers(q)) for q in flood) == len(flood) - dropped)
    assert (await asker.ask(Query("abcdefgh", "path"))).error == ""


async def test_membership_goes_where_it_went(asker: Asker, cloud: FakeCloud) -> None:
    """What else comes to group `twin` is no question, and questions are no matter of MetaManager's."""
    await cloud.send(new_message(source="devicecontroller", group="twin", operation="update", resource="membership"))
    await cloud.send(asker.message(Query("abcdefgh", "path"), operation="update"))
    await asker.until_counted("malformed", 1)
    assert (await asker.ask(Query("abcdefgh", "path"))).error == ""


value = st.fixed_dictionaries({"value": st.text(max_size=300), "property": st.just("p")})


@given(st.lists(value, max_size=20), st.integers(1, 60))
def test_a_history_fits_and_keeps_the_newest(values: list[dict[str, str]], times: int) -> None:
    values = [{**v, "value": v["value"] * times} for v in values]
    body = fit_history({"values": values, "truncated": False})
    fitted = msgspec.json.decode(body)
    assert len(body) <= MAX_ANSWER_BYTES
    assert fitted["values"] == values[: len(fitted["values"])]
    assert fitted["truncated"] == (len(fitted["values"]) < len(values))


@pytest.mark.parametrize("count", (1, 300, 3000))
def test_facts_fit_and_keep_what_is_wrong(count: int) -> None:
    good = {f"p{n}": PropertyFacts(1, value="x" * 200) for n in range(count)}
    bad = {f"q{n}": PropertyFacts(1, "bad", "no answer") for n in range(5)}
    facts = DeviceFacts("edge-1", BOILER, 1, properties={**good, **bad})
    body = fit_facts(facts)
    fitted = msgspec.json.decode(body, type=DeviceFacts)
    assert len(body) <= MAX_ANSWER_BYTES
    assert fitted.properties.keys() >= bad.keys()
    assert len(fitted.properties) + fitted.left_out == count + 5
