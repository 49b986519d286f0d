"""A mapper of KubeEdge's Go framework under our edge core.

| rule of DMI contract 0.2 | test |
|---|---|
| 1: answer in 1 s | `test_a_registration_that_would_take_too_long_is_finished_by_calls` |
| 1: at most 4 MiB | `test_a_registration_stays_below_4_mib_and_the_rest_follows` |
| 2: nothing that is dereferenced is nil | `test_nothing_a_go_mapper_crashes_on_is_sent` |
| 3: only properties of the model | the same |
| 4: the model in the answer | the same; `GoMapper` looks it up as Go does |
| 5: model before device | `test_a_device_comes_after_its_model_...` |
| 6: no negative cycle | `test_nothing_a_go_mapper_crashes_on_is_sent` |
| 7, 8: wrappers of configData and anomalyDetection | the same |
| 9: no GetDevice | every test: `GoMapper.crashes` |
| 10: no second removal | `test_a_device_comes_after_its_model_...`, and in test_edgecore_lease |
| 11: changes by UpdateDevice | `test_a_device_comes_after_its_model_...` |
| 12: the address as it is | `test_an_address_is_dialled_as_it_is` |
| 13: no keepalive pings | `test_no_keepalive_is_asked_for` |
| 14: a connection for each report, an empty timestamp | `test_reports_come_on_connections_of_their_own` |
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest

from dmi import DeviceId, ModelId, NodeName, rpc
from dmi.rpc import MAX_MESSAGE_BYTES
from edgecore.devicetwin import registration, spread
from edgecore.devicetwin.catalog import Catalog
from edgecore.devicetwin.registration import answer_of, full_set
from edgecore.store import Database
from tests.edgecore.conftest import Edge
from tests.edgecore.go_mapper import GoMapper
from tests.edgecore.peers import NODE, FakeCloud, FakeMapper, device_object, model_object

BOILER = "default/boiler-1"


@pytest.fixture
async def go(edge: Edge, tmp_path: Path) -> GoMapper:
    return GoMapper(tmp_path)


def bare_device(name: str) -> dict[str, Any]:
    """As people write them: no desired values, no visitors, numbers of all kinds."""
    device = device_object(name)
    config = {"ip": "192.0.2.1", "port": 502, "scale": 0.1, "big": 4294967295, "huge": 2**53 + 2, "on": True}
    device["spec"]["protocol"]["configData"] = config
    device["spec"]["stateReport"] = {"reportToCloud": True, "reportCycle": 1000}
    device["spec"]["properties"] = [
        {"name": "temperature"},
        {
            "name": "setpoint",
            "visitors": {"protocolName": "modbus", "configData": {"offset": 70000, "scale": 1.5}},
            "pushMethod": {"anomalyDetection": {"window": 120, "threshold": 3.5, "algorithm": "zscore"}},
        },
    ]
    return device


async def test_nothing_a_go_mapper_crashes_on_is_sent(edge: Edge, cloud: FakeCloud, go: GoMapper) -> None:
    """Neither in the answer nor in calls; what cannot be run is not sent, and says so at its state."""
    await cloud.put(model_object())
    await cloud.put(bare_device("bare-1"))
    negative, unknown = bare_device("negative"), bare_device("unknown")
    negative["spec"]["properties"][0]["collectCycle"] = -5
    negative["spec"]["properties"][1]["reportCycle"] = -(2**40)
    unknown["spec"]["properties"].append({"name": "nobody-knows"})
    await cloud.put(negative)
    await cloud.put(unknown)
    async with go.serving():
        answer = await go.register()
        assert [m.namespace for m in answer.modelList] == ["default"]
        assert "default/bare-1" in go.devices
        await cloud.put(bare_device("bare-2"))
        await go.until(lambda: "default/bare-2" in go.devices)
        for device in ("default/negative", "default/unknown"):
            if device not in go.devices:
                await cloud.until_state(device, "unhealthy")
        assert not go.crashes


async def test_a_device_comes_after_its_model_changes_by_updates_and_goes_once(
    edge: Edge, cloud: FakeCloud, go: GoMapper
) -> None:
    async with go.serving():
        await go.register()
        await cloud.put(model_object())
        await cloud.put(device_object())
        await go.until(lambda: BOILER in go.devices)
        assert go.calls == [("CreateDeviceModel", "default/boiler"), ("RegisterDevice", BOILER)]
        await cloud.put(device_object(desired={"setpoint": "5"}), "update")
        await go.until(lambda: go.devices[BOILER].spec.properties[1].desired.value == "5")
        await cloud.put(device_object(desired={"setpoint": "5"}), "update")  # nothing new: no call
        await cloud.delete("Device", "default", "boiler-1")
        await go.until(lambda: BOILER not in go.devices)
        await cloud.put(device_object())
        await go.until(lambda: BOILER in go.devices)
    assert [call for call in go.calls if call[0] != "CreateDeviceModel"] == [
        ("RegisterDevice", BOILER),
        ("UpdateDevice", BOILER),
        ("RemoveDevice", BOILER),
        ("RegisterDevice", BOILER),
    ]
    assert not go.crashes


@pytest.mark.parametrize("file", ("50% off.sock", "a b#c?d.sock", "größe.sock"))
async def test_an_address_is_dialled_as_it_is(edge: Edge, cloud: FakeCloud, tmp_path: Path, file: str) -> None:
    go = GoMapper(tmp_path, file=file)
    async with go.serving():
        await go.register()
        await cloud.put(model_object())
        await cloud.put(device_object())
        await go.until(lambda: BOILER in go.devices)


def test_no_keepalive_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Go server closes the connection on pings more often than every five minutes."""
    seen: list[str] = []
    monkeypatch.setattr(grpc.aio, "insecure_channel", lambda target, options: seen.extend(key for key, _ in options))
    rpc.open_channel("/x.sock")
    assert seen
    assert not [key for key in seen if "keepalive" in key or "ping" in key]


async def test_reports_come_on_connections_of_their_own(edge: Edge, cloud: FakeCloud, go: GoMapper) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with go.serving():
        await go.register()
        for value in ("1", "2", "3"):
            await go.report(BOILER, "temperature", value)
        twin = await cloud.until_value(BOILER, "temperature", "3")
    assert int(twin["actual"]["metadata"]["timestamp"]) > 0
    assert not go.crashes


# Registration


async def test_a_registration_that_would_take_too_long_is_finished_by_calls(
    edge: Edge, cloud: FakeCloud, go: GoMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Go mapper that waits for a second in vain ends, and does so again after each restart."""
    monkeypatch.setattr(registration, "BUDGET", 0.0)
    await cloud.put(model_object())
    for number in range(20):
        await cloud.put(device_object(f"boiler-{number}"))
    async with go.serving():
        answer = await go.register(deadline_s=10)
        assert not answer.deviceList
        await go.until(lambda: len(go.devices) == 20)
    assert not go.crashes


async def test_who_waits_longer_gets_more_of_it_at_once(edge: Edge, cloud: FakeCloud, go: GoMapper) -> None:
    """Ours wait ten seconds, and take over what is in the answer in one go."""
    seen: list[float] = []

    async def full_set(*args: Any, until: float, **options: Any) -> Any:
        seen.append(until - asyncio.get_running_loop().time())
        return await real(*args, until=until, **options)

    real = registration.full_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "full_set", full_set)
        async with go.serving():
            await go.register(deadline_s=5)
            await go.register(deadline_s=10)
            await go.register(deadline_s=100)
    assert 0 < seen[0] < 2.5
    assert seen[0] < seen[1] <= 4.0
    assert seen[2] <= 4.0  # nobody gets more, or the others would wait for it


async def test_a_registration_stays_below_4_mib_and_the_rest_follows(
    edge: Edge, cloud: FakeCloud, go: GoMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is what is sent: model defaults are merged into each device, which may say next to nothing."""
    monkeypatch.setattr(registration, "BUDGET", 6.0)
    model = model_object(types={f"p{n}": "INT" for n in range(40)})
    for p in model["spec"]["properties"]:
        p["visitors"] = {"protocolName": "modbus", "configData": {"note": "x" * 1000}}
    await cloud.put(model)
    for number in range(150):
        device = device_object(f"boiler-{number}", properties=())
        device["spec"]["properties"] = [{"name": f"p{n}"} for n in range(40)]
        await cloud.put(device)
    async with go.serving():
        answer = await go.register(deadline_s=60)
        assert MAX_MESSAGE_BYTES * 0.85 < answer.ByteSize() < MAX_MESSAGE_BYTES
        assert len(answer.deviceList) < 150
        await go.until(lambda: len(go.devices) == 150)
    assert not go.crashes


async def test_the_loop_goes_on_while_a_large_registration_is_made() -> None:
    """How long it takes is the machine's business; that it is cut into slices is ours."""
    catalog = Catalog(NodeName(NODE))
    catalog.put_model(ModelId("default/boiler"), msgspec.json.encode(model_object()))
    bodies = {DeviceId(f"default/b-{n}"): msgspec.json.encode(device_object(f"b-{n}")) for n in range(1000)}

    async def read(devices: Any) -> dict[Any, bytes]:
        return {device: bodies[device] for device in devices}

    loop, turns, longest = asyncio.get_running_loop(), 0, 0.0

    async def others() -> None:
        nonlocal turns, longest
        before = loop.time()
        while True:
            await asyncio.sleep(0)
            turns, longest, before = turns + 1, max(longest, loop.time() - before), loop.time()

    began, other = loop.time(), asyncio.create_task(others())
    await asyncio.sleep(0)
    found = await full_set(bodies, catalog=catalog, bodies=read, wanted=lambda _: b"x", until=began + 60)
    took = loop.time() - began
    other.cancel()
    assert len(found) == len(answer_of(found).encoded) == 1000
    assert turns >= 5
    assert longest < took / 4


async def test_a_store_that_takes_long_gives_no_device_to_two(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the grace after which others take over: the one that registers is not away meanwhile."""
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 0.3)
    await cloud.put(model_object())
    for number in range(12):
        await cloud.put(device_object(f"boiler-{number}"))
    one, two = FakeMapper(tmp_path, name="one"), FakeMapper(tmp_path, name="two")
    run, delays_s = Database.run, [0.0]

    async def slow_run(self: Database, job: Any, **options: Any) -> Any:
        result = await run(self, job, **options)
        if options.get("sync"):
            await asyncio.sleep(delays_s.pop() if len(delays_s) > 1 else 0.0)
        return result

    monkeypatch.setattr(Database, "run", slow_run)
    async with one.running(), two.running():
        await two.until(lambda: len(one.devices) + len(two.devices) == 12 and two.devices)
        share = set(two.devices)
        one.calls.clear()
        delays_s.append(1.5)
        registering = asyncio.create_task(two.register())
        async with asyncio.timeout(10):
            while len(delays_s) > 1:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        for value in range(8):  # whatever wakes the links meanwhile
            await asyncio.sleep(0.1)
            await cloud.put(
                device_object(min(share).removeprefix("default/"), desired={"setpoint": str(value)}), "update"
            )
        assert not registering.done()
        await registering
        assert set(two.devices) == share
        assert not {which for what, which in one.calls if what == "device"} & share
