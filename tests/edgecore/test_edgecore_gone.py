"""Devices and mappers that go for good, for long, or come again as others under their names; and a store that fails."""

import asyncio
import logging
import sqlite3
from pathlib import Path

import pytest

from dmi import DeviceId, PeerRefused
from dmi.client import MapperClient
from edgecore.bus import Bus
from edgecore.config import EdgeCoreConfig
from edgecore.devicetwin import mappers as mappers_module
from edgecore.devicetwin import spread, sync
from edgecore.devicetwin.links import MapperLink
from edgecore.devicetwin.mappers import Mappers
from edgecore.devicetwin.spread import owner_of
from edgecore.store import Database, dirty_devices
from mappers.sdk.testing import eventually
from tests.edgecore.conftest import Edge
from tests.edgecore.peers import FakeCloud, FakeMapper, Json, device_object, model_object

BOILER = DeviceId("default/boiler-1")


def another(**of: str) -> Json:
    """Another device of the name."""
    found = device_object(**of)  # type: ignore[arg-type]
    found["metadata"]["uid"] = "another"
    return found


async def test_a_mapper_lets_go_of_a_device_before_it_gets_another_one_of_its_name(
    boiler: FakeMapper, cloud: FakeCloud
) -> None:
    """Declared the same; what the mapper said of the old one is forgotten here, and it would say it once only."""
    await boiler.until(lambda: boiler.devices)
    boiler.calls.clear()
    await cloud.put(another())
    await boiler.until(lambda: len(boiler.calls) == 2 and boiler.devices)
    assert boiler.calls == [("remove", BOILER), ("device", BOILER)]


async def test_a_mapper_loses_a_device_whose_successor_is_of_another_protocol(
    boiler: FakeMapper, cloud: FakeCloud
) -> None:
    await boiler.until(lambda: boiler.devices)
    await cloud.put(another(protocol="opcua"))
    await boiler.until(lambda: not boiler.devices)


async def test_a_mapper_that_stays_away_is_looked_after_now_and_then(
    boiler: FakeMapper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cloud: FakeCloud
) -> None:
    """Also when nobody can take its place, for longer than it takes to be forgotten where somebody can."""
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 0.05)
    monkeypatch.setattr(mappers_module, "FORGET_S", 0.2)
    reviews: list[float] = []
    review = Mappers._review

    def reviewed(self: Mappers, link: MapperLink) -> None:
        if link.mapper.name == "other":
            reviews.append(asyncio.get_running_loop().time())
        review(self, link)

    monkeypatch.setattr(Mappers, "_review", reviewed)
    async with FakeMapper(tmp_path, name="other", protocol="opcua").running():
        await cloud.put(device_object("valve-1", protocol="opcua"))
    async with asyncio.timeout(15):
        while len(reviews) < 4:  # noqa: ASYNC110 - a timer's work
            await asyncio.sleep(0.01)
    assert reviews[3] - reviews[2] > 0.15


async def test_names_that_never_come_again_keep_nobody_out(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(mappers_module, "MAX_MAPPERS", 2)
    for name in ("one", "two"):
        async with FakeMapper(tmp_path, name=name).running():
            pass
    async with FakeMapper(tmp_path, name="three").running(register=False) as third:
        with pytest.raises(PeerRefused, match="too many mappers"):
            await third.register()
        monkeypatch.setattr(mappers_module, "FORGET_S", 0.0)
        await third.register()
    assert "another one needs its place" in caplog.text


async def test_a_device_is_not_given_to_a_second_mapper_while_the_first_is_not_reached_yet(
    edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has it from the answer to its registration, which says more than a connection that is being made."""
    monkeypatch.setattr(spread, "MOVE_GRACE_S", 30.0)
    names = [f"boiler-{number}" for number in range(8)]
    ids = [DeviceId(f"default/{name}") for name in names]
    of_two = {id_ for id_ in ids if owner_of(id_, ["one", "two"]) == "two"}
    assert of_two
    reachable, ready = asyncio.Event(), MapperClient.wait_ready

    async def wait_ready(self: MapperClient) -> None:
        if "one.sock" in self._peer:
            await reachable.wait()
        await ready(self)

    monkeypatch.setattr(MapperClient, "wait_ready", wait_ready)
    await cloud.put(model_object())
    for name in names:
        await cloud.put(device_object(name))
    one, two = FakeMapper(tmp_path, name="one"), FakeMapper(tmp_path, name="two")
    async with one.running(), two.running():
        assert set(one.devices) == set(ids)
        more = next(
            f"valve-{n}" for n in range(99) if owner_of(DeviceId(f"default/valve-{n}"), ["one", "two"]) == "two"
        )
        await cloud.put(device_object(more))
        await two.until(lambda: two.devices)
        assert set(two.devices) == {f"default/{more}"}
        reachable.set()
        await two.until(lambda: of_two < set(two.devices))
        assert set(one.devices) == set(ids) - of_two


async def test_devices_that_go_while_their_mapper_is_away_are_not_kept_in_mind(
    boiler: FakeMapper, edge: Edge, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[MapperLink] = []
    start = Mappers._start

    def started(self: Mappers, link: MapperLink) -> None:
        links.append(link)
        start(self, link)

    monkeypatch.setattr(Mappers, "_start", started)
    async with FakeMapper(tmp_path, name="other", protocol="opcua").running():
        pass
    (link,) = links
    await eventually(lambda: not link.answering)
    for number in range(5):
        await cloud.put(device_object(f"valve-{number}", protocol="opcua"))
        assert f"default/valve-{number}" in link._todo
        await cloud.delete("Device", "default", f"valve-{number}")
    assert not link._todo


async def test_a_store_that_cannot_be_read_costs_no_connection(
    boiler: FakeMapper, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sync, "_STORE_RETRY_S", 0.05)
    cloud.confirming = False
    await boiler.report(BOILER, temperature="7")
    await cloud.until_value(BOILER, "temperature", "7")
    failures = [sqlite3.OperationalError("no")] * 2

    def failing(db: sqlite3.Connection) -> list[DeviceId]:
        if failures:
            raise failures.pop()
        return dirty_devices(db)

    monkeypatch.setattr(sync, "dirty_devices", failing)
    cloud.confirming = True
    cloud.twins.clear()
    connected = cloud.connected
    await cloud.cut()
    await cloud.until_value(BOILER, "temperature", "7")
    assert not failures
    assert cloud.connected == connected + 1
    assert not any(record.exc_info for record in caplog.records)


async def test_what_is_wrong_with_a_device_is_known_to_a_store_that_was_rebuilt(
    bus: Bus, config: EdgeCoreConfig, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else says it: the mapper says at best how the device does with its last declaration."""
    monkeypatch.setattr("edgecore.devicetwin.twin.DECLARATION_GRACE_S", 0.05)
    opened: list[Database] = []
    start = Database.start

    def started(self: Database) -> None:
        opened.append(self)
        start(self)

    monkeypatch.setattr(Database, "start", started)
    edge = Edge(config)
    await edge.start()
    try:
        await cloud.put(device_object())  # without its model
        await cloud.until_state(BOILER, "unhealthy")
        (database,) = opened

        def damage(_: sqlite3.Connection) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorname = "SQLITE_CORRUPT"
            if not database._medium.rebuilt:
                raise error

        await database.run(damage)
        cloud.states.clear()
        await cloud.cut()
        assert "boiler" in (await cloud.until_state(BOILER, "unhealthy"))["reason"]
    finally:
        await edge.stop()
