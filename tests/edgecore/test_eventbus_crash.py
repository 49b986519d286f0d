"""An edge core that is killed while apps speak, with Debian's mosquitto: what the broker took from them is done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from edgecore.config import EdgeCoreConfig, EventBusConfig
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.local_apps import TYPES
from tests.edgecore.mqtt_world import UPDATE, Mosquitto, app, mosquitto, until
from tests.edgecore.peers import FakeCloud, device_object, model_object

pytestmark = [pytest.mark.programs, pytest.mark.e2e]

RESULT = f"{UPDATE}/result"
GET = UPDATE.replace("update", "get")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as made:
        yield made


@pytest.fixture
def config(config: EdgeCoreConfig, broker: Mosquitto) -> EdgeCoreConfig:
    events = EventBusConfig(enable=True, mqtt_server_external=f"tcp://127.0.0.1:{broker.port}")
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, event_bus=events))


async def test_no_update_is_lost_when_edge_core_is_killed(
    broker: Mosquitto, edge_process: Callable[[], EdgeProcess], cloud: FakeCloud
) -> None:
    """mosquitto keeps 1,000; each property's last value is to be there, whatever edge core had read and not stored."""
    process = edge_process()
    await process.start()
    await cloud.put(model_object(types=TYPES))
    await cloud.put(device_object(properties=list(TYPES)))
    async with app(broker.port, RESULT, f"{GET}/result") as local:
        await local.publish(UPDATE, {"event_id": "first", "twin": {}})
        await local.hears(RESULT)
        burst = [
            local.publish(UPDATE, {"event_id": str(n), "twin": {"setpoint": {"actual": {"value": str(n)}}}})
            for n in range(900)
        ]
        publishing = asyncio.gather(*burst)
        await until(lambda: len(local.on(RESULT)) > 20, "it is at work")
        assert await process.end(signal.SIGKILL) == -signal.SIGKILL
        await publishing
        again = edge_process()
        await again.start()
        done = {"event_id": "last", "twin": {"label": {"actual": {"value": "last"}}}}
        await local.publish(UPDATE, done)
        await until(lambda: any(b'"last"' in one for one in local.on(RESULT)), "all before it is done")
        await local.publish(GET, {"event_id": "g"})
        twin = msgspec.json.decode(await local.hears(f"{GET}/result"))["twin"]
        assert twin["setpoint"]["actual"]["value"] == "899"
        # Each update has a value of its own, and so a version; results that waited to be published may be lost.
        stored = await cloud.until_value("default/boiler-1", "setpoint", "899")
        assert stored["actual_version"]["edge"] >= 900
        assert await again.end(signal.SIGTERM) == 0
