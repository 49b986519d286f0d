"""Kubernetes Events for transitions: shown by kubectl, few, and never in the way of a status."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudcore.devicecontroller import ControllerSettings
from cloudcore.devicecontroller.events import EVENTS, EventRecorder, EventSettings, Transition
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Forbidden, Key, Kind, Object
from kubetwin.apiserver import ApiServer
from tests.cloudcore.kubectl import kubectl
from tests.cloudcore.support import Kubernetes, device, model, running_cloud, until

QUICK = EventSettings(window_s=0.05, repeat_s=0.3)
AWAY = Transition("Warning", "DeviceUnknown", "unknown, was online: node away")


async def events(kube: Kubernetes) -> list[Object]:
    return (await kube.list_page(EVENTS)).items


def in_state(state: str) -> Callable[[Object], bool]:
    return lambda status: status.get("state") == state


def thing(number: int) -> tuple[Key, Object]:
    name = f"d{number}"
    return Key("default", name), {**device(name), "metadata": {"name": name, "uid": f"u{number}"}}


class Recorder:
    """A running recorder, which the test notes in."""

    def __init__(self, kube: Kubernetes, settings: EventSettings = QUICK) -> None:
        self.recorder = EventRecorder(kube, settings)

    async def __aenter__(self) -> EventRecorder:
        self._task = asyncio.create_task(self.recorder.run())
        return self.recorder

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self.recorder.close()


async def test_kubectl_shows_what_happened_to_a_device(
    tmp_path: Path, api: ApiServer, kube: Kubernetes, certs: Path
) -> None:
    await kube.create(MODELS, model())
    created = await kube.create(DEVICES, device())
    settings = ControllerSettings(patch_interval_s=0.05, grace_s=0.2, events=QUICK)
    async with running_cloud(kube, certs, controller=settings) as cloud:
        async with cloud.edge() as edge:
            for state, reason in (("online", ""), ("offline", "no reply from 127.0.0.1"), ("unhealthy", "no register")):
                await edge.answer(await edge.report_state("thermo-1", state, reason=reason))
                await kube.until_status("thermo-1", in_state(state))
        await kube.until_status("thermo-1", lambda s: s.get("state") == "unknown")
        await until(lambda: cloud.controller.events.written >= 4)
    described = await kubectl(api, tmp_path, "describe", "device", "thermo-1")
    shown = " ".join(described[described.index("Events:") :].split())
    for reason in ("Normal DeviceOnline", "Warning DeviceOffline", "Warning DeviceUnhealthy", "Warning DeviceUnknown"):
        assert reason in shown
    assert "offline, was online: no reply from 127.0.0.1" in shown
    assert "kubetwin-cloudcore" in shown
    table = await kubectl(api, tmp_path, "events", "--for", "device.devices.kubeedge.io/thermo-1")
    assert "DeviceOffline" in table
    assert "Device/thermo-1" in table
    assert 'node "edge-1" is not connected to CloudHub since 20' in table
    found = await events(kube)
    assert {e["involvedObject"]["uid"] for e in found} == {created["metadata"]["uid"]}


async def test_a_restart_of_the_cloud_is_no_event_and_no_write(kube: Kubernetes, certs: Path) -> None:
    """Whether the node was there before, is away since long, or comes back."""
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    await kube.create(DEVICES, device("away", nodeName="edge-2"))
    settings = ControllerSettings(patch_interval_s=0.05, grace_s=0.3, events=QUICK)
    async with running_cloud(kube, certs, controller=settings) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z"))
        await kube.until_status("away", lambda s: "is not connected" in s["extensions"]["reason"])
        before = await kube.status("away"), await kube.status("thermo-1")
        await until(lambda: cloud.controller.events.written)
        noted = len(await events(kube))
        kube.patched.clear()
        # As a crash leaves it: what the old one would write when its node goes is not written.
        kube.cut = True
    kube.cut = False
    slow = ControllerSettings(patch_interval_s=0.05, grace_s=1.0, events=QUICK)
    async with running_cloud(kube, certs, controller=slow) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z"))
        await until(lambda: cloud.controller._links.grace_left_s("edge-2") == 0)
        fence = await edge.report("thermo-1", {"valve": 5})
        await edge.answer(fence)
        await until(lambda: not len(cloud.controller.writer._queue) or None)
        after = await kube.status("away"), await kube.status("thermo-1")
    assert [key.name for _, key, _ in kube.patched] == ["thermo-1"]  # the fence
    assert after[0] == before[0]
    assert after[1]["extensions"]["since"] == before[1]["extensions"]["since"]
    assert len(await events(kube)) == noted


async def test_what_happens_to_many_devices_of_a_node_is_one_event_about_the_node(kube: Kubernetes) -> None:
    async with Recorder(kube) as recorder:
        for number in range(1000):  # over several windows, as writes of so many statuses take their time
            recorder.note("edge-1", *thing(number), AWAY)
            if number % 100 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: recorder.written)
        (event,) = await events(kube)
        assert (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == ("Node", "edge-1")
        assert event["message"].startswith("1000 devices, default/d0, default/d1, default/d2 and 997 more: unknown")
        assert (recorder.summarised, recorder.dropped) == (1000, 0)
        for number in range(10):
            recorder.note("edge-1", *thing(number), AWAY)
        await until(lambda: recorder.written == 11)
        assert sum(e["involvedObject"]["kind"] == "Device" for e in await events(kube)) == 10


async def test_kubectl_describe_node_shows_the_summary(tmp_path: Path, api: ApiServer, kube: Kubernetes) -> None:
    nodes = Kind(group="", version="v1", plural="nodes", kind="Node")
    await kube.create(nodes, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}})
    async with Recorder(kube) as recorder:
        for number in range(20):
            recorder.note("edge-1", *thing(number), AWAY)
        await until(lambda: recorder.written)
    assert "20 devices, default/d0" in await kubectl(api, tmp_path, "describe", "node", "edge-1")


async def test_the_same_again_is_counted_in_one_event(kube: Kubernetes) -> None:
    async with Recorder(kube) as recorder:
        for number in range(6):
            recorder.note("edge-1", *thing(1), Transition("Warning", "DeviceOffline", f"reason {number}"))
            await asyncio.sleep(0.06)
        await until(lambda: recorder.written >= 2 and not recorder._pending)
        (event,) = await events(kube)
        assert (event["count"], event["message"]) == (6, "reason 5")
        assert event["firstTimestamp"] <= event["lastTimestamp"]
        assert recorder.written <= 3
        await kube.delete(EVENTS, Key("default", event["metadata"]["name"]))  # as the API does after an hour
        written = recorder.written
        recorder.note("edge-1", *thing(1), Transition("Warning", "DeviceOffline", "again"))
        await until(lambda: recorder.written > written)
        (event,) = await events(kube)
        assert (event["count"], event["message"]) == (1, "again")


async def test_writes_are_rationed_and_what_does_not_fit_is_counted(kube: Kubernetes) -> None:
    settings = EventSettings(window_s=0.01, alone=10**6, rate=1.0, burst=3, max_pending=5)
    async with Recorder(kube, settings) as recorder:
        for number in range(20):
            recorder.note("edge-1", *thing(number), AWAY)
        await until(lambda: recorder.written == 3)
        assert (recorder.dropped, len(recorder._events)) == (15, 5)
        for number in range(100):
            recorder.note("edge-1", *thing(number), AWAY)
            assert recorder._waiting <= 10 * settings.max_pending


async def test_memory_does_not_grow_with_the_number_of_devices(kube: Kubernetes) -> None:
    settings = EventSettings(window_s=0.01, alone=100, rate=10_000.0, burst=1000, max_remembered=4)
    async with Recorder(kube, settings) as recorder:
        for number in range(12):
            recorder.note("edge-1", *thing(number), AWAY)
        await until(lambda: recorder.written == 12)
        recorder.note("edge-1", *thing(99), AWAY)
        await until(lambda: recorder.written == 13)
        assert len(recorder._events) <= 4


class NoEvents(Kubernetes):
    """Its role lacks the rule for events."""

    async def create(self, kind: Kind, obj: Object) -> Object:
        if kind is EVENTS:
            raise Forbidden("create events: forbidden", status=403)
        return await super().create(kind, obj)


async def test_nothing_is_remembered_of_a_device_that_is_gone(kube: Kubernetes) -> None:
    async with Recorder(kube) as recorder:
        for number in range(2):
            recorder.note("edge-1", *thing(number), AWAY)
        await until(lambda: recorder.written == 2)
        key, device_ = thing(0)
        recorder.forget(key, device_)
        assert [subject.key for subject in recorder._events] == [thing(1)[0]]
        recorder.note("edge-1", *thing(1), AWAY)
        await until(lambda: any(event.pending for event in recorder._events.values()))
        recorder.forget(*thing(1))  # what waits is written all the same
        await until(lambda: recorder.written == 3)


async def test_a_role_without_events_keeps_no_status_from_being_written(
    api: ApiServer, kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    settings = ControllerSettings(patch_interval_s=0.01, events=QUICK)
    async with (
        await NoEvents.open(kubeconfig=str(api.kubeconfig)) as poor,
        running_cloud(poor, certs, controller=settings) as cloud,
        cloud.edge() as edge,
    ):
        for state in ("online", "offline", "online", "offline"):
            await edge.answer(await edge.report_state("thermo-1", state))
            await poor.until_status("thermo-1", in_state(state))
        await until(lambda: cloud.controller.events.dropped >= 2)
    told = [r.message for r in caplog.records if "events cannot be written" in r.message]
    assert len(told) == 1
    assert "its role needs create and patch of events" in told[0]


async def test_names_of_events_are_valid_whatever_the_devices_is(kube: Kubernetes) -> None:
    names = ["a" * 253, "a" * 229 + ".b", "a" * 229 + "-b"]
    async with Recorder(kube) as recorder:
        for name in names:
            obj: dict[str, Any] = {**device(name), "metadata": {"name": name, "uid": name[-9:]}}
            recorder.note("", Key("default", name), obj, Transition("Normal", "DeviceOnline", "x" * 5000))
        await until(lambda: recorder.written == len(names))
        assert recorder.dropped == 0


async def test_a_node_that_goes_costs_one_event_whatever_it_had(kube: Kubernetes, certs: Path) -> None:
    count = 60
    await kube.create(MODELS, model())
    for number in range(count):
        await kube.create(DEVICES, device(f"d{number}"))
    settings = ControllerSettings(patch_interval_s=0.01, grace_s=0.2, events=EventSettings(window_s=1.5))
    async with running_cloud(kube, certs, controller=settings) as cloud:
        await until(lambda: len(kube.created) == count)
        recorder = cloud.controller.events
        async with cloud.edge() as edge:
            for number in range(count):
                await edge.report_state(f"d{number}", "online")
            await until(lambda: recorder.summarised >= 50)
        await until(lambda: recorder.summarised >= 100)
        await until(lambda: not recorder._pending)
        found = await events(kube)
        about = {(e["involvedObject"]["kind"], e["reason"]) for e in found}
        assert about >= {("Node", "DeviceOnline"), ("Node", "DeviceUnknown")}
        assert len(found) <= 2 + 2 * count - 100  # stragglers, on a slow machine
        status = await kube.get(STATUSES, Key("default", "d7"))
        conditions = {c["type"]: c for c in status["status"]["extensions"]["conditions"]}
        assert conditions["NodeConnected"]["status"] == "False"
