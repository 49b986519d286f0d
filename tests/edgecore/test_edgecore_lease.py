"""A mapper that died, whichever way, and one that lives again: as processes, with the times as they are."""

import asyncio
import contextlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloudedge.facts import MapperFacts
from dmi import Device, DeviceId, PeerRefused, PeerTimeout, PeerUnavailable
from dmi.client import MapperClient
from dmi.ports import MapperInfo
from edgecore.config import EdgeCoreConfig
from edgecore.devicetwin import lease as lease_module
from edgecore.devicetwin import links as links_module
from edgecore.devicetwin import spread
from edgecore.devicetwin import twin as twin_module
from edgecore.devicetwin.lease import LEASE_S, PING_TIMEOUT_S, QUIET_S, Lease
from edgecore.devicetwin.mappers import Mappers
from edgecore.devicetwin.spread import MOVE_GRACE_S
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, Watched, device_object, model_object
from tests.edgecore.test_edgecore_spread import DEVICES, declare_gauges, noting_mapper, until_all_are_read
from tests.edgecore.test_flow_disk import no_larger_files

BOILER = "default/boiler-1"
WITHIN_S = 10.0
SLACK_S = 5.0
"""For a loaded machine."""


def test_the_figures_fit_together() -> None:
    assert MOVE_GRACE_S < LEASE_S  # those that another one takes over are never shown as unknown
    assert QUIET_S + PING_TIMEOUT_S < LEASE_S < WITHIN_S - 1.0
    assert QUIET_S > 2.0  # a stock Go mapper, which reports each second, is not asked


@pytest.mark.parametrize("way", ("killed", "hung", "killed, socket removed"))
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_devices_of_a_dead_mapper_are_unknown_in_time_and_whole_again(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, way: str
) -> None:
    await declare_gauges(cloud)
    loop = asyncio.get_running_loop()
    async with noting_mapper("one", tmp_path) as process:
        await cloud.until(lambda: all(cloud.states.get(d, {}).get("state") == "online" for d in DEVICES), "online")
        await until_all_are_read(tmp_path, by=1)
        began = loop.time()
        process.send_signal(signal.SIGSTOP if way == "hung" else signal.SIGKILL)
        if way == "killed, socket removed":
            (tmp_path / "one.sock").unlink()
        await cloud.until(lambda: all(cloud.states[d]["state"] == "unknown" for d in DEVICES), "unknown")
        took_s = loop.time() - began
        assert LEASE_S - QUIET_S - 1.0 < took_s < WITHIN_S + SLACK_S
        reason = cloud.states[DEVICES[0]]["reason"]
        assert reason.startswith("mapper one ")
        assert "start it" in reason
        what = {"killed": "left behind", "hung": "hangs", "killed, socket removed": "does not exist"}[way]
        assert what in reason
        if way == "hung":
            process.send_signal(signal.SIGCONT)
            await cloud.until(lambda: all(cloud.states[d]["state"] == "online" for d in DEVICES), "online again")
            return
    async with noting_mapper("one", tmp_path):
        await cloud.until(lambda: all(cloud.states[d]["state"] == "online" for d in DEVICES), "online again")
        await until_all_are_read(tmp_path, by=1)


async def test_a_restart_within_the_grace_shows_nothing(edge: Edge, cloud: FakeCloud, tmp_path: Path) -> None:
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with FakeMapper(tmp_path).running() as mapper:
        await mapper.client.report_state(DeviceId(BOILER), "online")
        await cloud.until_state(BOILER, "online")
    before = len(cloud.messages)
    async with FakeMapper(tmp_path).running() as mapper:
        assert set(mapper.devices) == {BOILER}
        await mapper.client.report_state(DeviceId(BOILER), "offline", "for the test")
        await cloud.until_state(BOILER, "offline")
        seen = [
            m.data()["device"]["state"] for m in cloud.messages[before:] if m.route.resource.endswith("/state/update")
        ]
    assert seen == ["offline"]


async def test_a_mapper_that_hangs_loses_its_devices_to_the_other_until_it_goes_on(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: its connection stays open, and nobody has anything to tell it."""
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 1.0)
    monkeypatch.setattr(lease_module, "QUIET_S", 0.5)
    monkeypatch.setattr(lease_module, "PING_TIMEOUT_S", 1.0)
    await declare_gauges(cloud)
    async with noting_mapper("one", tmp_path), noting_mapper("two", tmp_path) as two:
        await until_all_are_read(tmp_path, by=2)
        two.send_signal(signal.SIGSTOP)
        await until_all_are_read(tmp_path, by=1)
        two.send_signal(signal.SIGCONT)
        await until_all_are_read(tmp_path, by=2)
        assert "unknown" not in {cloud.states[d]["state"] for d in DEVICES}


async def test_a_mapper_that_is_heard_of_is_not_asked(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock Go mapper reports each second, and so do busy ones of ours."""
    monkeypatch.setattr(lease_module, "QUIET_S", 1.0)
    asked = Watched()
    times: list[float] = []
    ping = MapperClient.ping

    async def counted(self: MapperClient, timeout_s: float) -> None:
        times.append(timeout_s)
        await ping(self, timeout_s)
        await asked.notify()

    monkeypatch.setattr(MapperClient, "ping", counted)
    await cloud.put(model_object())
    await cloud.put(device_object())
    async with FakeMapper(tmp_path).running() as mapper:
        for _ in range(20):
            await mapper.report(BOILER, temperature="1")
            await asyncio.sleep(0.1)
        assert not times
        await asked.until(lambda: len(times) >= 2)
        assert not mapper.calls  # it is asked nothing that it sees


def is_set(device: Device, value: str) -> bool:
    setpoint = device.find("setpoint")
    return setpoint is not None and setpoint.desired.value == value


async def test_a_slow_device_is_not_a_dead_mapper(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_module, "CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(links_module, "CALL_TIMEOUT_S", 0.5)
    names = [f"boiler-{n}" for n in range(1, 21)]
    slow = {DeviceId(f"default/{name}") for name in names[:16]}  # twice as many as there are calls at once
    await cloud.put(model_object())
    for name in names:
        await cloud.put(device_object(name))
    mapper, go_on = FakeMapper(tmp_path), asyncio.Event()
    apply = mapper.apply_device
    inside = most = 0

    async def apply_device(device: Device) -> None:
        nonlocal inside, most
        if device.id in slow:
            inside += 1
            most = max(most, inside)
            try:
                await go_on.wait()
            finally:
                inside -= 1
        await apply(device)

    async with mapper.running():
        for name in names:
            await mapper.client.report_state(DeviceId(f"default/{name}"), "online")
        mapper.apply_device = apply_device  # type: ignore[method-assign]
        for name in names:
            await cloud.put(device_object(name, desired={"setpoint": "5"}), "update")
        for name in names[16:]:
            await mapper.until_device(name, partial(is_set, value="5"))
        for id_ in slow:
            state = await cloud.until_state(id_, "unhealthy")
            assert state["reason"] == "mapper mapper-1 does not answer about it within 0.5 s"
        most = 0
        # Behind the slow ones there is room for the others, time after time.
        for value in ("6", "7"):
            for name in names[16:]:
                await cloud.put(device_object(name, desired={"setpoint": value}), "update")
            for name in names[16:]:
                await mapper.until_device(name, partial(is_set, value=value))
        assert {cloud.states[f"default/{name}"]["state"] for name in names[16:]} == {"online"}
        await asyncio.sleep(1.0)  # two attempts and more
        assert most <= links_module.SLOW_AT_ONCE + 1  # one may not have noticed yet that nobody waits for it
        go_on.set()
        for name in names[:16]:
            await mapper.until_device(name, partial(is_set, value="5"))
            await cloud.until_state(f"default/{name}", "online")


async def test_a_call_that_timed_out_after_it_was_done_is_made_again_as_an_update(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`RegisterDevice` of a known device changes nothing at a Go mapper (DMI contract 0.2, rule 11)."""
    monkeypatch.setattr(twin_module, "CALL_TIMEOUT_S", 0.3)
    calls: list[str] = []
    for name in ("register_device", "update_device"):
        call = getattr(MapperClient, name)

        async def counted(self: MapperClient, device: object, name: str = name, call: object = call) -> None:
            calls.append(name)
            await call(self, device)  # type: ignore[operator]

        monkeypatch.setattr(MapperClient, name, counted)
    await cloud.put(model_object())
    async with FakeMapper(tmp_path).running() as mapper:
        apply = mapper.apply_device

        async def apply_device(device: object) -> None:
            await apply(device)  # type: ignore[arg-type]
            if len(calls) == 1:
                await asyncio.Event().wait()

        mapper.apply_device = apply_device  # type: ignore[method-assign]
        await cloud.put(device_object())
        await mapper.until(lambda: len([c for c in mapper.calls if c[0] == "device"]) == 2)
    assert calls == ["register_device", "update_device"]


async def test_a_removal_that_timed_out_is_not_repeated(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one of a device crashes a Go mapper (DMI contract 0.2, rule 10); it may come back meanwhile."""
    monkeypatch.setattr(twin_module, "CALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(links_module, "REMOVAL_S", 1.0)
    await cloud.put(model_object())
    await cloud.put(device_object())
    await cloud.put(device_object("boiler-2"))
    async with FakeMapper(tmp_path).running() as mapper:
        mapper.held = asyncio.Event()
        await cloud.delete("Device", "default", "boiler-1")
        await cloud.delete("Device", "default", "boiler-2")
        await asyncio.sleep(0.8)
        mapper.held = None
        await cloud.put(device_object("boiler-2"))  # within the time that its removal has
        await mapper.until_device("boiler-2")
        await asyncio.sleep(1.5)
        await cloud.put(device_object("boiler-1"))  # after it
        await mapper.until_device("boiler-1")
        assert sorted(which for what, which in mapper.calls if what == "remove") == [BOILER, "default/boiler-2"]


async def test_a_mapper_whose_socket_was_removed_is_alive_while_it_reports(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It registered from a container whose files edge core does not see, say."""
    monkeypatch.setattr(lease_module, "LEASE_S", 1.5)
    monkeypatch.setattr(lease_module, "_AFTERGLOW_S", 0.0)
    await cloud.put(model_object())
    await cloud.put(device_object())
    mapper = FakeMapper(tmp_path)
    mapper.info = MapperInfo("far", "modbus", "/nowhere/that/is/far.sock")
    async with mapper.client:
        await mapper.register()
        await mapper.client.report_state(DeviceId(BOILER), "online")
        for _ in range(30):
            await mapper.report(BOILER, temperature="1")
            await asyncio.sleep(0.1)
        state = await cloud.until_state(BOILER, "unhealthy")
        assert "far reports and cannot be called at /nowhere/that/is/far.sock" in state["reason"]
        assert not any(
            m.data()["device"]["state"] == "unknown"
            for m in cloud.messages
            if m.route.resource.endswith("/state/update")
        )
        state = await cloud.until_state(BOILER, "unknown")  # it says nothing more
        assert "/nowhere/that/is/far.sock does not exist" in state["reason"]


async def test_what_is_known_of_a_mapper(
    cloud: FakeCloud, config: EdgeCoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Mappers] = []

    class Seen(Mappers):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(twin_module, "Mappers", Seen)
    edge = Edge(config)
    await edge.start()
    try:
        await cloud.put(model_object())
        await cloud.put(device_object())
        await see_a_mapper(made[0], cloud, tmp_path)
    finally:
        await edge.stop()


async def see_a_mapper(mappers: Mappers, cloud: FakeCloud, directory: Path) -> None:
    def facts() -> MapperFacts:
        entry = mappers._catalog.get(DeviceId(BOILER))
        assert entry is not None
        found = mappers.facts(DeviceId(BOILER), entry)
        assert found is not None
        return found

    async def until_answering(answering: bool) -> None:
        async with asyncio.timeout(10):
            while facts().answering != answering:  # noqa: ASYNC110  # it tells nobody else
                await asyncio.sleep(0.01)

    async with FakeMapper(directory).running() as mapper:
        await mapper.report(BOILER, temperature="1")
        await until_answering(True)
        now = facts()
        assert mappers.registered == ("modbus/mapper-1",)
        assert (now.name, now.protocol, now.handed) == ("mapper-1", "modbus", "current")
        assert 0 < now.registered_ms <= now.heard_ms + 1
        assert not now.away_since_ms
        mapper.refusing = "no such register"
        await cloud.put(device_object(desired={"setpoint": "5"}), "update")
        await cloud.until_state(BOILER, "unhealthy")
        assert facts().handed == "pending"
        assert "no such register" in facts().refusal
    await until_answering(False)
    assert facts().away_since_ms >= facts().registered_ms


class Port:
    """A mapper's end, for the clockwork of a lease alone."""

    def __init__(self) -> None:
        self.here = asyncio.Event()
        self.gone = asyncio.Event()
        self.pings = 0
        self.answers = True

    async def ping(self, timeout_s: float) -> None:
        self.pings += 1
        if not self.answers:
            await asyncio.sleep(timeout_s)
            raise PeerTimeout("deadline")

    async def wait_ready(self) -> None:
        await self.here.wait()

    async def wait_lost(self) -> None:
        await self.gone.wait()
        self.here.clear()
        self.gone.clear()


async def test_several_that_doubt_a_mapper_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "PING_TIMEOUT_S", 0.05)
    port = Port()
    lease = Lease(MapperInfo("m", "p", "/m.sock"), port, lambda: None)  # type: ignore[arg-type]
    task = asyncio.create_task(lease.keep())
    port.here.set()
    await lease.reachable.wait()
    since = asyncio.get_running_loop().time()
    assert await asyncio.gather(*(lease.is_alive(since) for _ in range(8))) == [True] * 8
    assert port.pings == 1
    port.answers, since = False, asyncio.get_running_loop().time()
    assert await asyncio.gather(*(lease.is_alive(since) for _ in range(8))) == [False] * 8
    assert port.pings == 2
    assert not lease.answering
    assert "hangs" in lease.trouble
    assert lease.away_since is not None
    assert lease.away_since <= since  # from its last sign of life on, not from when it was noticed
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_peer_without_the_call_answers_it_and_one_that_is_not_there_does_not(tmp_path: Path) -> None:
    mapper = FakeMapper(tmp_path)
    async with MapperClient(mapper.info.address) as client:
        with pytest.raises(PeerUnavailable):
            await client.ping(1.0)
        async with mapper.running(register=False):
            await client.wait_ready()
            await client.ping(5.0)
    assert not os.path.exists(mapper.info.address)  # noqa: PTH110
    await mapper.client.close()


async def test_a_store_that_did_not_take_it_is_told_again(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_S", 0.3)
    monkeypatch.setattr(twin_module, "REWRITE_S", 0.2)
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 60.0)  # nobody looks again by then
    monkeypatch.setattr("edgecore.store.medium.MEMORY_CAP_BYTES", 1)  # there is no way out
    await cloud.put(model_object())
    await cloud.put(device_object())
    with contextlib.ExitStack() as disk:
        async with FakeMapper(tmp_path).running() as mapper:
            await mapper.client.report_state(DeviceId(BOILER), "online")
            await cloud.until_state(BOILER, "online")
            disk.enter_context(no_larger_files(0))
            with pytest.raises(PeerRefused, match="not stored"):
                await mapper.client.report_state(DeviceId(BOILER), "offline")
        await asyncio.sleep(1.0)  # the lease is over, and it could not be written
        assert cloud.states[BOILER]["state"] == "online"
    state = await cloud.until_state(BOILER, "unknown")
    assert state["reason"].startswith("mapper mapper-1 is gone")
