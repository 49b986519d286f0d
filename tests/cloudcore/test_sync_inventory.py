"""What a node says it has is not sent again; what it lacks is, and what it should not have is deleted."""

import asyncio
from pathlib import Path

from cloudcore.devicecontroller.kinds import DEVICES, MODELS
from cloudcore.kube import Key, Object
from cloudcore.synccontroller import SyncSettings
from tests.cloudcore.support import Edge, Kubernetes, device, model, until
from tests.cloudcore.sync_support import SyncedCloud, ask, sent, stored, synced_cloud, until_recorded

THERMO_1 = Key("default", "thermo-1")
OTHER_SPEC = {"spec": {"properties": [{"name": "valve", "desired": {"value": "7"}}]}}


async def _declared(kube: Kubernetes) -> dict[str, tuple[str, str]]:
    """One model and one device, as the inventory of a node that has them."""
    made = await kube.create(MODELS, model()), await kube.create(DEVICES, device())
    return {f"default/{obj['kind'].lower()}/{obj['metadata']['name']}": stored(obj) for obj in made}


async def _listed(cloud: SyncedCloud, count: int = 1) -> None:
    await until(lambda: len(cloud.controller.devices) == count and len(cloud.controller.models) == 1)


async def _quiet(edge: Edge) -> list[tuple[str, str]]:
    """What was sent, when a few comparisons have passed."""
    await asyncio.sleep(0.5)
    return sent(edge)


async def test_what_the_node_has_is_not_sent(kube: Kubernetes, certs: Path) -> None:
    has = await _declared(kube)
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await ask(edge, has)
        assert await _quiet(edge) == []
        assert len([m for m in edge.received if m.route.resource == "membership/detail"]) == 2
        assert cloud.count("device_objects_total", "unchanged") == 2
        made = await kube.get(DEVICES, THERMO_1)
        await until_recorded(kube, "edge-1", made, stored(made)[1])  # an upstream replica need not send it either
        await kube.patch(DEVICES, THERMO_1, OTHER_SPEC)
        await until(lambda: sent(edge) == [("update", "default/device/thermo-1")])


async def test_what_differs_is_sent_and_what_is_too_much_deleted(kube: Kubernetes, certs: Path) -> None:
    has = await _declared(kube)
    for name in ("comes", "changes", "made-anew"):
        await kube.create(DEVICES, device(name))
    has["default/device/changes"] = stored(await kube.get(DEVICES, Key("default", "changes")))
    await kube.patch(DEVICES, Key("default", "changes"), OTHER_SPEC)
    has["default/device/made-anew"] = ("another", "3")
    has["default/device/went"] = ("uid-went", "5")
    has["default/devicemodel/went"] = ("uid-model", "4")
    has["default/configmap/theirs"] = ("uid-map", "4")
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await _listed(cloud, 4)
        await ask(edge, has)
        assert sorted(await _quiet(edge)) == [
            ("delete", "default/device/went"),
            ("delete", "default/devicemodel/went"),
            ("update", "default/device/changes"),
            ("update", "default/device/comes"),
            ("update", "default/device/made-anew"),
        ]
        (gone,) = edge.objects("went")[:1]
        assert gone.data()["metadata"]["uid"] == "uid-went"
        assert (gone.data()["apiVersion"], gone.data()["kind"]) == ("devices.kubeedge.io/v1beta1", "Device")


async def test_a_change_that_is_not_sent_is_none_at_the_next_connection(kube: Kubernetes, certs: Path) -> None:
    has = await _declared(kube)
    async with synced_cloud(kube, certs) as cloud:
        async with cloud.edge(ask=False) as edge:
            await ask(edge, has)
        labelled = await kube.patch(DEVICES, THERMO_1, {"metadata": {"labels": {"a": "b"}}})
        await kube.patch(DEVICES, THERMO_1, {"status": {"reportToCloud": True}})
        await until(lambda: (found := cloud.controller.devices.get(THERMO_1)) and stored(found) > stored(labelled))
        async with cloud.edge(ask=False) as edge:
            await ask(edge, has)
            assert await _quiet(edge) == []
        async with cloud.edge(ask=False) as edge:  # and still not when it is the second
            await ask(edge, has)
            assert await _quiet(edge) == []


async def test_an_inventory_that_cannot_be_read_is_none(kube: Kubernetes, certs: Path) -> None:
    await _declared(kube)
    async with synced_cloud(kube, certs) as cloud:
        await _listed(cloud)
        unreadable: list[object] = [[], "x", {"default/device/thermo-1": 3}, {"default/device/thermo-1": ["u"]}, None]
        for wrong in unreadable:
            async with cloud.edge(ask=False) as edge:
                await ask(edge, wrong)
                await until(lambda edge=edge: edge.objects("thermo-1"))  # type: ignore[misc]
        async with cloud.edge(ask=False) as edge:
            await ask(edge, {"": ["", ""], "a/b": ["", ""], "../device/x": ["u", "v"], "//": ["u", "1"]})
            await until(lambda: edge.objects("thermo-1"))
        assert not cloud.controller.counts


async def test_a_newer_version_at_the_node_is_never_followed_by_an_older_one(kube: Kubernetes, certs: Path) -> None:
    has = await _declared(kube)
    changed = await kube.patch(DEVICES, THERMO_1, OTHER_SPEC)
    ahead = {**has, "default/device/thermo-1": (stored(changed)[0], str(int(stored(changed)[1]) + 100))}
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await _listed(cloud)
        asked = asyncio.create_task(ask(edge, ahead))
        await asyncio.sleep(0.5)
        assert not asked.done()  # another replica sent it what these caches have not seen
        for number in range(120):
            await kube.patch(MODELS, Key("default", "thermo"), {"metadata": {"labels": {"n": str(number)}}})
        newest = await kube.patch(DEVICES, THERMO_1, {"spec": {"properties": [{"name": "valve"}]}})
        await asked
        (message,) = await until(lambda: edge.objects("thermo-1"))
        assert message.header.resourceversion == stored(newest)[1]


async def test_what_a_stock_edge_missed_is_deleted_after_a_restart_too(kube: Kubernetes, certs: Path) -> None:
    await _declared(kube)
    goes = await kube.create(DEVICES, device("goes"))
    moves = await kube.create(DEVICES, device("moves"))
    anew = await kube.create(DEVICES, device("anew"))
    async with synced_cloud(kube, certs) as cloud, cloud.edge():
        for obj in (goes, moves, anew):
            await until_recorded(kube, "edge-1", obj, stored(obj)[1])
        await until(lambda: not cloud.records.behind)
    await kube.delete(DEVICES, Key("default", "goes"))
    await kube.delete(DEVICES, Key("default", "anew"))
    fresh = await kube.create(DEVICES, device("anew"))
    await kube.patch(DEVICES, Key("default", "moves"), {"spec": {"nodeName": "edge-2"}})
    async with synced_cloud(kube, certs) as cloud:
        await until(lambda: cloud.records.synced)
        async with cloud.edge("edge-2") as other, cloud.edge() as edge:
            await until(lambda: other.objects("moves"))
            for obj in (goes, moves):
                name = obj["metadata"]["name"]
                (gone,) = await until(lambda name=name: edge.objects(name), what=f"{name} is deleted")  # type: ignore[misc]
                content = gone.data()
                assert gone.route.operation == "delete"
                assert gone.route.source == "devicecontroller"
                assert (content["apiVersion"], content["kind"]) == (DEVICES.api_version, "Device")
                assert content["metadata"]["uid"] == obj["metadata"]["uid"]
                await until_recorded(kube, "edge-1", obj, None)
            assert [m.data()["metadata"]["uid"] for m in edge.objects("anew")] == [stored(fresh)[0]]
            await until_recorded(kube, "edge-1", fresh, stored(fresh)[1])
            # The record of its predecessor goes once its successor's is there, at one of the next comparisons.
            await until_recorded(kube, "edge-1", anew, None)
            assert await _quiet(edge) == [item for item in sent(edge) if item]
            assert len(edge.objects("goes")) == 1


async def test_the_comparison_finds_what_went_past_the_watch(kube: Kubernetes, certs: Path) -> None:
    await _declared(kube)
    async with synced_cloud(kube, certs, SyncSettings(every_s=0.3)) as cloud, cloud.edge() as edge:
        await until(lambda: edge.objects("thermo-1"))
        subscribers: list[object] = cloud.controller.devices._subscribers  # type: ignore[assignment]
        taken, subscribers[:] = list(subscribers), []
        await kube.patch(DEVICES, THERMO_1, OTHER_SPEC)
        await until(lambda: len(edge.objects("thermo-1")) == 2, what="it is sent though nobody was told")
        subscribers[:] = taken
        assert cloud.count("sync_resent_total", "put") == 1
        assert edge.objects("thermo-1")[-1].data()["spec"]["properties"] == [
            {"name": "valve", "desired": {"value": "7"}}
        ]


async def test_what_cannot_be_delivered_now_the_node_keeps(kube: Kubernetes, certs: Path) -> None:
    has = await _declared(kube)
    before: Object = await kube.get(MODELS, Key("default", "thermo"))
    await kube.delete(MODELS, Key("default", "thermo"))
    async with synced_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        await until(lambda: len(cloud.controller.devices) == 1)
        await ask(edge, has)
        assert await _quiet(edge) == []
        anew = await kube.create(MODELS, {k: before[k] for k in ("apiVersion", "kind", "spec")} | {
            "metadata": {"name": "thermo", "namespace": "default"}
        })  # fmt: skip
        await until(lambda: sent(edge) == [("update", "default/devicemodel/thermo")])
        assert edge.objects("thermo")[0].data()["metadata"]["uid"] == stored(anew)[0]
