"""Each way a value can get lost at the edge is to be seen in the facts of its device."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cloudedge.certificates import mint
from cloudedge.facts import MAX_VALUE_CHARS, DeviceFacts, spec_digest
from cloudedge.message import now_ms
from dmi import DeviceId, DmiError, Reported, Twin
from edgecore.config import DatabaseConfig, EdgeCoreConfig, WebSocketConfig
from tests.edgecore.api_client import get
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import DEADLINE_S, NODE, FakeCloud, FakeMapper, desired_twin, device_object, model_object

BOILER = DeviceId("default/boiler-1")

Facts = Callable[..., Awaitable[DeviceFacts]]


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """Of the boiler, once they are as a test wants them."""

    async def read(condition: Callable[[DeviceFacts], object] = lambda _: True, device: str = BOILER) -> DeviceFacts:
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    status, body = await get(tmp_path / "edgecore.sock", f"/v1/devices/{device}/path")
                    assert status == 200, body
                    found = msgspec.convert(body, DeviceFacts)
                    if condition(found):
                        return found
                    await asyncio.sleep(0.02)
        raise AssertionError(f"never as expected: {found}")

    return read


def recent(at_ms: int) -> bool:
    return now_ms() - 60_000 < at_ms <= now_ms() + 1


async def test_all_is_well(boiler: FakeMapper, cloud: FakeCloud, facts: Facts) -> None:
    await boiler.client.report_state(BOILER, "online")
    await boiler.report(BOILER, temperature="21.5")
    await boiler.client.report_twins(BOILER, [desired_twin("setpoint", "30")])
    found = await facts(
        lambda f: (
            not f.in_flight_since_ms
            and f.mapper
            and f.mapper.handed == "current"
            and not any(p.unsent for p in f.properties.values())
        )
    )
    assert (found.node, found.device, found.declared, found.problem) == (NODE, BOILER, True, "")
    declared = cloud.objects[f"Device/{BOILER}"]
    assert found.declared_version == declared["metadata"]["resourceVersion"]
    assert found.spec_digest == spec_digest(declared["spec"]) != found.model_digest
    assert found.model_digest == spec_digest(model_object()["spec"])
    assert (found.protocol, found.model, found.state) == ("modbus", "default/boiler", "online")
    assert (found.cloud_connected, found.cloud_trouble, found.store_trouble, found.refused) == (True, "", "", ())
    assert all(map(recent, (found.now_ms, found.last_report_ms, found.last_state_ms, found.state_since_ms)))
    mapper = found.mapper
    assert mapper is not None
    assert (mapper.name, mapper.protocol, mapper.answering, mapper.refusal) == ("mapper-1", "modbus", True, "")
    assert mapper.trouble == ""
    assert recent(mapper.registered_ms)
    assert found.other_mappers == ("modbus/mapper-1",)
    temperature, setpoint = found.properties["temperature"], found.properties["setpoint"]
    assert (temperature.value, temperature.quality, recent(temperature.collected_ms)) == ("21.5", "good", True)
    assert (setpoint.desired, setpoint.write) == ("30", "applied")


async def test_the_device_is_not_here(edge: Edge, boiler: FakeMapper, facts: Facts) -> None:
    with pytest.raises(DmiError):
        await boiler.report("default/other", temperature="1")
    found = await facts(device="default/other")
    assert (found.declared, found.device, found.properties, found.mapper) == (False, "default/other", {}, None)
    assert found.other_mappers == ("modbus/mapper-1",)
    assert [(r.what, "not on node" in r.reason) for r in found.refused] == [("twins", True)]


async def test_the_declaration_cannot_be_run(edge: Edge, cloud: FakeCloud, facts: Facts) -> None:
    await cloud.put(device_object(model="missing"))
    found = await facts(lambda f: f.declared)
    assert "missing" in found.problem
    await cloud.put(model_object("missing"))
    assert (await facts(lambda f: not f.problem)).declared


async def test_no_mapper(edge: Edge, cloud: FakeCloud, facts: Facts) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    found = await facts(lambda f: f.declared)
    assert (found.mapper, found.other_mappers) == (None, ())


async def test_the_mapper_is_away(edge: Edge, cloud: FakeCloud, mapper: FakeMapper, facts: Facts) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        await facts(lambda f: f.mapper and f.mapper.answering)
    found = await facts(lambda f: f.mapper and not f.mapper.answering)
    assert found.mapper is not None
    assert found.mapper.trouble.startswith("mapper mapper-1 is gone: ")
    assert recent(found.mapper.away_since_ms)


async def test_the_mapper_refuses_it(edge: Edge, boiler: FakeMapper, cloud: FakeCloud, facts: Facts) -> None:
    boiler.refusing = "register 7 is not one of this device"
    await cloud.put(device_object(properties=("temperature",)), "update")
    found = await facts(lambda f: f.mapper and f.mapper.refusal)
    assert found.mapper is not None
    assert "register 7" in found.mapper.refusal
    assert found.mapper.handed != "current"


async def test_the_device_is_offline(boiler: FakeMapper, facts: Facts) -> None:
    await boiler.client.report_state(BOILER, "offline", "no answer within 1 s")
    found = await facts(lambda f: f.state == "offline")
    assert (found.state_reason, recent(found.state_since_ms)) == ("no answer within 1 s", True)


async def test_a_property_cannot_be_read(boiler: FakeMapper, facts: Facts) -> None:
    await boiler.report(BOILER, temperature="1" * 1000, setpoint="1")
    bad = Twin("setpoint", Reported("1", "int", now_ms(), "bad", "illegal data address"))
    await boiler.client.report_twins(BOILER, [bad])
    found = await facts(lambda f: f.properties["setpoint"].quality == "bad")
    assert found.properties["setpoint"].reason == "illegal data address"
    assert len(found.properties["temperature"].value) == MAX_VALUE_CHARS


async def test_what_was_not_taken(boiler: FakeMapper, facts: Facts) -> None:
    for name, value in (("pressure", "1"), ("pressure", "2"), ("setpoint", "x" * 70_000)):
        with pytest.raises(DmiError):
            await boiler.client.report_twins(BOILER, [Twin(name, Reported(value))])
    with pytest.raises(DmiError):
        await boiler.client.report_state(BOILER, "sleepy")  # type: ignore[arg-type]  # as a peer may
    found = await facts()
    assert [(r.what, r.count) for r in found.refused] == [("state", 1), ("setpoint", 1), ("pressure", 2)]
    state, setpoint, pressure = (r.reason for r in found.refused)
    assert "sleepy" in state
    assert "bytes" in setpoint
    assert "no property 'pressure'" in pressure
    assert all(recent(r.at_ms) for r in found.refused)


async def test_the_cloud_does_not_confirm(boiler: FakeMapper, cloud: FakeCloud, facts: Facts) -> None:
    await boiler.client.report_state(BOILER, "online")
    await facts(lambda f: f.state == "online" and not f.in_flight_since_ms)
    cloud.confirming = False
    began = now_ms()
    await boiler.report(BOILER, temperature="1")
    found = await facts(lambda f: f.in_flight_since_ms)
    assert began - 10 <= found.in_flight_since_ms <= now_ms()
    assert (found.properties["temperature"].unsent, found.properties["setpoint"].unsent) == (True, False)
    cloud.confirming = True
    await cloud.cut()  # what was on its way is sent again
    assert not (await facts(lambda f: not f.in_flight_since_ms)).properties["temperature"].unsent


def elsewhere(config: EdgeCoreConfig, **hub: object) -> EdgeCoreConfig:
    modules = config.modules
    changed = msgspec.structs.replace(modules, edge_hub=msgspec.structs.replace(modules.edge_hub, **hub))
    return msgspec.structs.replace(config, modules=changed)


@contextlib.asynccontextmanager
async def running(config: EdgeCoreConfig) -> AsyncIterator[None]:
    edge = Edge(config)
    await edge.start()
    try:
        yield
    finally:
        await edge.stop()


async def test_the_cloud_s_name_is_unknown(config: EdgeCoreConfig, facts: Facts) -> None:
    server = WebSocketConfig(server="no-such-host.invalid:10000")
    async with running(elsewhere(config, websocket=server)):
        found = await facts(lambda f: f.cloud_trouble)
    assert "no-such-host.invalid" in found.cloud_trouble
    assert (found.cloud_connected, recent(found.cloud_since_ms)) == (False, True)


async def test_the_cloud_s_certificate_is_another_s(config: EdgeCoreConfig, tmp_path: Path, facts: Facts) -> None:
    mint(tmp_path / "other", nodes=[NODE], names=["127.0.0.1"])
    async with running(elsewhere(config, tls_ca_file=str(tmp_path / "other" / "ca.crt"))):
        found = await facts(lambda f: f.cloud_trouble)
    assert "tlsCaFile" in found.cloud_trouble


async def test_a_certificate_is_missing(config: EdgeCoreConfig, facts: Facts) -> None:
    async with running(elsewhere(config, tls_cert_file="/nonexistent/node.crt")):
        found = await facts(lambda f: f.cloud_trouble)
    assert "/nonexistent/node.crt" in found.cloud_trouble


async def test_the_cloud_went_away(boiler: FakeMapper, cloud: FakeCloud, facts: Facts) -> None:
    await facts(lambda f: f.cloud_connected)
    await cloud.stop()
    found = await facts(lambda f: not f.cloud_connected and "is cloudcore running" in f.cloud_trouble)
    await boiler.report(BOILER, temperature="5")
    found = await facts(lambda f: f.properties["temperature"].value == "5")
    assert found.properties["temperature"].unsent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system that is full soon")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


async def test_nothing_can_be_written(
    config: EdgeCoreConfig, cloud: FakeCloud, mapper: FakeMapper, small_disk: Path, facts: Facts
) -> None:
    database = DatabaseConfig(data_source=str(small_disk / "edgecore.db"))
    async with running(msgspec.structs.replace(config, database=database)):
        await cloud.put(model_object())
        await cloud.put(device_object())
        async with mapper.running():
            with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
            for number in range(200):
                with contextlib.suppress(DmiError):
                    await mapper.report(BOILER, temperature=f"{number}" + "x" * 20_000)
                found = await facts()
                if found.store_trouble:
                    break
    assert "edgecore.db" in found.store_trouble
    assert recent(found.store_trouble_since_ms)


async def test_a_device_that_left_is_forgotten(boiler: FakeMapper, cloud: FakeCloud, facts: Facts) -> None:
    with pytest.raises(DmiError):
        await boiler.report(BOILER, pressure="1")
    await cloud.delete("Device", "default", "boiler-1")
    found = await facts(lambda f: not f.declared)
    assert (found.refused, found.last_report_ms) == ((), 0)
