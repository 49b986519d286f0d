"""The file of waiting records: order, limits, damage, and what a crash leaves."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mappers.sdk.sinks.kinds.mqtt import MqttRoute, MqttTarget
from mappers.sdk.sinks.record import Record
from mappers.sdk.sinks.store import Limits, Store, StoreError
from mappers.sdk.sinks.storefile import read_target
from tests.mappers.sink_world import T0_MS, sample

TARGET = MqttTarget("tcp://broker:1883")
NOW_MS = T0_MS


def store(path: Path, *, max_bytes: int = 10_000_000, max_age_s: float = 1000.0) -> Store:
    return Store(path, TARGET, Limits(max_bytes, max_age_s))


def record(number: int, value: str | None = None) -> Record[MqttRoute]:
    return Record(sample(number, value=value), MqttRoute(f"topic-{number % 3}", 1, False))


def test_records_come_back_in_order_as_they_were(tmp_path: Path) -> None:
    file = store(tmp_path / "a.db")
    file.append([record(n) for n in range(10)], NOW_MS)
    file.append([record(n) for n in range(10, 20)], NOW_MS)
    assert [s.record for s in file.peek(100, NOW_MS)] == [record(n) for n in range(20)]
    assert (file.waiting, file.oldest_ms) == (20, record(0).sample.collected_ms)
    file.remove([s.seq for s in file.peek(5, NOW_MS)], file.generation)
    assert [s.record for s in file.peek(2, NOW_MS)] == [record(5), record(6)]
    assert file.waiting == 15
    file.remove([s.seq for s in file.peek(15, NOW_MS)], file.generation)
    assert not list(tmp_path.iterdir()), "nothing is left when nothing waits"
    file.close()


def test_an_age_drops_what_waited_longer_but_nothing_stored_before_the_clock_was_set(tmp_path: Path) -> None:
    file = store(tmp_path / "a.db", max_age_s=100)
    file.append([record(0)], NOW_MS)
    file.append([record(1)], NOW_MS + 50_000)
    assert [s.record for s in file.peek(9, NOW_MS + 120_000)] == [record(1)]
    assert file.dropped["age"] == 1
    assert [s.record for s in file.peek(9, NOW_MS + 500_000)] == []
    assert (file.dropped["age"], file.waiting) == (2, 0)
    file.append([record(2)], 5_000)  # 1970
    assert [s.record for s in file.peek(9, NOW_MS)] == [record(2)]
    file.close()


def test_a_size_drops_the_oldest_and_the_disk_is_never_used_beyond_it(tmp_path: Path) -> None:
    file = store(tmp_path / "a.db", max_bytes=1_000_000)
    written = 0
    for _ in range(60):
        file.append([record(written + n, "x" * 100) for n in range(500)], NOW_MS)
        written += 500
        assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 1_000_000
    assert file.waiting + file.dropped["size"] == written
    assert file.waiting > 2000
    newest = record(written - 1, "x" * 100)
    rows = file.peek(written, NOW_MS)
    assert rows[-1].record == newest
    assert len(rows) == file.waiting
    file.close()


def test_what_an_earlier_run_left_is_found_with_its_target(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    file = store(path)
    file.append([record(n) for n in range(3)], NOW_MS)
    file.close()
    assert read_target(path) == TARGET
    again = store(path)
    again.load(NOW_MS)
    assert again.waiting == 3
    assert [s.record for s in again.peek(9, NOW_MS)] == [record(n) for n in range(3)]
    again.close()


CRASH = """
import os, signal, sys
from pathlib import Path
from tests.mappers.test_sink_store import NOW_MS, record, store
file = store(Path(sys.argv[1]))
for start in range(0, 5000, 500):
    file.append([record(n) for n in range(start, start + 500)], NOW_MS)
file.remove([s.seq for s in file.peek(100, NOW_MS)], file.generation)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ended = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False, timeout=50)
    assert ended.returncode == -signal.SIGKILL
    file = store(path)
    file.load(NOW_MS)
    assert [s.record for s in file.peek(9999, NOW_MS)] == [record(n) for n in range(100, 5000)]
    file.close()


@pytest.mark.parametrize(
    "content", (b"not a database, rather a longer text" * 200, b"SQLite format 3\0" + b"\7" * 9000)
)
def test_a_file_that_is_none_of_ours_is_set_aside_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    set_aside: list[Path] = []
    file = Store(path, TARGET, Limits(10**7, 1000), set_aside)
    with pytest.raises(StoreError, match=r"a\.damaged-1"):
        file.append([record(0)], NOW_MS)
    assert set_aside == [tmp_path / "a.damaged-1"]
    assert (tmp_path / "a.damaged-1").read_bytes() == content
    assert "a.damaged-1" in caplog.text
    file.append([record(0)], NOW_MS)
    assert file.waiting == 1
    file.close()


def test_another_programs_database_and_another_targets_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sqlite3.connect(path).executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1);").connection.close()
    with pytest.raises(StoreError, match="holds no waiting samples"):
        store(path).load(NOW_MS)
    other = Store(path, MqttTarget("tcp://elsewhere"), Limits(10**7, 1000))
    other.append([record(0)], NOW_MS)
    other.close()
    with pytest.raises(StoreError, match="another target"):
        store(path).load(NOW_MS)
    assert {p.name for p in tmp_path.iterdir()} == {"a.damaged-1", "a.damaged-2"}


def test_damage_while_it_is_in_use_is_counted_and_the_next_records_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    file = store(path)
    file.append([record(n, "y" * 200) for n in range(5000)], NOW_MS)
    file.close()
    with path.open("r+b") as raw:
        raw.seek(8192)
        raw.write(b"\xff" * 200_000)
    generation = file.generation
    with pytest.raises(StoreError):
        file.append([record(9)], NOW_MS)
    assert file.dropped["damaged"] == 5000
    file.append([record(9)], NOW_MS)
    file.remove([s.seq for s in file.peek(1, NOW_MS)], generation)
    assert file.waiting == 1, "places in the old file mean nothing in the new one"
    file.close()


def test_a_full_disk_refuses_the_whole_call_and_takes_it_later(tmp_path: Path) -> None:
    file = store(tmp_path / "a.db")
    file.append([record(0)], NOW_MS)
    assert file._db is not None
    pages = file._db.execute("PRAGMA page_count").fetchone()[0]
    file._db.execute(f"PRAGMA max_page_count = {pages + 1}")  # SQLite then fails as it does on a full disk
    with pytest.raises(StoreError, match="full"):
        file.append([record(n, "z" * 500) for n in range(1, 100)], NOW_MS)
    assert [s.record for s in file.peek(200, NOW_MS)] == [record(0)]
    file.append([record(n, "z" * 500) for n in range(1, 100)], NOW_MS)
    assert file.waiting == 100
    file.close()


def test_a_file_in_use_by_another_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    first, second = store(path), store(path)
    first.append([record(0)], NOW_MS)
    with pytest.raises(StoreError, match="locked"):
        second.append([record(1)], NOW_MS)
    with pytest.raises(StoreError, match="locked"):
        read_target(path)
    assert path.exists()
    first.append([record(2)], NOW_MS)
    assert first.waiting == 2
    first.close()


class StoreMachine(RuleBasedStateMachine):
    """Against a list, through reopening."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "a.db"
        self.file = store(self.path)
        self.model: list[Record[MqttRoute]] = []
        self.count = 0

    @rule(n=st.integers(1, 40))
    def append(self, n: int) -> None:
        records = [record(self.count + i) for i in range(n)]
        self.count += n
        self.file.append(records, NOW_MS)
        self.model += records

    @precondition(lambda self: self.model)
    @rule(n=st.integers(1, 60), skip=st.integers(0, 3))
    def send(self, n: int, skip: int) -> None:
        rows = self.file.peek(n, NOW_MS)
        assert [r.record for r in rows] == self.model[:n]
        self.file.remove([r.seq for r in rows[skip:]], self.file.generation)
        del self.model[skip : len(rows)]

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = store(self.path)
        self.file.load(NOW_MS)

    @invariant()
    def agrees(self) -> None:
        assert self.file.waiting == len(self.model)
        assert self.file.oldest_ms == (self.model[0].sample.collected_ms if self.model else 0)
        assert self.model or self.count == 0 or not self.path.exists()

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
