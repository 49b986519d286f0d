"""The whole edge core between a real channel and a real mapper socket."""

from cloudedge import new_message
from dmi import Device
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object


async def test_connects_says_it_is_there_and_asks_for_its_devices(edge: Edge, cloud: FakeCloud) -> None:
    await cloud.until(lambda: len(cloud.messages) >= 2)
    assert [m.route.operation for m in cloud.messages[:2]] == ["keepalive", "get"]
    assert cloud.messages[1].route.resource == "membership/detail"


async def test_a_report_reaches_the_cloud_in_one_message(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await boiler.report("default/boiler-1", at_ms=1_700_000_000_000, temperature="21.5", setpoint="3")
    twin = await cloud.until_value("default/boiler-1", "temperature", "21.5")
    assert twin["actual"]["metadata"] == {"timestamp": 1_700_000_000_000}
    assert twin["metadata"] == {"type": "float"}
    assert twin["actual_version"] == {"cloud": 0, "edge": 1}
    reports = [m for m in cloud.messages if m.route.resource.endswith("edge_updated")]
    assert len(reports) == 1
    assert reports[0].data()["twin"].keys() == {"temperature", "setpoint"}


async def test_a_state_reaches_the_cloud_with_its_reason(boiler: FakeMapper, cloud: FakeCloud) -> None:
    device = next(iter(boiler.devices))
    await boiler.client.report_state(device, "online")
    state = await cloud.until_state("default/boiler-1", "online")
    seen = state["lastOnlineTime"]
    assert seen.endswith("Z")
    await boiler.client.report_state(device, "offline", "no route to host")
    state = await cloud.until_state("default/boiler-1", "offline")
    assert state["reason"] == "no route to host"
    assert state["lastOnlineTime"] >= seen


async def test_a_desired_change_reaches_the_mapper(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await cloud.put(device_object(desired={"setpoint": "35"}), "update")
    device: Device = await boiler.until_device(
        "boiler-1", lambda d: (p := d.find("setpoint")) and p.desired.value == "35"
    )
    assert device.model == "boiler"
    assert boiler.calls == [("device", "default/boiler-1")]


async def test_a_new_device_is_handed_over_after_its_model(edge: Edge, cloud: FakeCloud, mapper: FakeMapper) -> None:
    async with mapper.running():
        assert mapper.devices == {}
        await cloud.put(device_object())  # before its model
        await cloud.put(model_object())
        await mapper.until_device("boiler-1")
        assert mapper.calls == [("model", "default/boiler"), ("device", "default/boiler-1")]


async def test_a_changed_model_reaches_the_mapper(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await cloud.put(model_object(types={"temperature": "DOUBLE", "setpoint": "INT"}), "update")
    await boiler.until(lambda: ("device", "default/boiler-1") in boiler.calls)
    model = next(iter(boiler.models.values()))
    assert model.properties[0].type == "DOUBLE"


async def test_a_deleted_device_is_removed_once(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await cloud.delete("Device", "default", "boiler-1")
    await boiler.until(lambda: not boiler.devices)
    await cloud.put(model_object("other"))
    assert [c for c in boiler.calls if c[0] == "remove"] == [("remove", "default/boiler-1")]


async def test_other_kinds_are_stored_and_acknowledged(edge: Edge, cloud: FakeCloud) -> None:
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cm", "namespace": "default"},
        "data": {},
    }
    await cloud.put(config_map, "update")
    ack = cloud.messages[-1]
    assert (ack.route.source, ack.route.group, ack.is_ok) == ("devicecontroller", "resource", True)


async def test_membership_messages_alone_remove_nothing(boiler: FakeMapper, cloud: FakeCloud) -> None:
    removed = {
        "event_id": "e",
        "timestamp": 0,
        "added_devices": None,
        "removed_devices": [{"id": "default/boiler-1", "name": "boiler-1"}],
    }
    await cloud.send(
        new_message(source="devicecontroller", group="twin", operation="update", resource="membership", content=removed)
    )
    await boiler.report("default/boiler-1", temperature="1")
    await cloud.until_value("default/boiler-1", "temperature", "1")
