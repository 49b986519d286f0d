"""Saved files of every version: opened by this one, they say what they said."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from cloudedge import decode
from dmi import Desired, DeviceId, Reported, Twin
from edgecore.store import StateRow, TwinRow, get_state, get_twins, open_database
from edgecore.store.migrations import VERSION, migrate
from edgecore.store.outbox import OutboxSize, next_kept, outbox_size

SAVED = Path(__file__).parent.parent / "data" / "edgecore"
DEVICE = DeviceId("default/boiler-1")
TWIN = Twin(
    "temperature",
    Reported("21.5", "float", 5, "stale", "no reply"),
    Desired("1", "float", 4, "failed", "refused"),
)


@pytest.mark.parametrize("version", range(1, VERSION + 1))
async def test_a_saved_file_of_any_version_opens(version: int, tmp_path: Path) -> None:
    path = tmp_path / "edgecore.db"
    shutil.copy(SAVED / f"version-{version}.db", path)
    async with open_database(path) as database:
        rows = await database.run(lambda db: get_twins(db, DEVICE))
        state = await database.run(lambda db: get_state(db, DEVICE))
        assert await database.run(lambda db: db.execute("PRAGMA user_version").fetchone()) == (VERSION,)
        kept = await database.run(lambda db: next_kept(db, after=0, limit=9, max_bytes=9999))
        size = await database.run(outbox_size)
    if version < 4:  # nothing was kept for the cloud
        assert (kept, size) == ([], OutboxSize())
    else:
        assert [(row.number, decode(row.body).data(float)) for row in kept] == [(2, 21.5), (3, 21.5)]
        assert size == OutboxSize(2, sum(len(row.body) for row in kept))
    if version < 3:  # neither sides with versions of their own, nor a time of the state
        assert rows == {"temperature": TwinRow(TWIN, 2, 1, reported_edge=2, desired_edge=2)}
        assert state == StateRow("online", "", "", "", 12, 3, 1)
    else:
        assert rows == {
            "temperature": TwinRow(TWIN, 2, 1, False, False, 7, 1, 6, 2, True),
            "label": TwinRow(Twin("label"), 4, 4, True, True, 3),
        }
        assert state == StateRow("online", "", "", "", 12, 3, 1, 9)


def test_the_newest_saved_file_is_of_the_schema_there_is(tmp_path: Path) -> None:
    """A released step that was edited would leave files that no program expects."""
    shutil.copy(SAVED / f"version-{VERSION}.db", tmp_path / "saved.db")
    schemas = []
    for path in (tmp_path / "saved.db", tmp_path / "new.db"):
        with sqlite3.connect(path, isolation_level=None) as db:
            migrate(db)
            schemas.append(db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
        db.close()
    assert schemas[0] == schemas[1]
