"""What upstream's edge core loses or repeats, and this one does not."""

import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dmi import DeviceId, Reported, Twin
from dmi.client import MapperInfo
from edgecore.config import EventBusConfig
from edgecore.store import TwinRow, get_twins, open_database, put_twins
from tests.edgecore.api_client import get
from tests.edgecore.conftest import Edge
from tests.edgecore.local_apps import DEVICE, Apps
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

BOILER = DeviceId("default/boiler-1")


async def test_a_model_that_changed_while_the_cloud_was_away_reaches_the_mapper(
    boiler: FakeMapper, cloud: FakeCloud
) -> None:
    await cloud.stop()
    cloud.keep(model_object(types={"temperature": "DOUBLE", "setpoint": "INT"}))
    await cloud.start()
    await boiler.until(lambda: next(iter(boiler.models.values())).properties[0].type == "DOUBLE")


async def test_the_address_of_a_mapper_that_moved_outlives_a_restart(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        pass
    moved = FakeMapper(tmp_path, name="elsewhere")
    moved.info = MapperInfo(mapper.info.name, mapper.info.protocol, moved.info.address)
    async with moved.running():
        await edge.stop()
        cloud.keep(device_object(desired={"setpoint": "9"}))
        await edge.start()
        await moved.until_device("boiler-1", lambda d: (p := d.find("setpoint")) and p.desired.value == "9")


async def test_a_device_whose_removal_failed_is_not_handed_out_again(boiler: FakeMapper, cloud: FakeCloud) -> None:
    boiler.refusing = "not now"
    await cloud.delete("Device", "default", "boiler-1")
    await boiler.until(lambda: ("remove", BOILER) in boiler.calls)
    assert BOILER in boiler.devices
    boiler.refusing = ""
    await boiler.register()
    assert boiler.devices == {}


async def test_a_property_has_one_row_and_it_is_found_without_reading_all(tmp_path: Path) -> None:
    def again(db: sqlite3.Connection) -> str:
        for value in ("1", "2"):
            put_twins(db, BOILER, [TwinRow(Twin("p", Reported(value, "int", 5)), version=1)])
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT INTO twin SELECT * FROM twin")
        plan = db.execute("EXPLAIN QUERY PLAN SELECT * FROM twin WHERE device = ? AND property = ?", (BOILER, "p"))
        return str(plan.fetchall())

    async with open_database(tmp_path / "e.db") as database:
        assert "SEARCH twin USING PRIMARY KEY (device=? AND property=?)" in await database.run(again)
        assert [row.twin.reported.value for row in (await database.run(lambda db: get_twins(db, BOILER))).values()] == [
            "2"
        ]


async def test_reports_of_devices_in_namespaces_that_are_parts_of_a_topic(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper
) -> None:
    namespaces = ("dev", "device", "hw", "events", "e", "v")
    for namespace in namespaces:
        for obj in (model_object(), device_object()):
            obj["metadata"]["namespace"] = namespace
            await cloud.put(obj)
    async with mapper.running():
        for number, namespace in enumerate(namespaces):
            await mapper.report(f"{namespace}/boiler-1", temperature=str(number))
            await cloud.until_value(f"{namespace}/boiler-1", "temperature", str(number))


async def test_reports_go_on_for_ever_while_there_is_no_broker(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> None:
    """More of them than any queue in between holds."""
    await edge.stop()
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        event_bus = EventBusConfig(enable=True, mqtt_mode=2, mqtt_server_external=url)
        edge.config = replace(edge.config, modules=replace(edge.config.modules, event_bus=event_bus))
        await edge.start()
        await cloud.put(model_object())
        await cloud.put(device_object())
        async with mapper.running():
            for number in range(3000):
                await mapper.report(BOILER, temperature=str(number))
            await cloud.until_value(BOILER, "temperature", "2999")
        _, ready = await get(tmp_path / "edgecore.sock", "/readyz")
        assert ready["mqtt"]["trouble"]


async def test_a_state_that_is_none_is_answered(apps: Apps) -> None:
    ((topic, content),) = await apps.ask(f"{DEVICE}/state/update", {"event_id": "s", "state": "dead"})
    assert (topic, content["code"], content["event_id"]) == (f"{DEVICE}/state/update/result", 400, "s")
    assert "dead" in content["reason"]


async def test_a_sync_with_parts_missing_leaves_the_device_working(apps: Apps) -> None:
    twins: tuple[Any, ...] = ({"setpoint": None}, {"setpoint": {}}, {"setpoint": {"expected": None}}, None)
    for twin in twins:
        await apps.say(f"{DEVICE}/twin/cloud_updated", {"event_id": "s", "twin": twin})
    apps.heard.clear()
    await apps.ask(f"{DEVICE}/twin/update", {"twin": {"setpoint": {"actual": {"value": "1"}}}}, 2)
