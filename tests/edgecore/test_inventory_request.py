"""When an edge core asks for its membership, it says which objects it has, so that they need not be sent again."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cloudedge.inventory import MAX_OBJECTS, StoredVersion, read_inventory
from dmi import NodeName
from edgecore.bus import Bus, CloudConnected, ObjectMessage, Upstream
from edgecore.devicetwin.messages import membership_request
from edgecore.devicetwin.sync import MAX_INVENTORY, CloudSync
from edgecore.metamanager import MetaManager
from edgecore.store import StoredObject, object_versions, open_database, put_object
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import NODE, FakeCloud, FakeMapper, device_object, model_object, object_message


def _requests(cloud: FakeCloud) -> list[dict[str, StoredVersion] | None]:
    return [read_inventory(m).objects for m in cloud.messages if m.route.resource == "membership/detail"]


async def _asked_again(edge: Edge, cloud: FakeCloud) -> dict[str, StoredVersion] | None:
    await edge.stop()
    count = len(_requests(cloud))
    await edge.start()
    await cloud.until(lambda: len(_requests(cloud)) > count, "it asks again")
    return _requests(cloud)[-1]


def _entry(obj: dict[str, Any]) -> StoredVersion:
    return StoredVersion(obj["metadata"]["uid"], obj["metadata"]["resourceVersion"])


async def test_it_says_what_it_has_stored(edge: Edge, cloud: FakeCloud, mapper: FakeMapper) -> None:
    await cloud.until(lambda: _requests(cloud), "it asks")
    assert _requests(cloud) == [{}]
    await cloud.put(model_object())
    await cloud.put(device_object())
    await cloud.put(device_object(desired={"setpoint": "5"}), "update")
    stored = {
        "default/devicemodel/boiler": _entry(cloud.objects["DeviceModel/default/boiler"]),
        "default/device/boiler-1": _entry(cloud.objects["Device/default/boiler-1"]),
    }
    assert await _asked_again(edge, cloud) == stored
    await cloud.delete("Device", "default", "boiler-1")
    del stored["default/device/boiler-1"]
    assert await _asked_again(edge, cloud) == stored


async def test_what_it_did_not_store_is_not_said(edge: Edge, cloud: FakeCloud) -> None:
    broken = cloud.keep(device_object())
    await cloud.send(object_message("insert", broken | {"metadata": broken["metadata"]}))
    message = object_message("insert", {**device_object("no-object"), "metadata": {**broken["metadata"], "name": "n"}})
    await cloud.send(type(message)(message.header, message.route, type(message.content)(b"[1]")))
    await cloud.put(model_object())  # both are behind it
    stored = await _asked_again(edge, cloud)
    assert stored is not None
    assert set(stored) == {"default/device/boiler-1", "default/devicemodel/boiler"}


async def test_too_many_objects_are_said_to_be_unknown(
    edge: Edge, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    assert MAX_INVENTORY <= MAX_OBJECTS, "a cloud reads it"
    monkeypatch.setattr("edgecore.devicetwin.sync.MAX_INVENTORY", 1)
    assert await _asked_again(edge, cloud) is None


async def test_a_cloud_that_takes_no_list_so_long_is_sent_none(tmp_path: Path) -> None:
    bus, requests = Bus(), []

    async def take(event: Upstream) -> None:
        requests.append(read_inventory(event.message).objects)

    bus.subscribe(Upstream, take)
    async with open_database(tmp_path / "edgecore.db") as database:
        CloudSync(database, bus, node=NodeName(NODE))
        name = "x" * 1000
        await database.run(lambda db: put_object(db, StoredObject("device", "default", name, "u", "1", b"{}")))
        for most_bytes in (0, 1_000_000, 2000):
            await bus.publish(CloudConnected("wss://cloud", most_bytes))
    assert [said is not None for said in requests] == [True, True, False]


async def test_what_came_before_is_stored_before_it_is_said_what_is(tmp_path: Path) -> None:
    bus = Bus()
    async with open_database(tmp_path / "edgecore.db") as database:
        meta = MetaManager(database, bus)
        obj = model_object()
        obj["metadata"] |= {"uid": "u", "resourceVersion": "1"}
        running = asyncio.create_task(meta.run())
        await bus.publish(ObjectMessage(object_message("insert", obj)))
        await bus.publish(CloudConnected("wss://cloud"))
        assert await database.run(lambda db: object_versions(db, 9)) == [("devicemodel", "default", "boiler", "u", "1")]
        await bus.publish(ObjectMessage(object_message("delete", obj)))
        await bus.publish(CloudConnected("wss://cloud"))
        assert await database.run(lambda db: object_versions(db, 9)) == []
        running.cancel()
        await asyncio.wait([running])


def test_a_cloud_of_upstream_sees_the_request_that_it_knows() -> None:
    """The key is beside the others, in the JSON text."""
    plain, full = (json.loads(membership_request(NODE, said).data(str)) for said in (None, {"a/device/b": ("u", "1")}))
    assert full.pop("objects") == {"a/device/b": ["u", "1"]}
    assert plain.keys() == full.keys()
