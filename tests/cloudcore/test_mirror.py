"""Twins in `Device.status`, for readers from before KubeEdge 1.23."""

from pathlib import Path
from typing import Any

from cloudcore.devicecontroller import ControllerSettings
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.devicecontroller.mirror import ANNOTATION, mirror_patch
from cloudcore.kube import Key, Kind, Object
from kubetwin.apiserver import ApiServer
from tests.cloudcore.kubectl import kubectl
from tests.cloudcore.support import Kubernetes, device, model, open_client, running_cloud, until

KEY = Key("default", "thermo-1")
ON = ControllerSettings(patch_interval_s=0.05, mirror_twins=True)
OFF = ControllerSettings(patch_interval_s=0.05)


class Counting(Kubernetes):
    """Remembers the writes of Devices too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mirrored: list[Object] = []

    async def patch(self, kind: Kind, key: Key, patch: Object, **how: Any) -> Object:
        if kind is DEVICES:
            self.mirrored.append(patch)
        return await super().patch(kind, key, patch, **how)


async def counting(api: ApiServer) -> Counting:
    return await Counting.open(kubeconfig=str(api.kubeconfig))


async def test_old_readers_find_twins_and_state_where_they_look(
    tmp_path: Path, api: ApiServer, kube: Kubernetes, certs: Path
) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, {**device(), "status": {"reportCycle": 5}})
    async with (
        await counting(api) as client,
        running_cloud(client, certs, controller=ON) as cloud,
        cloud.edge() as edge,
    ):
        await edge.answer(await edge.report_state("thermo-1", "online", lastOnlineTime="2026-01-02T03:04:05Z"))
        await edge.answer(await edge.report("thermo-1", {"temperature": 21.5, "valve": 1}))
        await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))
        path = "{.status.twins[?(@.propertyName=='temperature')].reported.value} {.status.state} {.status.reportCycle}"
        text = await kubectl(api, tmp_path, "get", "device", "thermo-1", "-o", f"jsonpath={path}")
        assert text == "21.5 online 5"
        sent = len(edge.objects("thermo-1"))
        mirrored, patched = len(client.mirrored), len(client.patched)
        assert mirrored <= patched + 1
        for number in range(3):
            await edge.answer(await edge.report("thermo-1", {"valve": number + 2}))
            await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))
        assert len(client.mirrored) - mirrored == len(client.patched) - patched == 3
        assert all(p.keys() == {"status"} and p["status"].keys() == {"twins"} for p in client.mirrored[mirrored:])
        # A change of what is not mirrored is no write, and no mirroring is a change to tell the node.
        await client.patch(STATUSES, KEY, {"status": {"extensions": {"mine": 1}}})
        await edge.answer(await edge.report("thermo-1", {"valve": 9}))
        await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))
        assert len(client.mirrored) - mirrored == 4
        assert len(edge.objects("thermo-1")) == sent
        assert cloud.controller.counts == {}
    found = await kube.get(DEVICES, KEY)
    assert found["status"]["twins"] == (await kube.status("thermo-1"))["twins"]


async def test_nodes_are_not_sent_what_they_said(api: ApiServer, kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    old = {"twins": [{"propertyName": "valve", "reported": {"value": "1"}}], "state": "online", "reportCycle": 5}
    await kube.create(DEVICES, {**device(), "status": old})
    async with running_cloud(kube, certs, controller=OFF) as cloud, cloud.edge() as edge:
        await until(lambda: edge.objects("thermo-1"))
        assert edge.objects("thermo-1")[0].data()["status"] == {"reportCycle": 5}
    assert (await kube.get(DEVICES, KEY))["status"] == old  # it is not ours


async def test_switched_off_it_removes_what_it_wrote(api: ApiServer, kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, {**device(), "status": {"reportCycle": 5}})
    async with running_cloud(kube, certs, controller=ON) as cloud, cloud.edge() as edge:
        await edge.answer(await edge.report("thermo-1", {"valve": 1}))
        await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))
    assert ANNOTATION in (await kube.get(DEVICES, KEY))["metadata"]["annotations"]
    async with running_cloud(kube, certs, controller=OFF) as cloud:
        await until(lambda: (cloud.controller.devices.get(KEY) or {}).get("status") == {"reportCycle": 5})
        assert cloud.controller.mirror.patches == 1
    assert ANNOTATION not in (await kube.get(DEVICES, KEY))["metadata"].get("annotations", {})


async def test_it_waits_for_the_api(api: ApiServer, kube: Kubernetes, certs: Path) -> None:
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with await open_client(api) as client, running_cloud(client, certs, controller=ON) as cloud:
        await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))
        client.cut = True
        await kube.patch(STATUSES, KEY, {"status": {"lastOnlineTime": "2026-01-02T03:04:05Z"}})
        await until(lambda: cloud.controller.mirror.failed)
        client.cut = False
        await until(lambda: _same(cloud.controller.devices.get(KEY), cloud.controller.statuses.get(KEY)))


def _same(device: Object | None, status: Object | None) -> bool:
    """Whether a Device shows what its DeviceStatus does."""
    if device is None or status is None or ANNOTATION not in device["metadata"].get("annotations", {}):
        return False
    return all(
        (device.get("status") or {}).get(name) == status["status"].get(name)
        for name in ("twins", "state", "lastOnlineTime")
    )


def test_a_patch_of_anything_else_is_not_made() -> None:
    bare: Object = {"metadata": {"uid": "u"}, "spec": {}}
    shown: Object = {
        "metadata": {"ownerReferences": [{"kind": "Device", "uid": "u"}]},
        "status": {"state": "online", "twins": []},
    }
    assert mirror_patch(bare, None, wanted=True) == {}
    assert mirror_patch(bare, {**shown, "metadata": {}}, wanted=True) == {}
    other = {"ownerReferences": [{"kind": "Device", "uid": "other"}]}
    assert mirror_patch(bare, {**shown, "metadata": other}, wanted=True) == {}
    assert mirror_patch({**bare, "status": None}, shown, wanted=True)["status"]["state"] == "online"
    marked = {**bare, "metadata": {"uid": "u", "annotations": {ANNOTATION: "true"}}, "status": shown["status"]}
    assert mirror_patch(marked, shown, wanted=True) == {}
    gone = mirror_patch(marked, shown, wanted=False)
    assert gone == {"status": {"twins": None, "state": None}, "metadata": {"annotations": {ANNOTATION: None}}}
    assert mirror_patch({**bare, "status": shown["status"]}, shown, wanted=False) == {}
