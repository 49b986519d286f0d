"""Downstream: devices and models reach their nodes, and what is wrong with them reaches DeviceStatus."""

from pathlib import Path
from typing import Any

from cloudcore.devicecontroller import ControllerSettings
from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import Key
from cloudedge import Message
from tests.cloudcore.support import Cloud, Edge, Kubernetes, device, model, running_cloud, until

THERMO_1 = Key("default", "thermo-1")


def kinds(messages: list[Message]) -> list[tuple[str, str]]:
    return [(m.route.operation, m.route.resource) for m in messages if not m.header.parent_msg_id]


async def received(edge: Edge, operation: str, resource: str) -> Message:
    """The first message like that which has not been taken out yet; takes out those before it, too."""

    def find() -> int | None:
        like = (operation, resource)
        hits = [i for i, m in enumerate(edge.received) if (m.route.operation, m.route.resource) == like]
        return hits[0] + 1 if hits else None

    index = await until(find, what=f"{operation} {resource} among {kinds(edge.received)}")
    message: Message = edge.received[index - 1]
    del edge.received[:index]
    return message


async def test_membership_detail_is_confirmed_then_listed_then_sent_in_full(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    for name in ("a", "b"):
        await kube.create(DEVICES, device(name))
    await kube.create(DEVICES, device("elsewhere", nodeName="edge-2"))
    await until(lambda: len(cloud.controller.devices) == 3)
    async with cloud.edge(ask=False) as edge:
        request = await edge.ask_membership()
        await until(lambda: len(edge.received) == 5)
        confirmation, detail, *objects = edge.received
        assert confirmation.header.parent_msg_id == request.id
        assert confirmation.is_ok
        assert confirmation.route.operation == "response"
        assert not detail.header.parent_msg_id
        assert (detail.route.source, detail.route.group) == ("devicecontroller", "twin")
        assert detail.data()["devices"] == [{"id": "default/a", "name": "a"}, {"id": "default/b", "name": "b"}]
        assert kinds(objects) == [
            ("insert", "default/devicemodel/thermo"),
            ("update", "default/device/a"),
            ("update", "default/device/b"),
        ]
        assert objects[1].header.resourceversion
        assert objects[1].data()["status"] == {}


async def test_changes_reach_the_node(kube: Kubernetes, cloud: Cloud) -> None:
    async with cloud.edge() as edge:
        await kube.create(MODELS, model())
        await kube.create(DEVICES, device())
        added = await received(edge, "update", "membership")
        assert added.data()["added_devices"] == [{"id": "default/thermo-1", "name": "thermo-1"}]
        assert added.data()["removed_devices"] is None
        await received(edge, "insert", "default/devicemodel/thermo")
        await received(edge, "insert", "default/device/thermo-1")

        await kube.patch(DEVICES, THERMO_1, {"metadata": {"labels": {"a": "b"}}})
        await kube.patch(DEVICES, THERMO_1, {"status": {"reportToCloud": True}})
        await kube.patch(MODELS, Key("default", "thermo"), {"metadata": {"labels": {"a": "b"}}})
        await kube.patch(DEVICES, THERMO_1, {"spec": {"properties": [{"name": "valve", "desired": {"value": "7"}}]}})
        changed = await received(edge, "update", "default/device/thermo-1")
        assert changed.data()["spec"]["properties"] == [{"name": "valve", "desired": {"value": "7"}}]
        assert not edge.received

        await kube.patch(MODELS, Key("default", "thermo"), {"spec": {"protocolConfigData": {"timeout": 5}}})
        changed = await received(edge, "update", "default/devicemodel/thermo")
        assert changed.data()["spec"]["protocolConfigData"] == {"timeout": 5}

        await kube.delete(DEVICES, THERMO_1)
        removed = await received(edge, "update", "membership")
        assert removed.data()["added_devices"] is None
        assert [d["id"] for d in removed.data()["removed_devices"]] == ["default/thermo-1"]
        await received(edge, "delete", "default/device/thermo-1")
        await received(edge, "delete", "default/devicemodel/thermo")


async def test_device_moves_between_nodes(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge("edge-1") as one, cloud.edge("edge-2") as two:
        await until(lambda: one.objects("thermo-1"))
        await one.answer(await one.report("thermo-1", {"valve": 5}))
        await kube.patch(DEVICES, THERMO_1, {"spec": {"nodeName": "edge-2"}})
        await received(one, "delete", "default/device/thermo-1")
        await received(one, "delete", "default/devicemodel/thermo")
        await received(two, "update", "membership")
        await received(two, "insert", "default/devicemodel/thermo")
        await received(two, "insert", "default/device/thermo-1")
        await one.answer(await one.report("thermo-1", {"valve": 6}))
        await two.answer(await two.report("thermo-1", {"valve": 7}))
        assert (await kube.status("thermo-1"))["extensions"]["summary"].startswith("valve=7")


async def test_device_made_again_under_its_name(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))
        await kube.delete(DEVICES, THERMO_1)
        fresh = await kube.create(DEVICES, device())

        def last() -> Message:
            return edge.objects("thermo-1")[-1]

        await until(
            lambda: last().route.operation != "delete" and last().data()["metadata"]["uid"] == fresh["metadata"]["uid"]
        )
        status = await kube.until_status("thermo-1", lambda s: s["extensions"]["reason"] == "nothing reported yet")
        assert "twins" not in status


async def test_model_that_comes_after_its_device(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        status = await kube.until_status("thermo-1", lambda s: s.get("extensions"))
        assert status["state"] == "unknown"
        assert status["extensions"]["reason"] == "spec.deviceModelRef.name: there is no DeviceModel default/thermo"
        assert status["extensions"]["problems"] == [
            {"reason": "MissingModel", "message": "spec.deviceModelRef.name: there is no DeviceModel default/thermo"}
        ]
        await kube.create(MODELS, model())
        await received(edge, "insert", "default/devicemodel/thermo")
        await received(edge, "insert", "default/device/thermo-1")
        await edge.report_state("thermo-1", "online")
        status = await kube.until_status("thermo-1", lambda s: s["state"] == "online")
        assert status["extensions"].keys() == {"since", "conditions"}


async def test_problems_that_one_object_cannot_show(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    wrong: list[dict[str, Any]] = [
        {"name": "temperature", "desired": {"value": "3"}},
        {"name": "valve", "desired": {"value": "11"}, "visitors": {"protocolName": "opcua", "configData": {}}},
        {"name": "pressure"},
    ]
    await kube.create(DEVICES, device(properties=wrong))
    await kube.create(DEVICES, device("fine"))
    async with cloud.edge() as edge:
        await edge.report_state("fine", "online")
        status = await kube.until_status("thermo-1", lambda s: s.get("extensions", {}).get("problems"))
        found = [(p["reason"], p.get("property")) for p in status["extensions"]["problems"]]
        assert found == [
            ("ReadOnlyProperty", "temperature"),
            ("InvalidDesired", "valve"),
            ("ProtocolMismatch", "valve"),
            ("UnknownProperty", "pressure"),
        ]
        await until(lambda: edge.objects("thermo-1"))  # it still runs, as far as it can
        await edge.report_state("thermo-1", "online")
        status = await kube.until_status("thermo-1", lambda s: s["state"] == "online")
        assert "ReadOnly" in status["extensions"]["reason"]
        await kube.patch(DEVICES, THERMO_1, {"spec": device()["spec"]})
        status = await kube.until_status("thermo-1", lambda s: "reason" not in s["extensions"])
        fine = await kube.until_status("fine", lambda s: s["state"] == "online")
        assert fine["extensions"].keys() == {"since", "conditions"}


async def test_broken_devices_harm_no_other(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    nested = {"protocolName": "modbus", "configData": {"serial": {"port": 1}}}
    await kube.create(DEVICES, device("nested", protocol=nested))
    await kube.create(DEVICES, device("no-node", nodeName=None))
    await kube.create(DEVICES, device("fine"))
    async with cloud.edge() as edge:
        await until(lambda: edge.objects("fine"))
        await edge.answer(await edge.report("fine", {"valve": 5}))
        for name, reason, words in (
            ("nested", "InvalidDevice", "spec.protocol.configData.serial"),
            ("no-node", "NoNode", "spec.nodeName"),
        ):
            status = await kube.until_status(name, lambda s: s.get("extensions", {}).get("problems"))
            assert status["state"] == "unknown"
            assert words in status["extensions"]["reason"]
            assert status["extensions"]["problems"][0]["reason"] == reason
        assert not edge.objects("nested")


async def test_absent_node_makes_states_unknown_until_it_is_back(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    settings = ControllerSettings(grace_s=0.3, patch_interval_s=0.01)
    async with running_cloud(kube, certs, controller=settings) as cloud:
        status = await kube.until_status("thermo-1", lambda s: "connected" in s["extensions"].get("reason", ""))
        assert status["extensions"]["reason"].startswith('node "edge-1" is not connected to CloudHub since ')
        async with cloud.edge() as edge:
            await edge.report("thermo-1", {"valve": 5})
            await edge.report_state("thermo-1", "online")
            await kube.until_status("thermo-1", lambda s: s["state"] == "online")
        status = await kube.until_status("thermo-1", lambda s: s["state"] == "unknown")
        assert status["extensions"]["reason"].startswith('node "edge-1" is not connected to CloudHub since ')
        assert status["extensions"]["summary"] == "valve=5 (stale)"
        kube.patched.clear()
        async with cloud.edge() as edge:
            await edge.report_state("thermo-1", "ok")
            status = await kube.until_status("thermo-1", lambda s: s["state"] == "ok")
            assert "reason" not in status["extensions"]
            assert len(kube.patched) == 1  # not first "not reported yet"


async def test_device_changed_while_its_node_was_away(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device("stays"))
    await kube.create(DEVICES, device("goes"))
    async with cloud.edge() as edge:
        await until(lambda: edge.objects("stays") and edge.objects("goes"))
    await kube.delete(DEVICES, Key("default", "goes"))
    await kube.create(DEVICES, device("comes"))
    await until(lambda: cloud.controller.devices.get(Key("default", "comes")))
    async with cloud.edge() as edge:
        detail = await received(edge, "update", "membership/detail")
        assert {d["id"] for d in detail.data()["devices"]} == {"default/stays", "default/comes"}
        await until(lambda: edge.objects("stays") and edge.objects("comes"))
        assert not edge.objects("goes")
