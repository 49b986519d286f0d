"""A property that is no longer declared is gone everywhere at the edge, and one of its name that comes back is new."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dmi import DeviceId
from edgecore.bus import Bus
from edgecore.config import EdgeCoreConfig, HistoryConfig
from tests.edgecore.api_client import get
from tests.edgecore.local_apps import DEVICE, Apps
from tests.edgecore.peers import DEADLINE_S, FakeCloud, FakeMapper, device_object

BOILER = DeviceId("default/boiler-1")


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    twin = replace(config.modules.device_twin, history=HistoryConfig(enable=True))
    return replace(config, modules=replace(config.modules, device_twin=twin))


@pytest.fixture
def listening(bus: Bus) -> Apps:
    """Local apps that are there before edge core is."""
    return Apps(bus)


async def _twins_over_mqtt(apps: Apps) -> dict[str, Any]:
    apps.heard.clear()
    await apps.say(f"{DEVICE}/twin/get", {"event_id": "e"})
    (answer,) = [event for event in apps.heard if event.topic.endswith("/twin/get/result")]
    found: dict[str, Any] = json.loads(answer.payload)["twin"]
    return found


async def _until_in_history(socket: Path, properties: set[str]) -> None:
    """It is written from time to time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            _, answer = await get(socket, f"/v1/devices/{BOILER}/history")
            if {point["property"] for point in answer["values"]} == properties:
                return
            await asyncio.sleep(0.05)


async def test_a_removed_property_is_gone_from_the_store_mqtt_facts_and_history(
    listening: Apps, boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path
) -> None:
    socket = tmp_path / "edgecore.sock"
    await boiler.report(BOILER, temperature="21.5", setpoint="7")
    await _until_in_history(socket, {"temperature", "setpoint"})
    assert set(await _twins_over_mqtt(listening)) == {"temperature", "setpoint"}

    await cloud.put(device_object(properties=("temperature",)), "update")
    await listening.until_gone(1)
    assert listening.gone[0].names == ("setpoint",)
    assert set(await _twins_over_mqtt(listening)) == {"temperature"}
    for target in ("", "/path"):
        _, answer = await get(socket, f"/v1/devices/{BOILER}{target}")
        assert "setpoint" not in json.dumps(answer)
    await _until_in_history(socket, {"temperature"})


async def test_a_late_confirmation_of_a_removed_property_does_not_count_for_its_successor(
    listening: Apps, boiler: FakeMapper, cloud: FakeCloud
) -> None:
    cloud.confirming = False
    await boiler.report(BOILER, setpoint="7")
    await cloud.until_value(BOILER, "setpoint", "7")
    late = next(message for message in cloud.messages if message.route.resource.endswith("twin/edge_updated"))
    await cloud.put(device_object(properties=("temperature",)), "update")
    await listening.until_gone(1)
    await cloud.put(device_object(), "update")
    await boiler.report(BOILER, setpoint="8")  # its first version, as 7 was
    cloud.confirming = True
    await cloud.confirm(late)
    await cloud.until_value(BOILER, "setpoint", "8")
