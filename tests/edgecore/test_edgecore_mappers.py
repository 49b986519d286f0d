"""Several mappers of one protocol: who runs what, and how devices move when one goes and comes back."""

import asyncio
import contextlib
import itertools
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dmi import DeviceId, PeerRefused
from dmi.ports import MapperInfo
from edgecore.config import EdgeCoreConfig
from edgecore.devicetwin import mappers as mappers_module
from edgecore.devicetwin import spread
from edgecore.devicetwin.spread import owner_of
from edgecore.store import handed_digests, open_database, registered_mappers
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk.mapper import run_mapper
from mappers.sdk.testing import eventually
from tests.edgecore.api_client import get_text
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, device_object, model_object

SAVED = Path(__file__).parent.parent / "data" / "edgecore"
DEVICES = [f"boiler-{n}" for n in range(12)]
IDS = [DeviceId(f"default/{name}") for name in DEVICES]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 0.3)


class Two:
    """Two mappers of one protocol, told apart by what they run."""

    def __init__(self, directory: Path) -> None:
        self.one = FakeMapper(directory, name="one")
        self.two = FakeMapper(directory, name="two")

    def everything_once(self) -> bool:
        return sorted([*self.one.devices, *self.two.devices]) == sorted(IDS)

    def as_spread(self) -> bool:
        return all(id_ in (self.one if owner_of(id_, ["one", "two"]) == "one" else self.two).devices for id_ in IDS)


@pytest.fixture
async def two(edge: Edge, cloud: FakeCloud, tmp_path: Path, quick: None) -> Two:
    await cloud.put(model_object())
    for name in DEVICES:
        await cloud.put(device_object(name))
    return Two(tmp_path)


async def test_devices_are_shared_and_a_second_mapper_takes_over_its_share(two: Two) -> None:
    async with two.one.running():
        assert sorted(two.one.devices) == sorted(IDS)
        held = set(two.one.devices)
        async with two.two.running():
            assert not two.two.devices  # not before the first has let go
            await two.two.until(lambda: two.as_spread() and two.everything_once())
            moved = {which for what, which in two.one.calls if what == "remove"}
            assert moved == held - set(two.one.devices)
            assert 0 < len(moved) < len(IDS)
            assert {which for what, which in two.two.calls if what == "device"} == moved


async def test_no_device_is_run_twice_while_it_is_handed_over(two: Two) -> None:
    async with two.one.running():
        seen: list[set[DeviceId]] = []
        apply = two.two.apply_device

        async def apply_device(device: object) -> None:
            seen.append(set(two.one.devices) & {device.id})  # type: ignore[attr-defined]
            await apply(device)  # type: ignore[arg-type]

        two.two.apply_device = apply_device  # type: ignore[method-assign]
        async with two.two.running():
            await two.two.until(two.everything_once)
            await two.two.until(two.as_spread)
    assert seen
    assert not any(seen)


async def test_the_devices_of_a_dead_mapper_move_and_come_back(two: Two, tmp_path: Path) -> None:
    async with two.one.running():
        async with two.two.running():
            await two.two.until(two.as_spread)
            share = set(two.two.devices)
        two.one.calls.clear()
        await two.one.until(lambda: len(two.one.devices) == len(IDS))
        assert {which for what, which in two.one.calls if what == "device"} == share
        two.one.calls.clear()
        two.two = FakeMapper(tmp_path, name="two")
        async with two.two.running():
            await two.two.until(lambda: set(two.two.devices) == share)
            await two.one.until(two.everything_once)
            assert {which for what, which in two.one.calls if what == "remove"} == share


async def test_one_that_comes_back_while_its_devices_are_moving_takes_them_over(two: Two, tmp_path: Path) -> None:
    """Whatever was under way to the other one then is not run by both."""
    async with two.one.running():
        async with two.two.running():
            await two.two.until(two.as_spread)
            share = set(two.two.devices)
        two.one.held = asyncio.Event()  # the first of the moved ones are on their way
        await two.one.until(lambda: any(what == "device" for what, _ in two.one.calls))
        two.two = FakeMapper(tmp_path, name="two")
        async with two.two.running():
            assert not {which for what, which in two.one.calls if what == "device"} & set(two.two.devices)
            two.one.held.set()
            await two.two.until(lambda: set(two.two.devices) == share)
            await two.one.until(two.everything_once)


async def test_a_quick_restart_moves_nothing(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 30.0)
    async with two.one.running():
        async with two.two.running():
            await two.two.until(two.as_spread)
            share = set(two.two.devices)
        two.one.calls.clear()
        two.two = FakeMapper(tmp_path, name="two")
        async with two.two.running():
            assert set(two.two.devices) == share  # in the answer to its registration
        assert not two.one.calls


async def test_what_is_desired_reaches_the_mapper_that_has_the_device(two: Two, cloud: FakeCloud) -> None:
    async with two.one.running(), two.two.running():
        await two.two.until(two.as_spread)
        for mapper in (two.one, two.two):
            name = min(mapper.devices).removeprefix("default/")
            await cloud.put(device_object(name, desired={"setpoint": "7"}), "update")
            await mapper.until_device(name, lambda d: (p := d.find("setpoint")) and p.desired.value == "7")
        two.one.calls.clear()
        removed = min(two.two.devices).removeprefix("default/")
        await cloud.delete("Device", "default", removed)
        await two.two.until(lambda: DeviceId(f"default/{removed}") not in two.two.devices)
        assert ("remove", f"default/{removed}") not in two.one.calls


async def test_a_pinned_device_runs_where_it_is_pinned(two: Two, cloud: FakeCloud) -> None:
    async with two.one.running(), two.two.running():
        await two.two.until(two.as_spread)
        for mapper, other in itertools.permutations((two.one, two.two)):
            name = min(other.devices).removeprefix("default/")
            await cloud.put(pinned(name, mapper.info.name), "update")
            await mapper.until_device(name)
            assert DeviceId(f"default/{name}") not in other.devices


async def test_a_device_pinned_to_nobody_is_run_by_nobody_and_says_so(
    two: Two, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappers_module, "NO_MAPPER_GRACE_S", 0.1)
    async with two.one.running():
        await cloud.put(pinned(DEVICES[0], "three"), "update")
        await two.one.until(lambda: IDS[0] not in two.one.devices)
        state = await cloud.until_state(IDS[0], "unknown")
        assert "mapper 'three'" in state["reason"]
        assert "spec.protocol.configData.mapper" in state["reason"]


def pinned(name: str, mapper: str) -> dict[str, object]:
    device = device_object(name)
    device["spec"]["protocol"]["configData"]["mapper"] = mapper
    return device


async def test_one_name_at_two_addresses_the_newest_counts(
    two: Two, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = FakeMapper(tmp_path, name="two")
    other.info = MapperInfo("one", "modbus", other.info.address)
    async with two.one.running(), other.running():
        assert sorted(other.devices) == sorted(IDS)
        assert [r for r in caplog.records if "the newest one counts" in r.getMessage()]
        two.one.calls.clear()
        await asyncio.sleep(0)
        assert not two.one.calls


async def test_another_name_at_the_same_address_takes_its_place_at_once(
    two: Two, tmp_path: Path, config: EdgeCoreConfig, edge: Edge
) -> None:
    async with two.one.running():
        pass
    renamed = FakeMapper(tmp_path, name="one")
    renamed.info = MapperInfo("renamed", "modbus", two.one.info.address)
    async with renamed.running():
        assert sorted(renamed.devices) == sorted(IDS)
    await edge.stop()
    with contextlib.closing(sqlite3.connect(config.database.data_source)) as db:
        assert [m.name for m in registered_mappers(db)] == ["renamed"]


async def test_the_same_name_under_two_protocols_is_two_mappers(two: Two, cloud: FakeCloud, tmp_path: Path) -> None:
    await cloud.put(model_object("valve", "opcua"))
    await cloud.put(device_object("valve-1", model="valve", protocol="opcua"))
    other = FakeMapper(tmp_path, name="other", protocol="opcua")
    other.info = MapperInfo("one", "opcua", other.info.address)
    async with two.one.running(), other.running():
        assert list(other.devices) == ["default/valve-1"]
        assert sorted(two.one.devices) == sorted(IDS)


async def test_a_mapper_that_is_gone_for_long_is_forgotten(
    two: Two, edge: Edge, config: EdgeCoreConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(mappers_module, "FORGET_S", 0.5)
    async with two.one.running():
        async with two.two.running():
            await two.two.until(two.as_spread)
        await two.one.until(lambda: len(two.one.devices) == len(IDS))
        api = Path(config.modules.device_twin.dmi_sock_path) / "edgecore.sock"
        assert 'mapper="modbus/two"' in (await get_text(api, "/metrics"))[1]
        async with asyncio.timeout(10):
            while "mapper two of protocol modbus is forgotten" not in caplog.text:  # noqa: ASYNC110  # it tells nobody else
                await asyncio.sleep(0.02)
            while 'mapper="modbus/two"' in (await get_text(api, "/metrics"))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await edge.stop()
    with contextlib.closing(sqlite3.connect(config.database.data_source)) as db:
        assert [m.name for m in registered_mappers(db)] == ["one"]


async def test_a_restarted_edge_core_takes_no_device_from_the_one_that_runs_it(two: Two, edge: Edge) -> None:
    """Its share's owner is away, which a fresh edge core does not know yet."""
    async with two.one.running():
        async with two.two.running():
            await two.two.until(two.as_spread)
        await two.one.until(lambda: len(two.one.devices) == len(IDS))
        await edge.stop()
        two.one.calls.clear()
        await edge.start()
        await asyncio.sleep(1.0)  # the grace and more
        assert not two.one.calls


class Wire:
    """Says who holds a link to which device, and whether ever two did."""

    def __init__(self) -> None:
        self.held: dict[DeviceId, str] = {}
        self.twice: list[tuple[DeviceId, str, str]] = []


class WatchedDriver(VirtualDriver):
    protocol = "virtual"

    def __init__(self, name: str, wire: Wire) -> None:
        super().__init__()
        self._name = name
        self._wire = wire

    @contextlib.asynccontextmanager
    async def connect(self, device_id: DeviceId, config: Any) -> AsyncIterator[Any]:
        if device_id in self._wire.held:
            self._wire.twice.append((device_id, self._wire.held[device_id], self._name))
        self._wire.held[device_id] = self._name
        try:
            async with super().connect(device_id, config) as link:
                yield link
        finally:
            del self._wire.held[device_id]


@contextlib.asynccontextmanager
async def sdk_mapper(name: str, directory: Path, wire: Wire) -> AsyncIterator[None]:
    """A mapper as the SDK runs it."""
    stop = asyncio.Event()
    info = MapperInfo(name, "virtual", str(directory / f"{name}.sock"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_mapper(WatchedDriver(name, wire), info, directory / "dmi.sock", stop), name=name)
        try:
            yield
        finally:
            stop.set()


async def test_two_mappers_of_the_sdk_share_their_devices_and_never_hold_one_twice(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, quick: None
) -> None:
    await cloud.put(model_object("gauge", "virtual", {"level": "INT"}))
    for name in DEVICES:
        gauge = device_object(name, model="gauge", protocol="virtual", properties=["level"])
        gauge["spec"]["protocol"]["configData"] = {}
        gauge["spec"]["properties"][0] |= {"visitors": {"configData": {"waveform": "ramp"}}, "collectCycle": 50}
        await cloud.put(gauge)
    wire, spread_out = Wire(), {id_: owner_of(id_, ["one", "two"]) for id_ in IDS}
    async with sdk_mapper("one", tmp_path, wire):
        await eventually(lambda: wire.held == dict.fromkeys(IDS, "one"), 15)
        async with sdk_mapper("two", tmp_path, wire):
            await eventually(lambda: wire.held == spread_out, 15)
        await eventually(lambda: wire.held == dict.fromkeys(IDS, "one"), 15)
        async with sdk_mapper("two", tmp_path, wire):
            await eventually(lambda: wire.held == spread_out, 15)
            cloud.twins.clear()
            await cloud.until(lambda: {device for device, _ in cloud.twins} == set(IDS), "all of them are reported")
    assert not wire.twice


async def test_an_address_inside_the_process_is_not_for_sockets(edge: Edge, tmp_path: Path) -> None:
    mapper = FakeMapper(tmp_path)
    mapper.info = MapperInfo("x", "modbus", "local:x")
    async with mapper.client:
        with pytest.raises(PeerRefused, match="not the path of a socket"):
            await mapper.register()


async def test_a_store_of_version_1_knows_what_its_mapper_was_handed(tmp_path: Path) -> None:
    path = tmp_path / "edgecore.db"
    shutil.copy(SAVED / "version-1.db", path)
    async with open_database(path) as database:
        (mapper,) = await database.run(registered_mappers)
        assert await database.run(lambda db: handed_digests(db, mapper)) == {DeviceId("default/boiler-1"): b"digest"}
        assert await database.run(lambda db: handed_digests(db, MapperInfo("other", "modbus", ""))) == {}
        tables = await database.run(lambda db: {name for (name,) in db.execute("SELECT name FROM sqlite_master")})
        assert "handed_before" not in tables
