"""The ring on disk: what it keeps, what it lets go of, and how much of the disk it really holds."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi import DeviceId
from edgecore.history.file import HistoryFile, is_damage
from edgecore.history.points import Point

NOW = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000
MIB = 1024 * 1024
PUMP, FAN = DeviceId("default/pump"), DeviceId("default/fan")


def open_file(
    path: Path, *, max_values: int = 1000, max_age_ms: int = DAY_MS, max_bytes: int = 64 * MIB
) -> HistoryFile:
    return HistoryFile(path, max_values=max_values, max_age_ms=max_age_ms, max_bytes=max_bytes)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[HistoryFile]:
    file = open_file(tmp_path / "history.db", max_values=5)
    yield file
    file.close()


def points(*values: str, device: DeviceId = PUMP, name: str = "speed", at: int = NOW) -> list[Point]:
    return [Point(device, name, value, "int", at + number, "good") for number, value in enumerate(values)]


def values_of(file: HistoryFile, device: DeviceId = PUMP, name: str = "", since_ms: int = 0) -> list[str]:
    return [p.value for p in file.newest_first(device, name, since_ms=since_ms)]


def test_newest_first_of_one_property_or_all(file: HistoryFile) -> None:
    file.append([*points("1", "2"), *points("a", name="mode"), *points("3"), *points("x", device=FAN)], now_ms=NOW)
    assert values_of(file) == ["3", "a", "2", "1"]
    assert values_of(file, name="speed") == ["3", "2", "1"]
    assert values_of(file, FAN) == ["x"]
    assert values_of(file, name="nothing") == []
    assert values_of(file, name="speed", since_ms=NOW + 1) == ["2"]
    assert next(file.newest_first(PUMP, "mode", since_ms=0)) == Point(PUMP, "mode", "a", "int", NOW, "good")


def test_a_property_keeps_its_newest_and_no_more(file: HistoryFile) -> None:
    for number in range(20):
        file.append(
            [*points(str(number), at=NOW + number), *points("x", name="mode", at=NOW + number)][: 2 - number % 2],
            now_ms=NOW,
        )
    assert values_of(file, name="speed") == ["19", "18", "17", "16", "15"]
    assert values_of(file, name="mode") == ["x"] * 5


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers()), max_size=8), max_size=12))
def test_rings_are_those_of_a_list(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    """Against a plain list per property, over any batches, and again after the file was closed and opened."""
    path = tmp_path_factory.mktemp("ring") / "history.db"
    file = open_file(path, max_values=3)
    rings: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for batch in batches:
        file.append([points(str(value), name=f"p{which}")[0] for which, value in batch], now_ms=NOW)
        for which, value in batch:
            rings[which] = [*rings[which], str(value)][-3:]
    for _ in range(2):
        for which, ring in rings.items():
            assert values_of(file, name=f"p{which}") == ring[::-1]
        file.close()
        file = open_file(path, max_values=3)
    file.close()


def test_the_count_of_a_ring_survives_a_restart(tmp_path: Path) -> None:
    for number in range(4):
        file = open_file(tmp_path / "h.db", max_values=2)
        file.append(points(str(number)), now_ms=NOW)
        file.close()
    file = open_file(tmp_path / "h.db", max_values=2)
    assert values_of(file) == ["3", "2"]
    assert file.last_points()[PUMP]["speed"].collected_ms == NOW
    file.close()


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    file = open_file(tmp_path / "h.db", max_age_ms=1000)
    file.append(points("old", at=NOW), now_ms=NOW)
    file.append(points("new", at=NOW + 900), now_ms=NOW + 900)
    assert values_of(file) == ["new", "old"]
    file.append([], now_ms=NOW + 1500)
    assert values_of(file) == ["new"]
    file.close()


def test_a_time_from_a_wrong_clock_does_not_keep_the_rest_for_ever(tmp_path: Path) -> None:
    file = open_file(tmp_path / "h.db", max_age_ms=1000)
    file.append([*points("future", at=NOW + 400 * DAY_MS), *points("then")], now_ms=NOW + 400 * DAY_MS)
    file.append(points("now", at=NOW + 2000), now_ms=NOW + 2000)
    assert values_of(file) == ["now"]
    file.close()


def test_devices_and_properties_that_are_gone_go(file: HistoryFile) -> None:
    file.append([*points("1"), *points("2", name="mode"), *points("3", device=FAN)], now_ms=NOW)
    file.keep_properties({PUMP: {"mode"}})
    assert values_of(file) == ["2"]
    file.keep_only({PUMP: {"mode"}, FAN: None})
    assert (values_of(file), values_of(file, FAN)) == (["2"], ["3"])
    file.keep_only({PUMP: {"mode"}})
    assert (values_of(file), values_of(file, FAN)) == (["2"], [])
    file.append(points("4"), now_ms=NOW)
    assert values_of(file) == ["4", "2"]


@pytest.mark.parametrize("length", (5, 300, 20_000))
def test_the_file_with_its_log_never_holds_more_than_it_may(tmp_path: Path, length: int) -> None:
    """Real values of several lengths, three times what fits, and the size as the file system has it, at every step."""
    limit = MIB
    path = tmp_path / "h.db"
    file = open_file(path, max_values=10**6, max_bytes=limit)
    rng = random.Random(1)
    written = number = largest = 0
    while written < 3 * limit:
        batch: list[Point] = []
        while sum(p.size for p in batch) < limit // 32:
            number += 1
            value = f"{number}:" + rng.randbytes(length).hex()[:length]
            batch.append(points(value, name=f"p{number % 7}", at=NOW + number)[0])
        written += sum(len(p.value) + 40 for p in batch)
        file.append(batch, now_ms=NOW)
        largest = max(largest, sum(f.stat().st_size for f in tmp_path.iterdir()))
    assert largest == pytest.approx(file.size_bytes(), rel=1)
    assert largest <= limit
    kept = values_of(file)
    assert [int(v.split(":")[0]) for v in kept] == list(range(number, number - len(kept), -1))
    assert sum(map(len, kept)) > limit / (20 if length < 100 else 3)
    file.close()
    assert path.stat().st_size <= limit


def test_freed_pages_go_back_to_the_file_system(tmp_path: Path) -> None:
    file = open_file(tmp_path / "h.db", max_values=10**6, max_bytes=4 * MIB)
    for number in range(40):
        file.append(points("x" * 30_000, device=PUMP, at=NOW + number), now_ms=NOW)
    full = file.size_bytes()
    assert full > MIB
    file.keep_only({})
    for _ in range(10):
        file.append([], now_ms=NOW)
    file.close()
    assert (tmp_path / "h.db").stat().st_size < full / 3


def test_the_file_is_its_owner_s(file: HistoryFile) -> None:
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_ring_as_it_was(tmp_path: Path) -> None:
    file = open_file(tmp_path / "h.db", max_values=3)
    file.append(points("1"), now_ms=NOW)
    too_large = Point(PUMP, "speed", "4", "int", 2**70, "good")  # what SQLite has no integer for
    with pytest.raises(OverflowError):
        file.append([*points("x", "y"), too_large], now_ms=NOW)
    assert values_of(file) == ["1"]
    file.append(points("2", "3"), now_ms=NOW)
    assert values_of(file) == ["3", "2", "1"]
    file.close()


def test_a_damaged_file_is_known_as_such(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        open_file(path)
    assert is_damage(caught.value)


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    open_file(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ValueError, match="version 9"):
        open_file(path)
