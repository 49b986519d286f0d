"""What survives: cuts, restarts and kills of every peer, in the order they hurt."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudedge.message import now_ms
from dmi import DeviceId, NodeName, PeerUnavailable
from edgecore.bus import Bus
from edgecore.devicetwin import lease as lease_module
from edgecore.devicetwin import mappers as mappers_module
from edgecore.devicetwin import sync as sync_module
from edgecore.devicetwin import twin as twin_module
from edgecore.devicetwin.outbox import InFlight, Key
from edgecore.store import open_database
from tests.edgecore.conftest import Edge, EdgeProcess
from tests.edgecore.peers import NODE, FakeCloud, FakeMapper, desired_twin, device_object, model_object

BOILER = "default/boiler-1"


async def test_values_of_a_time_without_cloud_arrive(boiler: FakeMapper, cloud: FakeCloud) -> None:
    names = [f"boiler-{n}" for n in range(2, 52)]
    for name in names:
        await cloud.put(device_object(name))
    await cloud.stop()
    for number, name in enumerate(names):
        for attempt in range(3):  # only the newest counts
            await boiler.report(f"default/{name}", temperature=f"{attempt}.{number}", setpoint=str(attempt))
    await cloud.start()
    for number, name in enumerate(names):
        await cloud.until_value(f"default/{name}", "temperature", f"2.{number}")
        await cloud.until_value(f"default/{name}", "setpoint", "2")


async def test_what_was_not_confirmed_is_said_again_and_states_too(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await boiler.client.report_state(DeviceId(BOILER), "online")
    await cloud.until_state(BOILER, "online")
    await boiler.report(BOILER, temperature="1", setpoint="1")
    await cloud.until_value(BOILER, "setpoint", "1")
    cloud.confirming = False
    await boiler.report(BOILER, temperature="2")
    await cloud.until_value(BOILER, "temperature", "2")
    cloud.twins.clear()
    cloud.states.clear()
    cloud.confirming = True
    await cloud.cut()
    await cloud.until_value(BOILER, "temperature", "2")
    await cloud.until_state(BOILER, "online")
    assert (BOILER, "setpoint") not in cloud.twins  # confirmed before


async def test_at_most_one_message_of_a_device_is_in_flight(boiler: FakeMapper, cloud: FakeCloud) -> None:
    cloud.confirming = False
    await boiler.report(BOILER, temperature="1")
    await cloud.until_value(BOILER, "temperature", "1")
    for value in range(2, 30):
        await boiler.report(BOILER, temperature=str(value))
    reports = [m for m in cloud.messages if m.route.resource.endswith("edge_updated")]
    assert len(reports) == 1
    cloud.confirming = True
    await cloud.cut()
    await cloud.until_value(BOILER, "temperature", "29")
    assert len([m for m in cloud.messages if m.route.resource.endswith("edge_updated")]) == 2


async def test_devices_deleted_or_changed_meanwhile(edge: Edge, boiler: FakeMapper, cloud: FakeCloud) -> None:
    await cloud.put(device_object("boiler-2"))
    await boiler.until_device("boiler-2")
    await cloud.stop()
    del cloud.objects["Device/default/boiler-1"]
    cloud.keep(device_object("boiler-2", desired={"setpoint": "7"}))
    cloud.keep(device_object("boiler-3"))
    await cloud.start()
    await boiler.until(lambda: DeviceId(BOILER) not in boiler.devices)
    await boiler.until_device("boiler-2", lambda d: (p := d.find("setpoint")) and p.desired.value == "7")
    await boiler.until_device("boiler-3")
    assert [c for c in boiler.calls if c[0] == "remove"] == [("remove", BOILER)]


async def test_a_device_deleted_while_the_edge_was_down_too(edge: Edge, boiler: FakeMapper, cloud: FakeCloud) -> None:
    await edge.stop()
    del cloud.objects["Device/default/boiler-1"]
    await edge.start()
    await boiler.until(lambda: not boiler.devices)


async def test_edge_core_calls_a_mapper_that_does_not_register_again(
    edge: Edge, boiler: FakeMapper, cloud: FakeCloud
) -> None:
    await edge.stop()
    cloud.keep(device_object(desired={"setpoint": "9"}))
    await edge.start()
    await boiler.until_device("boiler-1", lambda d: (p := d.find("setpoint")) and p.desired.value == "9")


async def test_an_unchanged_device_is_not_handed_over_again(edge: Edge, boiler: FakeMapper, cloud: FakeCloud) -> None:
    await edge.stop()
    await edge.start()
    await cloud.put(device_object("boiler-2"))
    await boiler.until_device("boiler-2")
    assert ("device", BOILER) not in boiler.calls


async def test_a_restarted_mapper_gets_what_changed_meanwhile(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path
) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        assert list(mapper.devices) == [BOILER]
    await cloud.put(device_object("boiler-2"))
    again = FakeMapper(tmp_path)
    async with again.running():
        assert sorted(again.devices) == [BOILER, "default/boiler-2"]
        assert again.calls == []


async def test_a_refusing_mapper_is_tried_until_it_takes_the_device(
    edge: Edge, boiler: FakeMapper, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_module, "DECLARATION_GRACE_S", 0.0)
    boiler.refusing = "the shelf is full"
    await cloud.put(device_object("boiler-2"))
    state = await cloud.until_state("default/boiler-2", "unhealthy")
    assert "mapper-1 refuses it" in state["reason"]
    assert "the shelf is full" in state["reason"]
    boiler.refusing = ""
    await boiler.until_device("boiler-2")
    await cloud.until_state("default/boiler-2", "unknown")
    assert boiler.calls.count(("device", "default/boiler-2")) >= 2


async def test_a_device_is_handed_over_in_order_and_ends_with_the_newest(boiler: FakeMapper, cloud: FakeCloud) -> None:
    boiler.held = asyncio.Event()
    await cloud.put(device_object(desired={"setpoint": "1"}), "update")
    await boiler.until(lambda: boiler.calls)
    for wanted in ("2", "3", "4"):
        await cloud.put(device_object(desired={"setpoint": wanted}), "update")
    await cloud.put(device_object("boiler-2"))
    await boiler.until(lambda: ("device", "default/boiler-2") in boiler.calls)  # not behind the other
    assert boiler.calls.count(("device", BOILER)) == 1
    boiler.held.set()
    await boiler.until_device("boiler-1", lambda d: (p := d.find("setpoint")) and p.desired.value == "4")
    assert boiler.calls.count(("device", BOILER)) == 2


async def test_no_mapper_is_shown_and_over_when_one_registers(
    edge: Edge,
    cloud: FakeCloud,
    mapper: FakeMapper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    await cloud.put(device_object("boiler-2"))
    await edge.stop()
    monkeypatch.setattr(mappers_module, "NO_MAPPER_GRACE_S", 0.2)
    monkeypatch.setattr(lease_module, "LEASE_S", 0.2)
    await edge.start()
    state = await cloud.until_state(BOILER, "unknown")
    reason = f"no mapper for protocol 'modbus' is registered on node {NODE}"
    assert state["reason"] == reason
    await cloud.until_state("default/boiler-2", "unknown")
    assert [r.getMessage() for r in caplog.records if reason in r.message] == [
        f"device {BOILER} and 1 more: unknown: {reason}"
    ]
    async with mapper.running():
        await mapper.client.report_state(DeviceId(BOILER), "online")
        state = await cloud.until_state(BOILER, "online")
        assert "reason" not in state


async def test_a_vanished_mapper_is_shown_and_over_when_it_is_back(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappers_module, "NO_MAPPER_GRACE_S", 0.2)
    monkeypatch.setattr(lease_module, "LEASE_S", 0.2)
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        await mapper.client.report_state(DeviceId(BOILER), "online")
        await cloud.until_state(BOILER, "online")
    state = await cloud.until_state(BOILER, "unknown")
    assert state["reason"].startswith("mapper mapper-1 is gone: ")
    assert state["reason"].endswith("start it again")
    assert state["lastOnlineTime"]
    async with FakeMapper(tmp_path).running():
        await cloud.until_state(BOILER, "online")


async def test_a_device_without_its_model_is_unhealthy_until_the_model_comes(
    edge: Edge, cloud: FakeCloud, mapper: FakeMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_module, "DECLARATION_GRACE_S", 0.0)
    async with mapper.running():
        await cloud.put(device_object())
        state = await cloud.until_state(BOILER, "unhealthy")
        assert state["reason"] == f"spec.deviceModelRef.name: model default/boiler is not on node {NODE}"
        await cloud.put(model_object())
        await mapper.until_device("boiler-1")
        await cloud.until_state(BOILER, "unknown")


async def test_a_declaration_that_cannot_be_run_leaves_the_last_good_one(
    boiler: FakeMapper, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_module, "DECLARATION_GRACE_S", 0.0)
    broken = device_object()
    broken["spec"]["properties"][1]["visitors"]["configData"]["nested"] = {"no": "way"}
    await cloud.put(broken, "update")
    state = await cloud.until_state(BOILER, "unhealthy")
    assert state["reason"].startswith("spec.properties[1].visitors.configData.nested: ")
    await boiler.report(BOILER, temperature="5")
    await cloud.until_value(BOILER, "temperature", "5")
    assert boiler.calls == []
    await cloud.put(device_object(desired={"setpoint": "1"}), "update")
    await boiler.until_device("boiler-1", lambda d: (p := d.find("setpoint")) and p.desired.value == "1")


async def test_a_property_that_is_gone_is_gone_everywhere(boiler: FakeMapper, cloud: FakeCloud) -> None:
    cloud.confirming = False
    await boiler.report(BOILER, temperature="5", setpoint="5")
    await cloud.until_value(BOILER, "setpoint", "5")
    await cloud.put(device_object(properties=["temperature"]), "update")
    cloud.twins.clear()
    cloud.confirming = True
    await cloud.cut()
    await cloud.until_value(BOILER, "temperature", "5")
    assert (BOILER, "setpoint") not in cloud.twins


async def test_a_device_of_the_same_name_starts_afresh(boiler: FakeMapper, cloud: FakeCloud) -> None:
    cloud.confirming = False
    await boiler.report(BOILER, temperature="5")
    await cloud.until_value(BOILER, "temperature", "5")
    other = device_object()
    other["metadata"]["uid"] = "another"
    await cloud.put(other)
    await boiler.report(BOILER, setpoint="1")
    cloud.twins.clear()
    cloud.confirming = True
    await cloud.cut()
    await cloud.until_value(BOILER, "setpoint", "1")
    assert (BOILER, "temperature") not in cloud.twins


async def test_a_failed_write_state_travels(boiler: FakeMapper, cloud: FakeCloud) -> None:
    await boiler.client.report_twins(DeviceId(BOILER), [desired_twin("setpoint", "35", "applied")])
    twin = await cloud.until_value(BOILER, "setpoint", "35")
    assert twin["expected"]["metadata"]["write"] == "applied"


async def test_a_value_survives_kill_9_between_report_and_confirmation(
    edge_process: Callable[[], EdgeProcess], cloud: FakeCloud, mapper: FakeMapper
) -> None:
    cloud.confirming = False
    first = edge_process()
    await first.start()
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with mapper.running():
        await mapper.report(BOILER, temperature="42")
        await cloud.until_value(BOILER, "temperature", "42")
        await cloud.stop()
        await mapper.report(BOILER, setpoint="17")  # never seen by any cloud
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        cloud.twins.clear()
        cloud.confirming = True
        await cloud.start()
        second = edge_process()
        await second.start()
        await cloud.until_value(BOILER, "temperature", "42")
        await cloud.until_value(BOILER, "setpoint", "17")
        await mapper.report(BOILER, temperature="43")  # on the channel it had
        await cloud.until_value(BOILER, "temperature", "43")
        assert await second.end(signal.SIGTERM) == 0


async def test_a_mapper_reports_on_after_edge_core_was_away(edge: Edge, boiler: FakeMapper, cloud: FakeCloud) -> None:
    await edge.stop()
    with pytest.raises(PeerUnavailable):
        await boiler.report(BOILER, temperature="1")
    await edge.start()
    at = now_ms()
    async with asyncio.timeout(10):
        while True:
            try:
                await boiler.report(BOILER, at_ms=at, temperature="2")
                break
            except PeerUnavailable:
                await asyncio.sleep(0.05)
    await cloud.until_value(BOILER, "temperature", "2")


async def test_without_a_connection_nobody_is_blamed_for_missing_confirmations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sync_module, "_EXPIRE_EVERY_S", 0.001)
    async with open_database(tmp_path / "edgecore.db") as database:
        sync = sync_module.CloudSync(database, Bus(), node=NodeName(NODE))
        long_ago = asyncio.get_running_loop().time() - 1000
        sync._outbox.sent(InFlight(Key(DeviceId(BOILER), "twins"), "m1", {"temperature": 1}, sent_at=long_ago))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await sync.run()
    assert not caplog.records
