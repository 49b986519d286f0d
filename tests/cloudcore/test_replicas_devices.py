"""What is written of devices when several replicas of the cloud core serve their nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudcore.cloudhub import CloudHub, HubSettings
from cloudcore.devicecontroller import ControllerSettings, DeviceController
from cloudcore.devicecontroller.events import EVENTS, EventSettings
from cloudcore.devicecontroller.kinds import DEVICES, MODELS, STATUSES
from cloudcore.kube import Key, Kind, Object, Unavailable
from cloudcore.kube.stream import Event, EventStream
from cloudcore.replicas import Replicas, ReplicaSettings
from cloudcore.replicas.leases import LEASES
from cloudedge import tls
from kubetwin.apiserver import ApiServer
from tests.cloudcore.support import Cloud, Edge, Kubernetes, device, entry, model, until

LEASE_S = 2.0
GRACE_S = 0.7
KEY = Key("default", "thermo-1")


class Client(Kubernetes):
    """Can lose the API, and watch late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flowing = {kind.plural: asyncio.Event() for kind in (DEVICES, STATUSES, LEASES)}
        """Whether changes of a kind come through."""
        for kind in self.flowing.values():
            kind.set()

    async def _call(self, method: str, path: str, **how: Any) -> Object:
        if self.cut:
            raise Unavailable("cut off by the test")
        return await super()._call(method, path, **how)

    async def watch(self, kind: Kind, **how: Any) -> EventStream:
        stream = await super().watch(kind, **how)
        if kind.plural in self.flowing:
            following = stream.next

            async def late() -> Event | None:
                event = await following()
                await self.flowing[kind.plural].wait()
                return event

            stream.next = late  # type: ignore[method-assign]  # of this one stream
        return stream


class Replica:
    def __init__(self, name: str, client: Client, certs: Path) -> None:
        self.client = client
        settings = ReplicaSettings(name=name, renew_s=LEASE_S / 6, lease_s=LEASE_S, look_s=0.05)
        self.replicas = Replicas(client, settings)
        events = EventSettings(window_s=0.05, repeat_s=0.05)
        self.controller = DeviceController(
            client,
            ControllerSettings(patch_interval_s=0.02, grace_s=GRACE_S, events=events),
            writers=self.replicas,
        )
        context = tls.server_context(
            ca_file=certs / "ca.crt", cert_file=certs / "server.crt", key_file=certs / "server.key"
        )
        self.hub = CloudHub(
            HubSettings(host="127.0.0.1", port=0),
            ssl_context=context,
            devices=self.controller,
            owners=self.replicas,
        )
        self.cloud = Cloud(self.controller, self.hub, certs)
        self.replicas.subscribe(lost=self.hub.end, changed=self.controller.writer_changed)
        self._tasks = [asyncio.create_task(part.run()) for part in (self.controller, self.hub, self.replicas)]

    async def kill(self) -> None:
        """Gone without a word to the API."""
        self.client.cut = True
        await self.stop()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def pair(api: ApiServer, kube: Kubernetes, certs: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas, of which the first leads, and one device of edge-1."""
    await kube.create(MODELS, model())
    await kube.create(DEVICES, device())
    async with contextlib.AsyncExitStack() as stack:
        both: list[Replica] = []
        for name in ("a", "b"):
            client = await stack.enter_async_context(await Client.open(kubeconfig=str(api.kubeconfig)))
            replica = Replica(name, client, certs)
            stack.push_async_callback(replica.stop)
            await replica.hub.listening.wait()
            both.append(replica)
            await until(both[0].replicas.is_leader, what="the first leads")
        async with asyncio.timeout(10):
            await both[1].replicas.granted()
        yield both[0], both[1]


async def reported(edge: Edge, **values: Any) -> None:
    await edge.answer(await edge.report("thermo-1", values))


def condition(status: Object, type_: str) -> str:
    found = {c["type"]: c["status"] for c in (status.get("extensions") or {}).get("conditions", [])}
    return str(found.get(type_, ""))


async def test_a_node_that_moves_is_served_by_one_replica_at_a_time(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with a.cloud.edge() as gone:
        await reported(gone, temperature=1)
        async with b.cloud.edge() as new:
            await until(lambda: not a.hub.nodes, what="the first replica ends its session")
            await asyncio.sleep(GRACE_S * 1.5)  # long enough to take the node for lost
            before = len(a.client.patched)
            await reported(new, temperature=2)
            status = await b.client.until_status("thermo-1", lambda s: s["twins"][0]["reported"]["value"] == "2")
            assert condition(status, "NodeConnected") == "True"
            assert len(a.client.patched) == before
    assert b.client.patched


async def test_a_replica_whose_cache_is_late_overwrites_nothing_newer(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with a.cloud.edge() as edge:
        await reported(edge, temperature=1, valve=1)
        await until(lambda: b.controller.statuses.get(KEY) is not None)
        await until(lambda: (b.controller.statuses.get(KEY) or {})["status"].get("twins"))
        b.client.flowing["devicestatuses"].clear()
        await reported(edge, temperature=2)
    async with b.cloud.edge() as edge:
        await reported(edge, valve=5)
        b.client.flowing["devicestatuses"].set()
        values = {t["propertyName"]: t["reported"]["value"] for t in (await b.client.status("thermo-1"))["twins"]}
    assert values == {"temperature": "2", "valve": "5"}
    for _, _, patch in b.client.patched:
        for twin in patch["status"].get("twins", []):
            assert (twin["propertyName"], twin["reported"]["value"]) != ("temperature", "1"), "an older value came back"


async def test_devices_of_a_dead_replica_are_unknown_once_and_not_before_their_node_had_time(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    async with a.cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online"))
        await b.client.until_status("thermo-1", lambda s: s.get("state") == "online")
    await a.kill()
    async with b.cloud.edge() as edge:  # back in time
        await edge.answer(await edge.report_state("thermo-1", "online"))
        await asyncio.sleep(LEASE_S + GRACE_S)
        assert (await b.client.status("thermo-1"))["state"] == "online"
        assert all(p["status"].get("state", "online") == "online" for _, _, p in b.client.patched)
    await b.client.until_status("thermo-1", lambda s: s["state"] == "unknown")


async def test_the_leader_tells_of_nodes_that_do_not_come_back(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with a.cloud.edge() as edge:
        await edge.answer(await edge.report_state("thermo-1", "online"))
        await b.client.until_status("thermo-1", lambda s: s.get("state") == "online")
    loop = asyncio.get_running_loop()
    began = loop.time()
    await a.kill()
    status = await b.client.until_status("thermo-1", lambda s: s["state"] == "unknown")
    assert loop.time() - began > LEASE_S + GRACE_S - 0.6, "the dead replica's time, and the node's"
    assert condition(status, "NodeConnected") == "False"

    async def told() -> list[str]:
        found = await b.client.list_page(EVENTS)
        return [e["reason"] for e in found.items if e["reason"] == "DeviceUnknown"]

    end = loop.time() + 10
    while not await told():
        assert loop.time() < end
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert len(await told()) == 1


async def test_a_node_that_leaves_is_one_replicas_business(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with b.cloud.edge() as edge:  # not the leader's
        await edge.answer(await edge.report_state("thermo-1", "online"))
    before = len(a.client.patched)
    await b.client.until_status("thermo-1", lambda s: s["state"] == "unknown")
    assert len(a.client.patched) == before


async def test_a_question_is_asked_by_one_replica(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with b.cloud.edge() as edge:
        await reported(edge, temperature=1)
        await until(lambda: a.controller.statuses.get(KEY) is not None)
        ask = {"status": {"extensions": {"queries": {"aaaaaaaa": {"ask": "history"}}}}}
        await a.client.patch(STATUSES, KEY, ask)
        await until(lambda: b.controller.queries.counts["asked"] == 1)
        await until(lambda: "queries" in (a.controller.statuses.get(KEY) or {})["status"]["extensions"])
        assert a.controller.queries.counts == {}


async def test_who_may_not_write_keeps_reports_until_it_may(pair: tuple[Replica, Replica]) -> None:
    a, _ = pair
    async with a.cloud.edge() as edge:
        await reported(edge, temperature=1)
        a.client.flowing["leases"].clear()  # it could write, and does not know any more whether it should
        await until(lambda: not a.replicas.status().valid, what="its Lease has run out")
        before = len(a.client.patched)
        sent = await edge.report("thermo-1", {"temperature": entry("2")})
        await asyncio.sleep(0.3)
        assert not edge.answers(sent)
        assert len(a.client.patched) == before
        a.client.flowing["leases"].set()
        await edge.answer(sent)
        assert (await a.client.status("thermo-1"))["twins"][0]["reported"]["value"] == "2"


async def test_a_node_is_not_sent_an_older_version_by_a_replica_that_is_behind(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    async with a.cloud.edge() as edge:
        await until(lambda: edge.objects("thermo-1"))
        b.client.flowing["devices"].clear()
        changed = await a.client.apply(DEVICES, device(nodeName="edge-1", properties=[{"name": "valve"}]))
        version = changed["metadata"]["resourceVersion"]
        await until(lambda: edge.objects("thermo-1")[-1].data()["metadata"]["resourceVersion"] == version)
    has = {"default/device/thermo-1": [changed["metadata"]["uid"], version]}
    async with b.cloud.edge(ask=False) as edge:
        content = msgspec.json.encode({"objects": has}).decode()
        await edge.send(source="twin", group="resource", operation="get", resource="membership/detail", content=content)
        await until(lambda: "edge-1" in b.hub.nodes)
        await asyncio.sleep(0.3)
        assert not edge.objects("thermo-1"), "it would be older than what the node has"
        b.client.flowing["devices"].set()
        newest = await a.client.apply(DEVICES, device(nodeName="edge-1", properties=[{"name": "temperature"}]))
        await until(lambda: edge.objects("thermo-1"))
        versions = [m.data()["metadata"]["resourceVersion"] for m in edge.objects("thermo-1")]
        assert versions == [newest["metadata"]["resourceVersion"]]


async def test_reports_wait_until_a_replica_that_is_behind_knows_what_they_are_about(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    b.client.flowing["devices"].clear()
    new = await a.client.apply(DEVICES, device("thermo-2"))
    has = {"default/device/thermo-2": [new["metadata"]["uid"], new["metadata"]["resourceVersion"]]}
    async with b.cloud.edge(ask=False) as edge:
        content = msgspec.json.encode({"objects": has}).decode()
        await edge.send(source="twin", group="resource", operation="get", resource="membership/detail", content=content)
        sent = await edge.report("thermo-2", {"temperature": 7})
        await until(lambda: "edge-1" in b.hub.nodes)
        await asyncio.sleep(0.3)
        assert not edge.answers(sent), "confirmed, it would never be said again"
        b.client.flowing["devices"].set()
        await edge.answer(sent)
        assert b.controller.counts == {}
        assert (await b.client.status("thermo-2"))["twins"][0]["reported"]["value"] == "7"


async def test_a_device_that_was_made_anew_keeps_its_status_where_that_is_not_known_yet(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    async with a.cloud.edge() as edge:
        await reported(edge, temperature=1)
        b.client.flowing["devices"].clear()
        await a.client.delete(DEVICES, KEY)
        await until(lambda: a.controller.statuses.get(KEY) is None, what="its status goes with it")
        await a.client.create(DEVICES, device())
        await until(lambda: a.controller.devices.get(KEY) is not None)
        await reported(edge, temperature=2)
    identity = (await a.client.get(STATUSES, KEY))["metadata"]["uid"]
    async with b.cloud.edge() as edge:
        sent = await edge.report("thermo-1", {"valve": 3})
        await asyncio.sleep(0.5)
        assert (await a.client.get(STATUSES, KEY))["metadata"]["uid"] == identity
        b.client.flowing["devices"].set()
        await edge.answer(sent)
        values = {t["propertyName"]: t["reported"]["value"] for t in (await b.client.status("thermo-1"))["twins"]}
        assert values["temperature"] == "2"
