"""What keeps upstream's CloudCore from telling a node of its devices, ends it, or makes it lose a report."""

from pathlib import Path
from typing import Any

import pytest

from cloudcore import crds
from cloudcore.devicecontroller import ControllerSettings
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Forbidden, Key, Kind, Object
from cloudcore.kube.client import Page
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import CRDS, Kubernetes, device, model, open_client, running_cloud, until


class NoStatuses(Kubernetes):
    """Its role has no rule for devicestatuses, as upstream's has none."""

    async def list_page(self, kind: Kind, **how: Any) -> Page:
        self._check(kind)
        return await super().list_page(kind, **how)

    async def create(self, kind: Kind, obj: Object) -> Object:
        self._check(kind)
        return await super().create(kind, obj)

    async def patch(self, kind: Kind, key: Key, patch: Object, **how: Any) -> Object:
        self._check(kind)
        return await super().patch(kind, key, patch, **how)

    def _check(self, kind: Kind) -> None:
        if kind is STATUSES:
            raise Forbidden("devicestatuses: forbidden", status=403)


async def test_a_role_without_statuses_keeps_no_device_from_its_node(
    api: ApiServer, kube: Kubernetes, certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        await NoStatuses.open(kubeconfig=str(api.kubeconfig)) as poor,
        running_cloud(poor, certs) as cloud,
        cloud.edge() as edge,
    ):
        await kube.create(MODELS, model())
        await kube.create(DEVICES, device())
        await until(lambda: edge.objects("thermo-1"), what="the device is at its node")
        assert edge.objects("thermo")
        assert any(m.route.resource == "membership" for m in edge.received)
        await until(
            lambda: any("devicestatuses" in r.getMessage() and "forbidden" in r.getMessage() for r in caplog.records),
            what="the log says what the role lacks",
        )


async def test_devices_without_a_model_end_nothing_and_hold_nobody_up(api: ApiServer, certs: Path) -> None:
    kube = await open_client(api)
    for definition in crds.load():
        if definition["spec"]["names"]["kind"] == "Device":  # upstream's lets a device do without
            (version,) = definition["spec"]["versions"]
            version["schema"]["openAPIV3Schema"]["properties"]["spec"]["required"].remove("deviceModelRef")
        await kube.create(CRDS, definition)
    async with kube:
        await _devices_without_a_model(kube, certs)


async def _devices_without_a_model(kube: Kubernetes, certs: Path) -> None:
    missing = [f"missing-{number}" for number in range(20)]
    for name in missing:
        await kube.create(DEVICES, device(name, deviceModelRef={"name": "nobodys"}))
    await kube.create(DEVICES, device("none", deviceModelRef=None))
    await kube.create(MODELS, model())
    for started in range(2):  # upstream's ends at every start
        async with running_cloud(kube, certs) as cloud, cloud.edge() as edge:
            name = f"fine-{started}"
            await kube.create(DEVICES, device(name))
            await until(lambda name=name: edge.objects(name), what="another device is at its node")  # type: ignore[misc]
            await kube.create(DEVICES, device(f"none-{started}", deviceModelRef=None))
            for broken in ("none", f"none-{started}", missing[-1]):
                status = await kube.until_status(broken, lambda s: s.get("extensions", {}).get("problems"))
                assert "deviceModelRef" in status["extensions"]["reason"]
            await edge.answer(await edge.report(name, {"valve": 5}))


async def test_reports_of_one_device_at_once_lose_no_property(kube: Kubernetes, certs: Path) -> None:
    names = [f"p{number}" for number in range(50)]
    await kube.create(MODELS, model(properties=[{"name": n, "type": "INT", "accessMode": "ReadWrite"} for n in names]))
    await kube.create(DEVICES, device(properties=[{"name": n} for n in names]))
    settings = ControllerSettings(patch_interval_s=0.001)  # many patches, which could overtake each other
    async with running_cloud(kube, certs, controller=settings) as cloud, cloud.edge() as edge:
        for value in range(4):
            for name in names:
                await edge.report("thermo-1", {name: value})

        def whole(status: Object) -> bool:
            values = {twin["propertyName"]: twin["reported"]["value"] for twin in status.get("twins", ())}
            return values == dict.fromkeys(names, "3")

        await kube.until_status("thermo-1", whole)
