"""A disk that takes nothing, a file that is damaged while it is used, and rows that make no sense."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from dmi import DeviceId, Reported, Twin
from dmi.client import MapperInfo
from dmi.metrics import Metrics
from edgecore.store import (
    Database,
    StateRow,
    StoredObject,
    StoreError,
    TwinRow,
    get_object,
    get_state,
    get_twins,
    list_objects,
    open_database,
    put_object,
    put_state,
    put_twins,
    registered_mappers,
    replace_mapper,
)
from edgecore.store.medium import Medium

DEVICE = DeviceId("default/boiler-1")
DEADLINE_S = 15.0


def row(value: str, name: str = "temperature") -> TwinRow:
    return TwinRow(Twin(name, Reported(value, "float", 5)), version=1)


async def put(database: Database, value: str, name: str = "temperature") -> None:
    await database.run(lambda db: put_twins(db, DEVICE, [row(value, name)]))


async def value_of(database: Database, name: str = "temperature") -> str:
    return (await database.run(lambda db: get_twins(db, DEVICE)))[name].twin.reported.value


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the store's thread sets it
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def no_larger_files(limit: int) -> Iterator[None]:
    """The kernel refuses to let this process write any file beyond that size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.store.worker.PROBE_EVERY_S", 0.05)


@pytest.mark.usefixtures("probing")
async def test_a_disk_that_takes_nothing_leaves_all_in_memory_until_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.db"
    metrics = Metrics()
    async with open_database(path, metrics=metrics) as database:
        await put(database, "before")
        with no_larger_files(path.with_name("e.db-wal").stat().st_size):
            await put(database, "during " + "x" * 5000)
            assert "cannot be written" in database.trouble
            assert database.trouble_since_ms > 0
            assert metrics.entries["kubetwin_edgecore_store_in_memory"].source.read() == {(): 1.0}  # type: ignore[union-attr]
            await put(database, "more", "label")  # and on
            await asyncio.sleep(0.2)  # some probes
            assert database.trouble
            assert (await value_of(database)).startswith("during")
        await until(lambda: not database.trouble)
        await put(database, "after", "label")
    assert sum("cannot be written" in r.message for r in caplog.records) == 1
    assert sum("can be written again" in r.message for r in caplog.records) == 1
    async with open_database(path) as database:
        assert (await value_of(database)).startswith("during")
        assert await value_of(database, "label") == "after"


async def test_what_was_in_memory_is_written_at_the_end_too(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with open_database(path) as database:
        await put(database, "before")
        with no_larger_files(path.with_name("e.db-wal").stat().st_size):
            await put(database, "during " + "x" * 5000)
        assert database.trouble
    async with open_database(path) as database:
        assert (await value_of(database)).startswith("during")


async def test_the_copy_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.store.medium.MEMORY_CAP_BYTES", 256 * 1024)
    path = tmp_path / "e.db"
    async with open_database(path) as database:
        await put(database, "before")
        with no_larger_files(path.with_name("e.db-wal").stat().st_size):
            await put(database, "during " + "x" * 5000)
            assert database.trouble
            with pytest.raises(StoreError, match="not stored"):
                await put(database, "x" * 500_000)
            await put(database, "small")
            assert await value_of(database) == "small"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """3 MB that only this test uses."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], check=False).returncode:
        pytest.skip("no right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """The file that takes all the room there is."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return ballast


@pytest.mark.usefixtures("probing")
async def test_a_disk_that_is_full_already(disk: Path) -> None:
    """As after a restart: what is in the file is there, and what comes is kept in memory until there is room."""
    async with open_database(disk / "e.db") as database:
        await put(database, "before")
    ballast = fill(disk)
    async with open_database(disk / "e.db") as database:
        assert await value_of(database) == "before"
        await put(database, "during " + "x" * 20_000)
        assert "full" in database.trouble
        ballast.unlink()
        await until(lambda: not database.trouble)
    async with open_database(disk / "e.db") as database:
        assert (await value_of(database)).startswith("during")


@pytest.mark.usefixtures("probing")
async def test_a_full_disk(disk: Path) -> None:
    async with open_database(disk / "e.db") as database:
        await put(database, "before")
        ballast = fill(disk)
        await put(database, "during " + "x" * 20_000)
        assert "full" in database.trouble
        ballast.unlink()
        await until(lambda: not database.trouble)
        await put(database, "after", "label")
    async with open_database(disk / "e.db") as database:
        assert (await value_of(database)).startswith("during")
        assert await value_of(database, "label") == "after"


def fails_once(name: str) -> Callable[[sqlite3.Connection], None]:
    """A job that runs into trouble with the file, the first time."""
    error = sqlite3.OperationalError("as the file system says")
    error.sqlite_errorname = name
    errors = [error]

    def job(_: sqlite3.Connection) -> None:
        if errors:
            raise errors.pop()

    return job


@pytest.mark.usefixtures("probing")
async def test_a_file_damaged_on_a_full_disk_is_saved_into_memory(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        objects = [StoredObject("device", "default", f"d-{n}", "u", "1", b'"%s"' % (b"x" * 20_000)) for n in range(20)]
        for one in objects:
            await database.run(partial(put_object, obj=one))
        with no_larger_files(150_000):
            async with asyncio.timeout(DEADLINE_S):
                await database.run(fails_once("SQLITE_CORRUPT"))
                await put(database, "21.5")
            assert "its rows cannot be saved" in database.trouble
            assert len(await database.run(lambda db: list(list_objects(db, "device")))) == len(objects)
        await until(lambda: not database.trouble)
    async with open_database(tmp_path / "e.db") as database:
        assert await value_of(database) == "21.5"
        assert len(await database.run(lambda db: list(list_objects(db, "device")))) == len(objects)


async def test_what_cannot_be_mended_fails_and_the_store_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_database(tmp_path / "e.db") as database:
        mend = Medium.mend

        def failing(self: Medium, error: sqlite3.Error) -> bool:
            monkeypatch.setattr(Medium, "mend", mend)
            raise sqlite3.OperationalError("nor can it be read")

        monkeypatch.setattr(Medium, "mend", failing)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreError, match="as the file system says"):
                await database.run(fails_once("SQLITE_IOERR_READ"))
            await put(database, "21.5")
        assert await value_of(database) == "21.5"
    assert any("nor can it be read" in record.message for record in caplog.records)


async def test_a_file_damaged_while_it_is_used_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "e.db"
    mapper = MapperInfo("mapper-1", "modbus", "/run/m.sock")
    async with open_database(path) as database:

        def fill(db: sqlite3.Connection) -> None:
            put_object(db, StoredObject("device", "default", "boiler-1", "u", "1", b"{}"))
            replace_mapper(db, mapper, {})
            for number in range(3000):
                put_twins(db, DeviceId(f"default/d-{number}"), [row("x" * 400)])

        await database.run(fill)
        await database.run(lambda db: put_twins(db, DEVICE, [row("21.5")]))
    async with open_database(path) as database:
        rebuilt: list[str] = []
        database.rebuilt.append(lambda: rebuilt.append("now"))
        with path.open("r+b") as file:  # beyond the first pages, behind the back of whoever has it open
            size = path.stat().st_size
            file.seek(size // 4)
            file.write(b"\xa5" * (size - size // 4))

        async def report(number: int) -> None:
            await database.run(lambda db: put_twins(db, DeviceId(f"default/d-{number}"), [row("new")]))

        await asyncio.gather(*(report(number) for number in range(3000)))
        assert rebuilt == ["now"]
        assert not database.trouble
        stored = await database.run(lambda db: get_twins(db, DeviceId("default/d-2999")))
        assert stored["temperature"].twin.reported.value == "new"
        assert await database.run(registered_mappers) == [mapper]
        assert [o.name for o in await database.run(lambda db: list(list_objects(db, "device")))] == ["boiler-1"]
    aside = [path for path in tmp_path.glob("e.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    assert aside
    assert any("is damaged" in r.message and str(aside[0]) in r.message for r in caplog.records)
    async with open_database(path) as database:
        assert (await database.run(lambda db: get_twins(db, DeviceId("default/d-2999"))))["temperature"].version == 1


@pytest.mark.parametrize(
    ("statement", "named"),
    (
        ("UPDATE twin SET version = 'soon' WHERE property = 'label'", "label"),
        ("UPDATE twin SET reported = x'00ff' WHERE property = 'label'", "label"),
        ("UPDATE twin SET reported_ms = 'yesterday' WHERE property = 'label'", "label"),
        ("UPDATE twin SET property = x'6c6162ff' WHERE property = 'label'", "lab"),
        ("UPDATE twin SET version = 9223372036854775807 WHERE property = 'label'", "label"),
        ("UPDATE twin SET reported_ms = -5 WHERE property = 'label'", "label"),
        ("UPDATE twin SET quality = hex(zeroblob(40000)) WHERE property = 'label'", "label"),
    ),
)
async def test_a_row_of_the_wrong_type_is_named_and_only_that_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str, named: str
) -> None:
    path = tmp_path / "e.db"
    async with open_database(path) as database:
        await put(database, "21.5")
        await put(database, "22.5", "label")
        await database.run(lambda db: db.execute(statement) and None)
    async with open_database(path) as database:
        assert list(await database.run(lambda db: get_twins(db, DEVICE))) == ["temperature"]
        assert database.dropped_rows == 1
    assert any("made no sense" in r.message and named in r.message and str(DEVICE) in r.message for r in caplog.records)
    async with open_database(path) as database:
        assert database.dropped_rows == 0


async def test_text_that_is_no_utf8_is_found_when_it_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_database(tmp_path / "e.db") as database:
        await put(database, "21.5")
        await put(database, "22.5", "label")
        await database.run(lambda db: put_state(db, DEVICE, StateRow("online", version=1)))
        await database.run(
            lambda db: db.execute("UPDATE twin SET reported = CAST(x'ff31' AS TEXT) WHERE property = 'label'") and None
        )
        assert list(await database.run(lambda db: get_twins(db, DEVICE))) == ["temperature"]
        assert await database.run(lambda db: get_state(db, DEVICE)) == StateRow("online", version=1)
        assert database.dropped_rows == 1
        assert not database.trouble
    assert any("made no sense" in r.message and "label" in r.message for r in caplog.records)


async def test_an_impossible_job_is_its_own_fault(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        good = asyncio.create_task(put(database, "21.5"))
        for impossible in ("\ud800", 2**70, object()):
            with pytest.raises(Exception, match=r"surrogates|too large|not supported|not stored") as caught:
                await database.run(lambda db, v=impossible: db.execute("SELECT ?", (v,)) and None)  # type: ignore[misc]
            assert caught.value is not None
        await good
        assert await value_of(database) == "21.5"
        assert not database.trouble
        assert await database.run(lambda db: get_object(db, "device", "no", "such")) is None
