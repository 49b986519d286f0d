"""History around its file: what is listened to, written, forgotten, and what happens when the disk does not want."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from dmi import DeviceId, Reported, Twin
from dmi.metrics import Metrics
from edgecore.bus import Bus, ObjectChange, ObjectsChanged, TwinsReported
from edgecore.config import HistoryConfig
from edgecore.history import History, history, open_history
from edgecore.history.file import HistoryFile
from edgecore.history.points import Point
from edgecore.store import Database, StoredObject, open_database, put_object
from tests.edgecore.peers import DEADLINE_S, device_object

PUMP = DeviceId("default/pump")
NOW = 1_800_000_000_000


class World:
    """A bus, a store with device `default/pump`, and a history of it."""

    def __init__(self, directory: Path, database: Database, config: HistoryConfig) -> None:
        self.path = directory / "history.db"
        self.database = database
        self.config = config
        self.bus = Bus()
        self.metrics = Metrics()

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[History]:
        self.bus, self.metrics = Bus(), Metrics()
        async with open_history(
            self.config, self.path, bus=self.bus, database=self.database, metrics=self.metrics
        ) as kept:
            yield kept

    def report(self, value: str, *, name: str = "speed", at: int = NOW, quality: str = "good") -> None:
        reported = Reported(value, "int", at, quality)  # type: ignore[arg-type]  # one of the qualities
        self.bus.tell(TwinsReported(PUMP, (Twin(name, reported),)))

    def counted(self, name: str, *labels: str) -> float:
        source = self.metrics.entries[f"kubetwin_edgecore_history_{name}"].source
        return (source.values if hasattr(source, "values") else source.read()).get(labels, 0)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - another thread's work
                await asyncio.sleep(0.01)


async def values(
    kept: History, name: str = "", *, since_ms: int = 0, limit: int = 100, max_bytes: int = 10**6
) -> list[str]:
    found, _ = await kept.newest_first(PUMP, name, since_ms=since_ms, limit=limit, max_bytes=max_bytes)
    return [p.value for p in found]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "edgecore.db") as database:
        body = msgspec.json.encode(device_object("pump", properties=("speed", "mode")))
        await database.run(lambda db: put_object(db, StoredObject("device", "default", "pump", "u", "1", body)))
        yield database


@pytest.fixture
def world(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(history, "WRITE_EVERY_S", 0.02)
    monkeypatch.setattr(history, "RETRY_S", 0.05)
    monkeypatch.setattr(history, "now_ms", lambda: NOW)
    return World(tmp_path, database, HistoryConfig(enable=True))


async def test_values_are_there_at_once_and_after_a_restart(world: World) -> None:
    async with world.keeping() as kept:
        world.report("1", at=NOW - 3)
        world.report("2", at=NOW - 2)
        world.report("2", at=NOW - 1, quality="bad")
        assert await values(kept) == ["2", "2", "1"]
        assert await values(kept, since_ms=NOW - 2) == ["2", "2"]
        await world.until(lambda: world.counted("points_total") == 3)
        assert await values(kept) == ["2", "2", "1"]
        assert await values(kept, "mode") == []
        world.report("3")  # not waited for: the end writes it
    async with world.keeping() as kept:
        assert await values(kept) == ["3", "2", "2", "1"]
        assert world.counted("bytes") >= 0


async def test_confirmations_are_not_kept_also_after_a_restart(world: World) -> None:
    async with world.keeping() as kept:
        for number in range(50):
            world.report("1", at=NOW + number * 1000)
        world.report("1", at=NOW + 60_000)
        assert await values(kept) == ["1", "1"]
    async with world.keeping() as kept:
        await world.until(lambda: kept._last)
        world.report("1", at=NOW + 61_000)
        assert await values(kept) == ["1", "1"]


async def test_more_than_asked_for_is_said(world: World) -> None:
    async with world.keeping() as kept:
        for number in range(10):
            world.report(f"{number:0100}", at=NOW + number)
        assert await kept.newest_first(PUMP, "speed", since_ms=0, limit=3, max_bytes=10**6) != ([], False)
        found, more = await kept.newest_first(PUMP, "", since_ms=0, limit=3, max_bytes=10**6)
        assert ([int(p.value) for p in found], more) == ([9, 8, 7], True)
        found, more = await kept.newest_first(PUMP, "", since_ms=0, limit=100, max_bytes=700)
        assert (len(found), more) == (2, True)
        found, more = await kept.newest_first(PUMP, "", since_ms=0, limit=10, max_bytes=10**6)
        assert (len(found), more) == (10, False)


async def test_what_is_older_than_the_age_is_not_shown(world: World) -> None:
    world.config = HistoryConfig(enable=True, max_age=60)
    async with world.keeping() as kept:
        world.report("old", at=NOW - 60_001)
        world.report("new", at=NOW - 60_000)
        assert await values(kept) == ["new"]


async def test_what_is_of_no_device_goes_at_the_start_and_when_it_goes(world: World) -> None:
    async with world.keeping() as kept:
        for name in ("speed", "mode", "gone"):
            world.report("1", name=name)
        await world.until(lambda: world.counted("points_total") == 3)
    async with world.keeping() as kept:
        await world.until(lambda: kept._last)
        assert sorted(p.name for p in (await kept.newest_first(PUMP, "", since_ms=0, limit=9, max_bytes=9999))[0]) == [
            "mode",
            "speed",
        ]
        body = msgspec.json.encode(device_object("pump", properties=("mode",)))
        world.report("2", name="speed")
        await world.bus.publish(ObjectsChanged((ObjectChange("device", "default", "pump", body),)))
        world.report("3", name="mode")
        await world.until(lambda: world.counted("points_total") == 1)
        assert await values(kept) == ["3", "1"]
        await world.bus.publish(ObjectsChanged((ObjectChange("device", "default", "pump", None),)))
        await world.until(lambda: not kept._forgotten)
        assert await values(kept) == []
        world.report("3", name="mode")  # a new device of its name, with the value the old one had
        assert await values(kept) == ["3"]


async def test_a_property_that_went_while_nothing_could_be_written_and_came_again_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def declare(*names: str) -> None:
        body = msgspec.json.encode(device_object("pump", properties=names))
        await world.bus.publish(ObjectsChanged((ObjectChange("device", "default", "pump", body),)))

    append, failed, go_on = HistoryFile.append, threading.Event(), threading.Event()

    def failing(self: HistoryFile, points: Iterable[Point], *, now_ms: int) -> None:
        if go_on.is_set():
            return append(self, points, now_ms=now_ms)
        failed.set()
        go_on.wait(DEADLINE_S)
        raise OSError("the disk does not want")

    async with world.keeping() as kept:
        for name in ("speed", "mode"):
            world.report("1", name=name)
        await world.until(lambda: world.counted("points_total") == 2)
        monkeypatch.setattr(HistoryFile, "append", failing)
        world.report("2", name="mode", at=NOW + 1)
        await declare("mode")
        await world.until(failed.is_set)
        await declare("mode", "speed")
        world.report("3", at=NOW + 2)
        await declare("speed")
        go_on.set()
        await world.until(lambda: world.counted("points_total") == 3)
        assert await values(kept) == ["3"]


async def test_a_replaced_device_begins_anew(world: World) -> None:
    async with world.keeping() as kept:
        world.report("1")
        await world.until(lambda: world.counted("points_total") == 1)
        body = msgspec.json.encode(device_object("pump", properties=("speed",)))
        await world.bus.publish(ObjectsChanged((ObjectChange("device", "default", "pump", body, replaced=True),)))
        world.report("1")
        await world.until(lambda: world.counted("points_total") == 2)
        assert await values(kept) == ["1"]


async def test_many_devices_that_go_at_once_are_gone_through_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each of thousands, all that waits and all there is would hold up everything else for a minute."""
    devices = [DeviceId(f"default/pump-{number}") for number in range(200)]
    sizes = 0
    size = Point.size.fget  # type: ignore[attr-defined]  # a property

    def counted(point: Point) -> object:
        nonlocal sizes
        sizes += 1
        return size(point)

    async with world.keeping() as kept:
        for value in ("1", "2"):
            await world.until(lambda: not len(kept._buffer))
            for device in devices:
                world.bus.tell(TwinsReported(device, (Twin("speed", Reported(value, "int", NOW)),)))
        monkeypatch.setattr(Point, "size", property(counted))
        gone = (ObjectChange("device", "default", device.split("/")[1], None) for device in devices)
        await world.bus.publish(ObjectsChanged(tuple(gone)))
        assert sizes <= len(devices)
        await world.until(lambda: not kept._forgotten)
        assert await kept.newest_first(devices[7], "", since_ms=0, limit=9, max_bytes=9999) == ([], False)


async def test_a_device_that_cannot_be_read_keeps_its_history(world: World) -> None:
    async with world.keeping() as kept:
        world.report("1")
        await world.bus.publish(ObjectsChanged((ObjectChange("device", "default", "pump", b"{"),)))
        assert await values(kept) == ["1"]


async def test_too_large_a_value_is_counted(world: World) -> None:
    world.config = HistoryConfig(enable=True, max_bytes=1024 * 1024)
    async with world.keeping() as kept:
        world.report("x" * 70_000)
        world.report("1", at=NOW + 1)
        assert await values(kept) == ["1"]
        assert world.counted("dropped_total", "too large") == 1


async def test_a_damaged_file_is_set_aside_and_a_new_one_begun(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.path.write_bytes(b"this is not a database, but it is long enough to be one" * 200)
    async with world.keeping() as kept:
        world.report("1")
        await world.until(lambda: world.counted("points_total") == 1)
        assert await values(kept) == ["1"]
        assert kept.trouble == ""
    assert world.path.with_name("history.db.damaged").read_bytes().startswith(b"this is not")
    assert "is damaged" in caplog.text


async def test_a_file_damaged_while_it_is_open_is_set_aside_too(world: World) -> None:
    world.config = HistoryConfig(enable=True, max_bytes=4 * 1024 * 1024)
    aside = world.path.with_name("history.db.damaged")
    async with world.keeping() as kept:
        for number in range(2000):
            world.report(f"{number:01000}", at=NOW + number)
        await world.until(lambda: world.counted("points_total") == 2000)
        with world.path.open("r+b") as file:
            for page in range(1, world.path.stat().st_size // 4096):
                file.seek(page * 4096)
                file.write(b"\xff" * 4096)
        number = 2000
        async with asyncio.timeout(DEADLINE_S):
            while not aside.exists():
                number += 1
                world.report(f"{number:01000}", at=NOW + number)
                with contextlib.suppress(sqlite3.DatabaseError):
                    await values(kept)
        world.report("1", at=NOW + number)
        await world.until(lambda: not kept.trouble and not len(kept._buffer))
        assert (await values(kept))[0] == "1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system that is full soon")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


async def test_a_full_disk_is_counted_shown_and_over_some_day(
    world: World, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "BUFFER_POINTS", 100)
    world.path = small_disk / "history.db"
    async with world.keeping() as kept:
        world.report("first")
        await world.until(lambda: world.counted("points_total") == 1)
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        for number in range(500):
            world.report(f"{number}" + "x" * 2000, at=NOW + number)
        await world.until(lambda: kept.trouble)
        assert "full" in kept.trouble
        assert len(await values(kept)) > 1, "it can still be read, which is no end of the trouble"
        assert kept.trouble
        assert world.counted("failing") == 1
        await world.until(lambda: world.counted("dropped_total", "not written") >= 400)
        (small_disk / "ballast").unlink()
        await world.until(lambda: world.counted("points_total") >= 50)
        await world.until(lambda: kept.trouble == "")
        found = await values(kept, limit=200, max_bytes=10**7)
        assert found[0].startswith("499x")
        assert found[-1] == "first"
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert ["cannot be written" in r.getMessage() for r in told] == [True, False]


async def test_a_file_that_cannot_be_opened_is_tried_again(world: World) -> None:
    world.path.mkdir()  # nothing that could be opened
    async with world.keeping() as kept:
        await world.until(lambda: kept.trouble)
        world.report("1")
        with pytest.raises((OSError, ValueError)):
            await values(kept)
        world.path.rmdir()
        await world.until(lambda: not kept.trouble)
        assert await values(kept) == ["1"]
