"""From a mapper's report through the store to the cloud, when something about it is large, old, or broken."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmi import DeviceId, Reported, Twin
from dmi.client import EdgeCoreClient
from mappers.sdk.uplink import Uplink
from tests.edgecore.api_client import get, get_text
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object, object_message
from tests.edgecore.test_flow_disk import no_larger_files

DEVICE = DeviceId("default/boiler-1")
COLLECTED_MS = 1_700_000_000_123


def test_an_edge_core_does_not_load_what_it_never_uses() -> None:
    unused = (
        "google.protobuf.text_format",
        "python_socks.async_.asyncio",
        "_lzma",
        "aiomqtt",
        "edgecore.history.history",
        "yaml",
    )
    modules = "edgecore.app, edgecore.logs, edgecore.options"
    look = f"import {modules}, sys; print([name for name in {unused!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


async def test_the_time_of_collection_arrives_as_the_mapper_gave_it(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await boiler.report(DEVICE, at_ms=COLLECTED_MS, temperature="21.5")
    twin = await cloud.until_value(DEVICE, "temperature", "21.5")
    assert twin["actual"]["metadata"]["timestamp"] == COLLECTED_MS


async def test_an_unchanged_value_is_told_again_after_some_time_only(
    boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path
) -> None:
    """Neither written nor sent, and counted; what changes beside it goes at once."""

    await boiler.report(DEVICE, at_ms=COLLECTED_MS, temperature="21.5")
    await cloud.until_value(DEVICE, "temperature", "21.5")
    for second in range(1, 9):
        await boiler.report(DEVICE, at_ms=COLLECTED_MS + second * 1000, temperature="21.5")
    await boiler.report(DEVICE, at_ms=COLLECTED_MS + 8500, setpoint="1")  # whatever was to be sent goes with it
    await cloud.until_value(DEVICE, "setpoint", "1")
    assert cloud.twins[DEVICE, "temperature"]["actual"]["metadata"]["timestamp"] == COLLECTED_MS
    _, stored = await get(tmp_path / "edgecore.sock", f"/v1/devices/{DEVICE}")
    assert [t["collected"] for t in stored["twins"] if t["property"] == "temperature"] == [COLLECTED_MS]
    _, metrics = await get_text(tmp_path / "edgecore.sock", "/metrics")
    assert 'kubetwin_edgecore_reports_total{what="twins",result="confirmed"} 8\n' in metrics
    later_ms = COLLECTED_MS + 9000
    await boiler.report(DEVICE, at_ms=later_ms, temperature="21.5")
    await cloud.until(lambda: cloud.twins[DEVICE, "temperature"]["actual"]["metadata"]["timestamp"] == later_ms)


async def test_on_a_full_node_what_is_said_again_counts_less_often(
    monkeypatch: pytest.MonkeyPatch, edge: Edge, cloud: FakeCloud, tmp_path: Path
) -> None:
    del edge
    clock_ms = COLLECTED_MS
    monkeypatch.setattr("edgecore.devicetwin.intake.now_ms", lambda: clock_ms)
    await cloud.put(model_object())
    for number in range(200):  # so each may be confirmed every 20 s
        await cloud.put(device_object(f"boiler-{number}"))
    async with EdgeCoreClient(tmp_path / "dmi.sock") as client:
        for second in (0, 10, 20):
            clock_ms = COLLECTED_MS + second * 1000
            await client.report_twins(DEVICE, [Twin("temperature", Reported("21.5", "float", clock_ms))])
            await client.report_state(DEVICE, "online")
    _, metrics = await get_text(tmp_path / "edgecore.sock", "/metrics")
    for what, result, count in (
        ("twins", "changed", 2), ("twins", "confirmed", 1), ("state", "changed", 2), ("state", "unchanged", 1)
    ):  # fmt: skip
        assert f'kubetwin_edgecore_reports_total{{what="{what}",result="{result}"}} {count}\n' in metrics


async def test_a_report_larger_than_a_call_arrives_in_parts(edge: Edge, cloud: FakeCloud, tmp_path: Path) -> None:
    del edge
    names = [f"p{number}" for number in range(100)]
    await cloud.put(model_object(types=dict.fromkeys(names, "STRING")))
    await cloud.put(device_object(properties=names))
    async with EdgeCoreClient(tmp_path / "dmi.sock") as client:
        uplink = Uplink(client)
        task = asyncio.create_task(uplink.run(), name="uplink under test")
        uplink.put_twins(DEVICE, [Twin(n, Reported("x" * 60_000, "string", COLLECTED_MS)) for n in names])
        uplink.open()
        try:
            async with asyncio.timeout(15):
                await uplink.drained()
            for name in names:
                await cloud.until_value(DEVICE, name, "x" * 60_000)
            assert uplink.report_failures == 0
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_a_value_of_any_property_needs_no_more_than_the_device(
    edge: Edge, cloud: FakeCloud, tmp_path: Path
) -> None:
    """A property of the Device that its model does not know, with visitors and no cycle, is reported all the same."""
    del edge
    await cloud.put(model_object(types={"temperature": "FLOAT"}))
    await cloud.put(device_object(properties=("temperature", "extra")))
    async with EdgeCoreClient(tmp_path / "dmi.sock") as client:
        await client.report_twins(DEVICE, [Twin("extra", Reported("on", "", COLLECTED_MS))])
    await cloud.until_value(DEVICE, "extra", "on")


async def test_a_damaged_store_is_filled_again_by_the_cloud(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    edge: Edge,
    cloud: FakeCloud,
    mapper: FakeMapper,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO)
    await cloud.put(model_object())
    names = [f"boiler-{number}" for number in range(1, 41)]
    for name in names:
        obj = device_object(name)
        obj["metadata"]["annotations"] = {"note": "x" * 20_000}
        await cloud.put(obj)
    await edge.stop()
    monkeypatch.setattr("edgecore.store.medium._CACHE_KIB", 8)
    await edge.start()
    await cloud.until(lambda: cloud.connected == 2, "the node is back")
    async with mapper.running():
        cloud.messages.clear()
        # Both are open before either is written: the store may notice the first and set them aside at once.
        with (tmp_path / "edgecore.db").open("r+b") as main, (tmp_path / "edgecore.db-wal").open("r+b") as log:
            for file in (main, log):
                size = file.seek(0, os.SEEK_END)
                file.seek(8 * 4096)
                file.write(b"\xa5" * max(size - 8 * 4096, 0))
        await cloud.put(model_object(types={"temperature": "INT", "setpoint": "INT"}), "update")
        await cloud.until(
            lambda: any(m.route.resource == "membership/detail" for m in cloud.messages), "the objects are asked for"
        )
        await mapper.report("default/boiler-40", temperature="7")
        await cloud.until_value("default/boiler-40", "temperature", "7")
        await mapper.report("default/boiler-1", temperature="8")
        await cloud.until_value("default/boiler-1", "temperature", "8")
    await edge.stop()
    assert any("is damaged" in record.message for record in caplog.records)
    await cloud.stop()
    await edge.start()  # without a cloud: everything is in the new file
    async with (mapper := FakeMapper(tmp_path)).running():
        assert {device.name for device in mapper.devices.values()} == set(names)


async def test_what_is_not_on_a_disk_is_used_and_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, boiler: FakeMapper, cloud: FakeCloud, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgecore.store.worker.PROBE_EVERY_S", 0.05)
    message = object_message("insert", cloud.keep(device_object("boiler-2")))
    with no_larger_files((tmp_path / "edgecore.db-wal").stat().st_size):
        await cloud.send(message)
        await boiler.until_device("boiler-2")
        await boiler.report("default/boiler-2", temperature="21.5")
        await cloud.until_value("default/boiler-2", "temperature", "21.5")
        assert message.id not in cloud.acknowledged
    async with asyncio.timeout(15):
        while message.id not in cloud.acknowledged:
            await cloud.send(message)  # as it is sent again until it is acknowledged
            await asyncio.sleep(0.1)
