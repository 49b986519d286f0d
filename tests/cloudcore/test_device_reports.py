"""Upstream: reports of nodes become DeviceStatus objects."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from cloudcore.devicecontroller import ControllerSettings, DeviceController, controller
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Key
from cloudedge import Message, new_message
from cloudedge.message import now_ms
from cloudedge.resources import twin_resource
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import (
    Cloud,
    Kubernetes,
    device,
    entry,
    install_crds,
    model,
    open_client,
    running_cloud,
    until,
)


def twins(status: dict[str, Any]) -> dict[str, Any]:
    return {twin["propertyName"]: twin for twin in status.get("twins") or []}


def reported(status: dict[str, Any], name: str) -> str | None:
    twin = twins(status).get(name)
    return None if twin is None else twin["reported"]["value"]


async def test_ten_properties_are_one_patch_and_one_confirmation(kube: Kubernetes, cloud: Cloud) -> None:
    names = [f"p{number}" for number in range(10)]
    await kube.create(MODELS, model(properties=[{"name": n, "type": "INT", "accessMode": "ReadWrite"} for n in names]))
    created = await kube.create(DEVICES, device(properties=[{"name": n} for n in reversed(names)]))
    async with cloud.edge() as edge:
        await kube.until_status("thermo-1", lambda s: s["extensions"]["conditions"][1]["status"] == "True")
        kube.patched.clear()
        report = await edge.report("thermo-1", {name: number for number, name in enumerate(names)})
        answer = await edge.answer(report)
        assert (answer.route.source, answer.route.group, answer.route.operation) == (
            "devicecontroller",
            "twin",
            "response",
        )
        assert answer.route.resource == "twin"
        assert answer.is_ok
    assert len(kube.patched) == 1
    whole = await kube.get(STATUSES, Key("default", "thermo-1"))
    assert [twin["propertyName"] for twin in whole["status"]["twins"]] == list(reversed(names))
    assert reported(whole["status"], "p7") == "7"
    assert twins(whole["status"])["p7"]["reported"]["metadata"].keys() == {"timestamp", "type"}
    assert twins(whole["status"])["p7"]["observedDesired"] == {"value": ""}
    assert whole["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "devices.kubeedge.io/v1beta1",
            "kind": "Device",
            "name": "thermo-1",
            "uid": created["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


async def test_summary_state_and_reason(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.report("thermo-1", {"temperature": 21.5, "valve": 3}, type_="float")
        state = await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z")
        await edge.answer(state)
        status = await kube.until_status("thermo-1", lambda s: s.get("state") == "online" and s.get("twins"))
        assert status["extensions"].keys() == {"summary", "since", "conditions"}
        assert status["extensions"]["summary"] == "temperature=21.5 Celsius, valve=3"
        assert status["lastOnlineTime"] == "2026-01-02T03:04:05Z"
        stale = entry("21.5", type_="float")
        stale["actual"]["metadata"] |= {"quality": "stale", "reason": "no reply"}
        await edge.report("thermo-1", {"temperature": stale})
        await edge.report_state("thermo-1", "offline", reason="no reply from 127.0.0.1")
        status = await kube.until_status("thermo-1", lambda s: s.get("state") == "offline")
        status = await kube.until_status("thermo-1", lambda s: "stale" in s["extensions"]["summary"])
        assert status["extensions"]["reason"] == "no reply from 127.0.0.1"
        assert status["lastOnlineTime"] == "2026-01-02T03:04:05Z"
        assert status["extensions"]["summary"] == "temperature=21.5 Celsius (stale), valve=3 (stale)"


async def test_patch_rate_under_load_and_last_value(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    settings = ControllerSettings(patch_interval_s=0.4)
    async with running_cloud(kube, certs, controller=settings) as cloud, cloud.edge() as edge:
        await until(lambda: kube.created)
        start = asyncio.get_running_loop().time()
        number = 0
        while asyncio.get_running_loop().time() - start < 2:
            number += 1
            last = await edge.report("thermo-1", {"valve": number})
            await asyncio.sleep(0.005)
        await edge.answer(last)
        times = [at for at, _, _ in kube.patched]
        elapsed = times[-1] - times[0]
        assert 3 <= len(times) <= elapsed / 0.4 + 3  # one an interval, and two of credit
        assert min(b - a for a, b in itertools.pairwise(times)) >= 0.75 * 0.4 - 0.01
        assert reported(await kube.status("thermo-1"), "valve") == str(number)


async def test_unchanged_report_is_confirmed_without_a_patch(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        same = {"valve": entry("3", at_ms=now_ms())}
        await edge.answer(await edge.report("thermo-1", same))
        await edge.answer(await edge.report_state("thermo-1", "ok"))
        before = len(kube.patched)
        await edge.answer(await edge.report("thermo-1", same))
        assert len(kube.patched) == before


async def test_older_collection_time_does_not_overwrite(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        now = now_ms()
        await edge.answer(await edge.report("thermo-1", {"valve": entry("2", at_ms=now)}))
        await edge.answer(await edge.report("thermo-1", {"valve": entry("1", at_ms=now - 1000)}))
        assert reported(await kube.status("thermo-1"), "valve") == "2"


async def test_nothing_is_confirmed_while_the_api_is_away(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    for number in range(3):
        await kube.create(DEVICES, device(f"d{number}"))
    async with cloud.edge() as edge:
        await until(lambda: len(kube.created) == 3)
        kube.cut = True
        reports = [await edge.report(f"d{n % 3}", {"valve": n}) for n in range(30)]
        fence = await edge.report("no-such-device", {"valve": 1})
        await edge.answer(fence)  # so the reports before it have been taken
        assert not any(edge.answers(report) for report in reports)
        kube.cut = False
        for report in reports:
            await edge.answer(report)
        for number in range(3):
            assert reported(await kube.status(f"d{number}"), "valve") == str(27 + number)


async def test_api_server_restart(tmp_path: Path, api: ApiServer, kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        await api.__aexit__(None, None, None)
        report = await edge.report("thermo-1", {"valve": 2})
        async with ApiServer(tmp_path / "api"):
            await edge.answer(report)
            assert reported(await kube.status("thermo-1"), "valve") == "2"
            await kube.patch(DEVICES, Key("default", "thermo-1"), {"spec": {"nodeName": "edge-2"}})
            await until(lambda: [m for m in edge.objects("thermo-1") if m.route.operation == "delete"])


async def test_deleted_and_edited_status_comes_back(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))
        await kube.delete(STATUSES, Key("default", "thermo-1"))
        await kube.until_status("thermo-1", lambda s: reported(s, "valve") == "5")
        edited = {
            "status": {"twins": [{"propertyName": "valve", "reported": {"value": "x"}}], "extensions": {"mine": 1}}
        }
        await kube.patch(STATUSES, Key("default", "thermo-1"), edited)
        status = await kube.until_status("thermo-1", lambda s: reported(s, "valve") == "5")
        assert status["extensions"]["mine"] == 1


async def test_values_survive_a_restart_of_the_cloud(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with running_cloud(kube, certs) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"temperature": 1.5, "valve": 5}))
    async with running_cloud(kube, certs) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 6}))
        status = await kube.status("thermo-1")
        assert (reported(status, "temperature"), reported(status, "valve")) == ("1.5", "6")


async def test_removed_property_is_pruned_though_nobody_reports(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"temperature": 1.5, "valve": 5}))
    await kube.patch(DEVICES, Key("default", "thermo-1"), {"spec": {"properties": [{"name": "valve"}]}})
    status = await kube.until_status("thermo-1", lambda s: set(twins(s)) == {"valve"})
    assert status["extensions"]["summary"].startswith("valve=5")


async def test_a_node_reports_only_its_own_devices(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    await kube.create(DEVICES, device("other", nodeName="edge-2"))
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("other", {"valve": 5}))
        await edge.answer(await edge.report("no-such", {"valve": 5}))
        await edge.answer(await edge.report_state("other", "online"))
        await edge.answer(await edge.report("thermo-1", {"valve": 5}))
    assert cloud.controller.counts == {
        "refused: device of another node": 2,
        "refused: device that does not exist": 1,
    }
    assert not (await kube.status("other")).get("twins")


async def test_malformed_reports_are_confirmed_counted_and_harm_nothing(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        route = {"source": "twin", "group": "resource", "operation": "update"}
        contents: list[Any] = [None, "not json", 17, {"twin": 3}, {"twin": None}, []]
        for content in contents:
            resource = "device/default/thermo-1/twin/edge_updated"
            await edge.answer(await edge.send(**route, resource=resource, content=content))
        contents = ["{", {"device": None}, {"device": {"state": 3}}, {"device": {}}]
        for content in contents:
            resource = "device/default/thermo-1/state/update"
            await edge.answer(await edge.send(**route, resource=resource, content=content))
        for resource in ("device/default/thermo-1", "device/default", "x", "device/a/b/c/twin/edge_updated"):
            await edge.answer(await edge.send(**route, resource=resource, content={}))
        mixed = {"valve": entry("5"), "temperature": {"actual": {"value": 3}}, "gone": None, "unknown": entry("1")}
        await edge.answer(await edge.report("thermo-1", mixed))
    status = await kube.status("thermo-1")
    assert set(twins(status)) == {"valve"}
    assert cloud.controller.counts["refused: report that cannot be read"] == 10
    assert cloud.controller.counts["refused: resource that is no report"] == 4
    assert cloud.controller.counts["refused: property that cannot be read"] == 1


async def test_reports_before_the_caches_are_there_wait_for_them(tmp_path: Path, certs: Path) -> None:
    async with ApiServer(tmp_path / "api") as api:
        kube = await open_client(api)
    async with kube, running_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        report = await edge.report("thermo-1", {"valve": 5})
        request = await edge.ask_membership()
        await until(lambda: cloud.controller._early)
        assert not edge.received
        async with ApiServer(tmp_path / "api"):
            await install_crds(kube)  # until now a server without the kinds, as on a fresh cluster
            await edge.answer(request)
            await edge.answer(report)
            assert cloud.controller.counts == {"refused: device that does not exist": 1}


async def test_a_new_last_online_time_travels_with_the_next_twins(kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    settings = ControllerSettings(patch_interval_s=0.2)  # alone it would wait five intervals
    async with running_cloud(kube, certs, controller=settings) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z"))
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        before = len(kube.patched)
        await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:15Z")
        await edge.answer(await edge.report("thermo-1", {"valve": 2}))
        assert len(kube.patched) == before + 1
        status = await kube.status("thermo-1")
        assert (status["lastOnlineTime"], reported(status, "valve")) == ("2026-01-02T03:04:15Z", "2")
        alone = await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:25Z")
        await edge.answer(alone)  # at once, for the next state must not wait so long
        assert (await kube.status("thermo-1"))["lastOnlineTime"] == "2026-01-02T03:04:15Z"
        await kube.until_status("thermo-1", lambda s: s["lastOnlineTime"] == "2026-01-02T03:04:25Z")


async def test_a_device_that_moved_is_not_what_its_old_node_said(kube: Kubernetes, cloud: Cloud) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge("edge-1") as old, cloud.edge("edge-2") as new:
        await old.report("thermo-1", {"valve": entry("5", at_ms=now_ms() - 60_000)})
        await old.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z")
        await kube.until_status("thermo-1", lambda s: s.get("state") == "online")
        await kube.patch(DEVICES, Key("default", "thermo-1"), {"spec": {"nodeName": "edge-2"}})
        status = await kube.until_status("thermo-1", lambda s: s["state"] == "unknown")
        assert status["extensions"]["reason"] == "no state reported yet"
        assert status["extensions"]["summary"] == "valve=5 (stale)"
        assert status["lastOnlineTime"] == "2026-01-02T03:04:05Z"
        await new.report("thermo-1", {"valve": 6})  # which is of now, though nobody says a state
        await kube.until_status("thermo-1", lambda s: s["extensions"]["summary"] == "valve=6")
        await new.report_state("thermo-1", "online")
        await kube.until_status("thermo-1", lambda s: s["state"] == "online")


async def test_a_node_whose_clock_is_wrong_is_named_once(
    kube: Kubernetes, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        for number in range(2):
            late = entry(str(number), at_ms=now_ms() - 3_600_000)
            await edge.answer(await edge.report("thermo-1", {"valve": late}))
    assert reported(await kube.status("thermo-1"), "valve") == "1"
    assert cloud.controller.counts == {"refused: value older than the one known": 2}
    assert sum("is the node's clock right?" in r.message and "3600 s" in r.message for r in caplog.records) == 1


async def test_statuses_without_a_difference_let_others_work(kube: Kubernetes, cloud: Cloud) -> None:
    """After a restart of the cloud thousands of reports say what the API has already."""
    await kube.create(MODELS, model())
    names = [f"thermo-{number}" for number in range(50)]
    for name in names:
        await kube.create(DEVICES, device(name))
    await until(lambda: len(kube.created) == len(names))
    await until(lambda: all(cloud.controller.statuses.get(Key("default", name)) for name in names))
    await until(lambda: not len(cloud.controller.writer._queue))
    answered: list[str] = []
    most_at_once = 0

    class Link:
        node = "edge-1"

        def post(self, message: Message, /) -> None:
            answered.append(message.header.parent_msg_id)

        def put_object(self, message: Message, /) -> None:
            raise AssertionError(message)

    for name in names:
        key = Key("default", name)
        declared = cloud.controller.devices.get(key)
        assert declared is not None
        cloud.controller.writer.update(key, declared, lambda known: known, report_id=name, link=Link())
    while len(answered) < len(names):
        before = len(answered)
        await asyncio.sleep(0)
        most_at_once = max(most_at_once, len(answered) - before)
    assert most_at_once <= 32  # one a worker


async def test_reports_that_wait_for_the_caches_cost_their_own_node_alone(
    kube: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "MAX_EARLY", 30)
    device_controller = DeviceController(kube)
    nodes = [Node(f"edge-{number}") for number in range(20)]
    for node in nodes:
        device_controller.node_connected(node)
        said = [("get", "membership/detail"), *(("update", twin_resource("default", name)) for name in ("a", "b"))]
        for operation, resource in said:
            message = new_message(source="twin", group="resource", operation=operation, resource=resource, content={})
            device_controller.take(node, message)
    assert device_controller.counts["dropped: too early"] == 10
    judged: list[str] = []
    monkeypatch.setattr(device_controller, "_may_judge", lambda link: judged.append(link.node))
    device_controller.downstream.caches_complete()  # with thousands of nodes, each must not look at all others' again
    assert len(judged) <= 40
    device_controller.node_disconnected(nodes[19])
    device_controller.node_connected(Node("edge-18"))
    monkeypatch.undo()
    running = asyncio.create_task(device_controller.run())
    try:
        await until(lambda: not device_controller._early)
        assert (device_controller._early_count, device_controller._early_bytes) == (0, 0)
        answered = {node.node: [m for m in node.posted if m.header.parent_msg_id and m.is_ok] for node in nodes}
        # The membership, and reports that will never be written; where the node has gone it says them again.
        assert [len(answered[f"edge-{number}"]) for number in (0, 4, 5, 17, 18, 19)] == [1, 1, 3, 3, 1, 1]
    finally:
        running.cancel()


class Node:
    def __init__(self, node: str) -> None:
        self.node = node
        self.posted: list[Message] = []

    def post(self, message: Message) -> None:
        self.posted.append(message)

    def put_object(self, message: Message) -> None: ...
