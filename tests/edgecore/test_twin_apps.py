"""Local apps at a running edge core: what becomes of what they say, and what of the rest of the device they hear."""

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

import pytest

from cloudedge import new_message
from cloudedge.message import now_ms
from dmi import Desired, DeviceId, NodeName, Reported, Twin
from edgecore.bus import Bus, TwinsGone, TwinsReported
from edgecore.devicetwin import apps as apps_module
from edgecore.devicetwin.publisher import TwinPublisher
from edgecore.store import StateRow, TwinRow
from tests.edgecore.local_apps import (
    DELTA,
    DEVICE,
    DOCUMENT,
    NODE_TOPIC,
    RESULT,
    TIME,
    TYPES,
    UPDATE,
    UUID,
    Apps,
    answer,
    side,
    twin,
)
from tests.edgecore.peers import DEADLINE_S, NODE, FakeCloud, FakeMapper, device_object, model_object


async def test_devices_that_come_and_go(apps: Apps, cloud: FakeCloud) -> None:
    await cloud.put(device_object("boiler-2"))
    member = {"id": "default/boiler-2", "name": "boiler-2"}
    assert await apps.hear(1) == [(f"{NODE_TOPIC}/updated", answer(UUID, added_devices=[member], removed_devices=None))]
    await cloud.put(device_object("boiler-2", properties=["setpoint"]), "update")
    await apps.has_heard_all()  # nothing is new
    await cloud.delete("Device", "default", "boiler-2")
    assert await apps.hear(1) == [(f"{NODE_TOPIC}/updated", answer(UUID, added_devices=None, removed_devices=[member]))]


async def test_what_a_mapper_reports_is_heard(apps: Apps, mapper: FakeMapper) -> None:
    async with mapper.running():
        at = now_ms()
        report = Twin("setpoint", Reported("1", "int", at), Desired("2", "int", at, "pending"))
        await mapper.client.report_twins(DeviceId("default/boiler-1"), [report])
        seen = twin("int", expected="2", actual="1")
        seen["expected"]["metadata"]["write"] = "pending"
        assert await apps.hear(3) == [
            (RESULT, answer("", twin={"setpoint": seen})),
            (DOCUMENT, answer("", twin={"setpoint": {"last": None, "current": seen}})),
            (DELTA, answer(UUID, twin={"setpoint": seen}, delta={"setpoint": "2"})),
        ]
        assert apps.reported == [TwinsReported(DeviceId("default/boiler-1"), (report,))]
        await mapper.client.report_twins(DeviceId("default/boiler-1"), [report])  # says nothing new
        await mapper.client.report_state(DeviceId("default/boiler-1"), "online")
        ((topic, content),) = await apps.hear(1)
        assert topic == f"{DEVICE}/state/update/result"
        assert content["device"] == {"name": "boiler-1", "state": "online", "lastOnlineTime": TIME}


async def test_what_an_app_says_reaches_the_cloud(apps: Apps, cloud: FakeCloud) -> None:
    both = {"expected": {"value": "30"}, "actual": {"value": "25"}}
    await apps.say(UPDATE, {"event_id": "e", "twin": {"setpoint": both}})
    sent = await cloud.until_value("default/boiler-1", "setpoint", "25")
    assert sent["expected"]["value"] == "30"
    assert (sent["actual_version"], sent["expected_version"]) == ({"cloud": 0, "edge": 1}, {"cloud": 0, "edge": 1})
    await apps.say(f"{DEVICE}/state/update", {"event_id": "e", "state": "online"})
    state = await cloud.until_state("default/boiler-1", "online")
    assert abs(now_ms() - state["since"]) < 60_000


async def test_a_deleted_twin_is_null_and_a_write_revives_it(apps: Apps, cloud: FakeCloud) -> None:
    await apps.ask(UPDATE, {"twin": {"label": {"actual": {"value": "a"}}}}, 2)
    await cloud.until_value("default/boiler-1", "label", "a")
    assert await apps.ask(UPDATE, {"event_id": "d", "twin": {"label": None}}, 2) == [
        (RESULT, answer("d", twin={"label": None})),
        (DOCUMENT, answer("d", twin={"label": {"last": twin("string", actual="a"), "current": None}})),
    ]
    assert await apps.ask(f"{DEVICE}/twin/get", {"event_id": "g"}) == [
        (f"{DEVICE}/twin/get/result", answer("g", twin={}))
    ]
    await cloud.until(lambda: cloud.twins["default/boiler-1", "label"]["metadata"] == {"type": "deleted"})
    assert "value" not in cloud.twins["default/boiler-1", "label"]["actual"]
    alive = {"label": twin("string", actual="b", optional=False)}
    assert await apps.ask(
        UPDATE, {"event_id": "r", "twin": {"label": {"actual": {"value": "b"}, "optional": False}}}, 2
    ) == [
        (RESULT, answer("r", twin=alive)),
        (DOCUMENT, answer("r", twin={"label": {"last": None, "current": alive["label"]}})),
    ]
    sent = await cloud.until_value("default/boiler-1", "label", "b")
    assert (sent["actual_version"]["edge"], sent["optional"]) == (3, False)
    ((_, refused),) = await apps.ask(UPDATE, {"event_id": "d", "twin": {"label": None}})
    assert (refused["code"], "'label'" in refused["reason"]) == (400, True)


async def test_a_sync_that_knows_less_is_answered_with_what_is_here(apps: Apps, cloud: FakeCloud) -> None:
    await apps.ask(UPDATE, {"twin": {"setpoint": {"expected": {"value": "1"}}}}, 3)
    await cloud.until(lambda: ("default/boiler-1", "setpoint") in cloud.twins)
    cloud.twins.clear()
    late = {"expected": {"value": "9"}, "expected_version": {"cloud": 5, "edge": 0}}
    await apps.say(f"{DEVICE}/twin/cloud_updated", {"event_id": "s", "twin": {"setpoint": late}})
    await cloud.until(lambda: ("default/boiler-1", "setpoint") in cloud.twins, "the edge's own is sent")
    assert cloud.twins["default/boiler-1", "setpoint"]["expected"]["value"] == "1"


async def test_a_cloud_may_sync_too(apps: Apps, cloud: FakeCloud) -> None:
    message = new_message(
        source="devicecontroller",
        group="twin",
        operation="update",
        resource="device/default/boiler-1/twin/cloud_updated",
        content={
            "event_id": "c",
            "twin": {"setpoint": {"expected": {"value": "7"}, "expected_version": {"cloud": 1, "edge": 0}}},
        },
    )
    await cloud.send(message)
    (topic, content), _ = await apps.hear(2)
    assert (topic, content["event_id"]) == (DOCUMENT, "c")
    assert content["twin"]["setpoint"]["current"] == twin("int", expected="7")


@pytest.mark.parametrize("namespace", ("dev", "device", "hw", "events", "twin", "update", "v"))
async def test_any_namespace_will_do(apps: Apps, cloud: FakeCloud, namespace: str) -> None:
    """Upstream drops all that is said of devices in these (W10)."""
    for obj in (model_object(types=TYPES), device_object(properties=list(TYPES))):
        obj["metadata"]["namespace"] = namespace
        await cloud.put(obj)
    await apps.hear(1)
    topic = f"$hw/events/device/{namespace}/boiler-1/twin/update"
    (first, _), _ = await apps.ask(topic, {"event_id": "n", "twin": {"setpoint": {"actual": {"value": "1"}}}}, 2)
    assert first == f"{topic}/result"
    await cloud.until_value(f"{namespace}/boiler-1", "setpoint", "1")


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("label", 'two words, {"a": [1]} ü 🚢 50% + = \\'),
        ("label", ""),
        ("big", "1e300"),
        ("temperature", "21.5"),
        ("setpoint", "-9223372036854775808"),
        ("raw", "0aff+/="),
        ("on", "true"),
    ),
)
async def test_any_value_of_its_type_comes_back(apps: Apps, cloud: FakeCloud, name: str, value: str) -> None:
    """Upstream takes neither spaces nor `+`, and no double or bytes (W24)."""
    await apps.ask(UPDATE, {"twin": {name: {"actual": {"value": value}}}}, 2)
    ((_, content),) = await apps.ask(f"{DEVICE}/twin/get", {"event_id": "g"})
    assert content["twin"][name]["actual"]["value"] == value
    await cloud.until_value("default/boiler-1", name, value)


@pytest.mark.parametrize(
    "payload",
    (
        b"",
        b"\xff",
        b"[" * 100_000,
        b"null",
        b'{"twin": null}',
        b'{"twin": []}',
        b'{"twin": {"setpoint": 5}}',
        b'{"twin": {"setpoint": {"actual": "5"}}}',
        b'{"twin": {"setpoint": {"metadata": []}}}',
        b'{"twin": {"setpoint": {"optional": "yes"}}}',
        b'{"twin": {"": {"actual": {"value": "5"}}}}',
        b'{"twin": {"label": {"actual": {"value": "\\ud800"}}}}',
        b'{"event_id": 5, "twin": {}}',
        json.dumps({"event_id": "x" * 300, "twin": {}}).encode(),
        json.dumps({"twin": {"n" * 200: {}}}).encode(),
        json.dumps({"twin": {str(i): None for i in range(5000)}}).encode(),
        json.dumps({"twin": {"label": {"actual": {"value": "ü" * 40_000}}}}).encode(),
        b'{"twin": {}}' + b" " * (1024 * 1024),
    ),
    ids=range(18),
)
async def test_bad_payloads_are_answered_and_nothing_else_suffers(apps: Apps, payload: bytes) -> None:
    await apps.say(UPDATE, payload)
    topic, content = (await apps.hear(1))[0]
    assert (topic, content["code"]) == (RESULT, 400)
    assert content["reason"].startswith("device default/boiler-1: ")
    assert len(content["reason"]) < 400
    apps.heard.clear()
    await apps.ask(UPDATE, {"twin": {"setpoint": {"actual": {"value": "1"}}}}, 2)


@pytest.mark.parametrize("said", ({}, {"actual": {}}, {"actual": None}, {"actual": {"value": None}}, {"expected": {}}))
async def test_what_is_missing_is_absent(apps: Apps, said: Mapping[str, Any]) -> None:
    """Some of these end upstream's worker, with the device locked (W11)."""
    await apps.ask(UPDATE, {"twin": {"label": {"actual": {"value": "a"}}}}, 2)
    assert await apps.ask(UPDATE, {"event_id": "m", "twin": {"label": said}}) == [
        (RESULT, answer("m", twin={"label": {"optional": True, "metadata": {"type": "string"}}}))
    ]
    ((_, content),) = await apps.ask(f"{DEVICE}/twin/get", {"event_id": "g"})
    assert content["twin"]["label"]["actual"]["value"] == "a"


async def test_a_known_device_declared_again_keeps_everything(apps: Apps, cloud: FakeCloud) -> None:
    """Upstream answers with a false 400 (W20)."""
    await apps.ask(UPDATE, {"twin": {"label": {"actual": {"value": "a"}}}}, 2)
    await cloud.put(device_object(properties=list(TYPES)), "insert")
    ((topic, content),) = await apps.ask(f"{DEVICE}/twin/get", {"event_id": "g"})
    assert (topic, content["twin"]["label"]["actual"]["value"]) == (f"{DEVICE}/twin/get/result", "a")


async def test_going_offline_keeps_when_it_was_online(apps: Apps, cloud: FakeCloud) -> None:
    """Upstream erases it (W23). And what an offline device reported is not fresh."""
    await apps.ask(UPDATE, {"twin": {"label": {"actual": {"value": "a"}}}}, 2)
    topic = f"{DEVICE}/state/update"
    await apps.ask(topic, {"state": "online"})
    ((_, content),) = await apps.ask(topic, {"event_id": "o", "state": "offline"})
    assert content["device"] == {"name": "boiler-1", "state": "offline", "lastOnlineTime": TIME}
    ((_, content),) = await apps.ask(f"{DEVICE}/twin/get", {"event_id": "g"})
    assert content["twin"]["label"]["actual"]["metadata"] == {
        "timestamp": TIME,
        "quality": "stale",
        "reason": "the device is offline",
    }
    ((_, content),) = await apps.ask(f"{NODE_TOPIC}/get", {"event_id": "g"})
    assert content["devices"] == [
        {"id": "default/boiler-1", "name": "boiler-1", "state": "offline", "last_online": TIME}
    ]


async def test_an_unwritable_store_answers_500(apps: Apps, monkeypatch: pytest.MonkeyPatch, cloud: FakeCloud) -> None:

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(apps_module, "put_twins", full)
        ((topic, content),) = await apps.ask(UPDATE, {"event_id": "f", "twin": {"label": {"actual": {"value": "a"}}}})
    assert (topic, content["code"], content["event_id"]) == (RESULT, 500, "f")
    assert "disk is full" in content["reason"]
    await apps.ask(UPDATE, {"twin": {"label": {"actual": {"value": "a"}}}}, 2)


async def test_many_at_once_are_all_done(apps: Apps, cloud: FakeCloud) -> None:
    count = 1000
    async with asyncio.timeout(DEADLINE_S):
        for first in range(0, count, 100):
            await asyncio.gather(
                *(
                    apps.say(UPDATE, {"event_id": str(i), "twin": {"setpoint": {"actual": {"value": str(i)}}}})
                    for i in range(first, first + 100)
                )
            )
    heard = await apps.hear(2 * count)
    results = [content["event_id"] for topic, content in heard if topic == RESULT]
    assert results == [str(i) for i in range(count)]
    await cloud.until_value("default/boiler-1", "setpoint", str(count - 1))


@pytest.fixture
def short_graces(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.devicetwin.mappers.NO_MAPPER_GRACE_S", 0.3)
    monkeypatch.setattr("edgecore.devicetwin.lease.LEASE_S", 1.0)


async def test_an_app_can_stand_for_a_mapper(
    short_graces: None, apps: Apps, cloud: FakeCloud, mapper: FakeMapper
) -> None:
    """A device without a mapper is unknown, until an app says how it is; and what a mapper says counts more."""
    state = (await cloud.until_state("default/boiler-1", "unknown"))["reason"]
    assert "no mapper" in state
    ((_, content),) = await apps.hear(1)
    assert content["device"] == {"name": "boiler-1", "state": "unknown", "reason": state}
    _, (_, content) = await apps.ask(f"{DEVICE}/state/update", {"event_id": "s", "state": "online"}, 2)
    assert content["device"] == {"name": "boiler-1", "state": "online", "lastOnlineTime": TIME}
    await cloud.until_state("default/boiler-1", "online")
    async with mapper.running():
        await mapper.client.report_state(DeviceId("default/boiler-1"), "unhealthy")
        await cloud.until_state("default/boiler-1", "unhealthy")
    await cloud.until_state("default/boiler-1", "unknown")
    results = [event.payload for event in apps.heard if event.topic == f"{DEVICE}/state/update/result"]
    heard = [json.loads(payload)["device"] for payload in results]
    assert [said["state"] for said in heard][-2:] == ["unhealthy", "unknown"], (
        "apps hear what edge core finds out itself"
    )
    assert "mapper" in heard[-1]["reason"]
    assert {one.device for one in apps.shown} == {"default/boiler-1"}
    assert len({one.since_ms for one in apps.shown}) >= 3, "each state has its own time"


async def test_a_request_is_stored_and_answered_when_it_counts_as_taken(apps: Apps) -> None:
    """Until then a broker keeps it."""
    await apps.say(UPDATE, {"event_id": "e", "twin": {"label": {"actual": {"value": "a"}}}})
    assert [event.topic for event in apps.heard] == [RESULT, DOCUMENT]


async def test_values_that_are_no_more_are_told(apps: Apps, cloud: FakeCloud) -> None:
    device = DeviceId("default/boiler-1")
    await apps.say(UPDATE, {"twin": {name: {"actual": {"value": "1"}} for name in ("label", "big", "raw")}})
    await apps.say(UPDATE, {"twin": {"label": None}})
    assert apps.gone == [TwinsGone(device, ("label",))]
    await cloud.put(device_object(properties=["label", "big"]), "update")
    await apps.until_gone(2)
    assert apps.gone[1].device == device
    assert set(apps.gone[1].names) == TYPES.keys() - {"label", "big"}
    await cloud.delete("Device", "default", "boiler-1")
    await apps.until_gone(3)
    assert apps.gone[2] == TwinsGone(device, ("label", "big"))


def test_a_silent_bus_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made for nobody")

    for name in ("reported_result", "document_of", "delta_of", "update_result", "state_result", "membership_updated"):
        monkeypatch.setattr(f"edgecore.devicetwin.publisher.{name}", never)
    publisher, device = TwinPublisher(Bus(), node=NodeName(NODE)), DeviceId("n/d")
    rows = {"p": TwinRow(Twin("p", Reported("1", "int", 5), Desired("2", "int", 5)), 1)}
    publisher.publish_update(device, {}, rows)
    publisher.answer_update(device, {}, {}, rows, "e")
    publisher.publish_sync(device, {}, rows, "e")
    publisher.publish_state(device, StateRow("online"))
    publisher.publish_added(device)
    publisher.publish_removed(device)


async def test_a_result_has_the_sides_that_were_given(apps: Apps) -> None:
    both = {"expected": {"value": "2"}, "actual": {"value": "2"}}
    await apps.ask(UPDATE, {"twin": {"setpoint": both}}, 2)
    for given, value in (("actual", "3"), ("expected", "4")):
        (_, result), (_, document), _ = await apps.ask(UPDATE, {"twin": {"setpoint": {given: {"value": value}}}}, 3)
        assert result["twin"] == {"setpoint": {given: side(value), "optional": True, "metadata": {"type": "int"}}}
        assert document["twin"]["setpoint"]["current"].keys() >= {"expected", "actual"}
