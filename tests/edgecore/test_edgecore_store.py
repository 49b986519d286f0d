"""The database: what is stored together, what fails alone, and what a damaged file does."""

import asyncio
import functools
import itertools
import sqlite3
import stat
from pathlib import Path

import msgspec
import pytest

from dmi import Desired, DeviceId, Reported, Twin
from dmi.client import MapperInfo
from dmi.metrics import Metrics
from edgecore.store import (
    StateRow,
    StoredObject,
    StoreError,
    TwinRow,
    acknowledge_twins,
    delete_device,
    delete_orphans,
    dirty_devices,
    get_object,
    get_state,
    get_twins,
    handed_digests,
    keep_properties,
    list_objects,
    open_database,
    put_object,
    put_state,
    put_twins,
    registered_mappers,
    replace_mapper,
)
from edgecore.store.worker import BATCH_JOBS

SAVED = Path(__file__).parent.parent / "data" / "edgecore"
DEVICE = DeviceId("default/boiler-1")


def row(value: str, version: int = 1, acked: int = 0, name: str = "temperature") -> TwinRow:
    twin = Twin(name, Reported(value, "float", 5, "stale", "no reply"), Desired("1", "float", 4, "failed", "refused"))
    return TwinRow(twin=twin, version=version, acked=acked)


async def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        await database.run(lambda db: put_twins(db, DEVICE, [row("21.5"), row("\u0000ü", 3, 3, name="label")]))
        rows = await database.run(lambda db: get_twins(db, DEVICE))
        assert rows == {"temperature": row("21.5"), "label": row("\u0000ü", 3, 3, name="label")}
        assert await database.run(lambda db: get_twins(db, DEVICE, dirty=True)) == {"temperature": row("21.5")}
        state = StateRow("online", "", "unknown", "no mapper", 12, 3, 1)
        await database.run(lambda db: put_state(db, DEVICE, state))
        assert await database.run(lambda db: get_state(db, DEVICE)) == state


async def test_an_acknowledgement_clears_exactly_its_version(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        await database.run(lambda db: put_twins(db, DEVICE, [row("3", 3)]))
        await database.run(lambda db: acknowledge_twins(db, DEVICE, {"temperature": 2, "gone": 1}))
        assert await database.run(dirty_devices) == [DEVICE]
        await database.run(lambda db: acknowledge_twins(db, DEVICE, {"temperature": 3}))
        assert await database.run(dirty_devices) == []
        await database.run(lambda db: acknowledge_twins(db, DEVICE, {"temperature": 2}))  # late
        assert (await database.run(lambda db: get_twins(db, DEVICE)))["temperature"].acked == 3


async def test_orphans_and_lost_properties_go(tmp_path: Path) -> None:
    def job(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
        put_object(db, StoredObject("device", "default", "boiler-1", "u", "1", b"{}"))
        put_twins(db, DEVICE, [row("1"), row("2", name="label")])
        put_twins(db, DeviceId("default/gone"), [row("1")])
        delete_orphans(db)
        keep_properties(db, DEVICE, ["label"])
        left = list(get_twins(db, DEVICE)), list(get_twins(db, DeviceId("default/gone")))
        delete_device(db, DEVICE)
        return left

    async with open_database(tmp_path / "e.db") as database:
        assert await database.run(job) == (["label"], [])
        assert await database.run(lambda db: get_twins(db, DEVICE)) == {}


async def test_a_failing_job_takes_no_other_with_it(tmp_path: Path) -> None:
    def fails(db: sqlite3.Connection) -> None:
        put_twins(db, DEVICE, [row("half done", name="label")])
        raise LookupError("no")

    async with open_database(tmp_path / "e.db") as database:
        good = asyncio.create_task(database.run(lambda db: put_twins(db, DEVICE, [row("1")])))
        bad = asyncio.create_task(database.run(fails))
        await good
        with pytest.raises(LookupError):
            await bad
        assert await database.run(lambda db: list(get_twins(db, DEVICE))) == ["temperature"]


async def test_what_follows_a_commit_happens_although_the_caller_is_gone(tmp_path: Path) -> None:
    followed: list[int] = []
    async with open_database(tmp_path / "e.db") as database:
        caller = asyncio.create_task(database.run(lambda db: 1, then=followed.append))
        await asyncio.sleep(0)  # the job is queued
        caller.cancel()
        await database.run(lambda db: 2, then=followed.append)
    assert followed == [1, 2]


async def test_jobs_at_once_share_transactions(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        marks: list[str] = []
        await database.run(lambda db: db.set_trace_callback(marks.append))
        await asyncio.gather(*(database.run(lambda db: put_twins(db, DEVICE, [row("1")])) for _ in range(200)))
        assert 1 <= marks.count("COMMIT") < 100


async def test_while_jobs_keep_coming_there_is_a_transaction_every_20_ms(tmp_path: Path) -> None:
    metrics = Metrics()
    async with open_database(tmp_path / "e.db", metrics=metrics) as database:
        loop = asyncio.get_running_loop()
        start, posted = loop.time(), 0
        while loop.time() < start + 1.0:
            posted += 1
            database.post(lambda db: put_twins(db, DEVICE, [row("1")]))
            if posted % 8 == 0:
                await asyncio.sleep(0.0005)
        await database.run(lambda db: None)
        elapsed = loop.time() - start
        transactions = metrics.counter("kubetwin_edgecore_store_transactions_total", "").total()
        # What no more fits into a transaction has one of its own.
        assert transactions <= elapsed / 0.02 + posted / BATCH_JOBS + 10


async def test_when_all_callers_wait_a_transaction_is_a_little_sooner_and_none_waits_when_idle(tmp_path: Path) -> None:
    metrics = Metrics()
    async with open_database(tmp_path / "e.db", metrics=metrics) as database:
        numbers = itertools.count(1)
        loop = asyncio.get_running_loop()

        async def report() -> None:
            version = next(numbers)
            await database.run(lambda db: put_twins(db, DEVICE, [row(str(version), version)]))

        async def caller(until: float) -> None:
            while loop.time() < until:
                await report()

        start = loop.time()
        await asyncio.gather(*(caller(start + 1.0) for _ in range(32)))
        elapsed = loop.time() - start
        transactions = metrics.counter("kubetwin_edgecore_store_transactions_total", "").total()
        jobs = metrics.counter("kubetwin_edgecore_store_jobs_total", "", "result").total()
        assert jobs == next(numbers) - 1
        assert transactions <= elapsed / 0.015 + 10
        for _ in range(4):
            await report()  # the load is over
        start = loop.time()
        for _ in range(100):
            await report()
        assert loop.time() - start < 100 * 0.02


async def test_what_goes_along_costs_no_transaction_of_its_own_and_is_not_left_behind(tmp_path: Path) -> None:
    metrics = Metrics()
    transactions = metrics.counter("kubetwin_edgecore_store_transactions_total", "")
    async with open_database(tmp_path / "e.db", metrics=metrics) as database:
        await database.run(lambda db: put_twins(db, DEVICE, [row("1", 1)]))
        before = transactions.total()
        for _ in range(20):
            database.post_along(lambda db: acknowledge_twins(db, DEVICE, {"temperature": 1}))
        assert await database.run(dirty_devices) == []  # later jobs see it done
        assert transactions.total() <= before + 2
        await database.run(lambda db: put_twins(db, DEVICE, [row("2", 2, 1)]))
        database.post_along(lambda db: acknowledge_twins(db, DEVICE, {"temperature": 2}))
        async with asyncio.timeout(15):
            while database.backlog or not transactions.total() > before + 2:  # noqa: ASYNC110 - nothing else comes
                await asyncio.sleep(0.01)
        database.post_along(lambda db: put_twins(db, DEVICE, [row("3", 3, 2)]))  # and closing does not forget it
    async with open_database(tmp_path / "e.db") as database:
        assert (await database.run(lambda db: get_twins(db, DEVICE)))["temperature"].version == 3


async def test_the_backlog_is_bounded_and_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.store.database.MAX_BACKLOG", 8)
    done: list[int] = []
    highest = 0
    async with open_database(tmp_path / "e.db") as database:

        async def job(number: int) -> None:
            nonlocal highest
            await database.run(lambda _: None, then=lambda _: done.append(number))
            highest = max(highest, database.backlog)

        tasks = [asyncio.create_task(job(number)) for number in range(200)]
        await asyncio.sleep(0)
        assert database.backlog == 8
        tasks[100].cancel()
        await asyncio.wait(tasks)
        assert done == [number for number in range(200) if number != 100]
        assert highest <= 8
        assert database.backlog == 0


async def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "e.db"
    path.write_bytes(b"this is no database" * 500)
    metrics = Metrics()
    async with open_database(path, metrics=metrics) as database:
        assert await database.run(dirty_devices) == []
    assert metrics.counter("kubetwin_edgecore_store_rebuilt_total", "").total() == 1
    aside = list(tmp_path.glob("e.db.damaged-*"))
    assert len(aside) == 1
    assert aside[0].read_bytes().startswith(b"this is no database")
    assert any("is damaged" in r.message and str(aside[0]) in r.message for r in caplog.records)


async def test_a_file_torn_in_the_middle_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with open_database(path) as database:
        objects = [StoredObject("x", "n", str(i), "", "", b"y" * 500) for i in range(200)]
        await asyncio.gather(*(database.run(functools.partial(put_object, obj=obj)) for obj in objects))
    content = bytearray(path.read_bytes())
    content[8192:40000] = b"\xff" * (40000 - 8192)
    path.write_bytes(content)
    async with open_database(path) as database:
        assert await database.run(lambda db: list(list_objects(db, "x"))) == []
    assert list(tmp_path.glob("e.db.damaged-*"))


async def test_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="version 99"):
        async with open_database(path):
            pass
    assert not list(tmp_path.glob("*damaged*"))


async def test_a_file_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.store.medium._BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "e.db"
    async with open_database(path):
        with pytest.raises(StoreError, match="another edgecore"):
            async with open_database(path):
                pass


async def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    async with open_database(tmp_path / "sub" / "e.db") as database:
        assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("version", (1, 2))
async def test_a_saved_file_of_every_version_opens(tmp_path: Path, version: int) -> None:
    path = tmp_path / "e.db"
    path.write_bytes((SAVED / f"version-{version}.db").read_bytes())
    async with open_database(path) as database:
        obj = await database.run(lambda db: get_object(db, "device", "default", "boiler-1"))
        assert obj == StoredObject("device", "default", "boiler-1", "uid-1", "1002", b'{"kind":"Device"}')
        twin = msgspec.structs.replace(row("21.5", 2, 1), reported_edge=2, desired_edge=2)
        assert await database.run(lambda db: get_twins(db, DEVICE)) == {"temperature": twin}
        assert await database.run(lambda db: get_state(db, DEVICE)) == StateRow("online", "", "", "", 12, 3, 1)
        assert await database.run(registered_mappers) == [MapperInfo("mapper-1", "modbus", "/run/m.sock")]
        assert await database.run(lambda db: handed_digests(db, MapperInfo("mapper-1", "modbus", ""))) == {
            DEVICE: b"digest"
        }


def save(path: Path) -> None:
    """How the saved files were made: run once while the version was current."""

    async def make() -> None:
        async with open_database(path) as database:

            def job(db: sqlite3.Connection) -> None:
                put_object(db, StoredObject("device", "default", "boiler-1", "uid-1", "1002", b'{"kind":"Device"}'))
                put_twins(db, DEVICE, [row("21.5", 2, 1)])
                put_state(db, DEVICE, StateRow("online", "", "", "", 12, 3, 1))
                replace_mapper(db, MapperInfo("mapper-1", "modbus", "/run/m.sock"), {DEVICE: b"digest"})

            await database.run(job)

    asyncio.run(make())
