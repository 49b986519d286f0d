"""What virtual devices show: waveforms that repeat, files that stay in their folder, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dmi.types import ModelProperty, PropertyType, Scalar
from dmi.values import format_value
from mappers.drivers.virtual import VirtualDriver, VirtualVisitor
from mappers.drivers.virtual.replay import Tables
from mappers.drivers.virtual.settings import resolve_visitor
from mappers.drivers.virtual.waveforms import Table, sampler
from mappers.sdk import (
    ConfigError,
    ConversionError,
    ReadResult,
    Value,
)
from mappers.sdk.settings import decode_settings
from tests.mappers.virtual_world import LEVEL, linked


def visitor_of(
    type_: PropertyType, config: Mapping[str, Scalar], *, writable: bool = False
) -> tuple[VirtualVisitor, ModelProperty]:
    model = ModelProperty("p", type_, "ReadWrite" if writable else "ReadOnly")
    visitor, unknown = decode_settings(config, VirtualVisitor)
    assert not unknown
    return resolve_visitor(visitor, model), model


def value_at(now_s: float, config: Mapping[str, Scalar], type_: PropertyType = "DOUBLE", *, name: str = "p") -> Value:
    visitor, model = visitor_of(type_, config)
    return sampler(visitor, model, seed=name, started_s=1000.0)(now_s)


@pytest.mark.parametrize(
    ("config", "expected"),
    (
        ({"waveform": "sine"}, [50, 100, 50, 0]),
        ({"waveform": "sine", "phase": 0.25}, [100, 50, 0, 50]),
        ({"waveform": "ramp"}, [0, 25, 50, 75]),
        ({"waveform": "triangle"}, [0, 50, 100, 50]),
        ({"waveform": "square"}, [100, 100, 0, 0]),
        ({"waveform": "constant", "value": "7.5"}, [7.5] * 4),
        ({"waveform": "sine", "minimum": -1, "maximum": 1}, [0, 1, 0, -1]),
    ),
)
def test_waveforms(config: dict[str, Scalar], expected: list[float]) -> None:
    values = [value_at(8000 + quarter, {"period": 4000, **config}) for quarter in range(4)]
    assert values == pytest.approx(expected, abs=1e-3)


def test_a_counter_counts_from_the_first_connect_and_starts_over() -> None:
    assert [value_at(1000 + s, {"waveform": "counter"}, "INT") for s in (0, 0.9, 1, 60)] == [0, 0, 1, 60]
    assert [value_at(1000 + s, {"waveform": "counter", "maximum": 3, "step": 2}, "INT") for s in range(5)] == [
        0,
        2,
        1,
        0,
        2,
    ]
    assert value_at(900, {"waveform": "counter"}, "INT") == 0  # a clock that was set back


@given(st.floats(0, 4e9), st.integers(0, 1000), st.text(max_size=8))
def test_a_random_walk_follows_from_seed_and_time_and_stays_inside(now_s: float, seed: int, name: str) -> None:
    config: dict[str, Scalar] = {"waveform": "randomWalk", "minimum": 3, "maximum": 4, "seed": seed}
    value = value_at(now_s, config, name=name)
    assert value == value_at(now_s, config, name=name)
    assert isinstance(value, float)
    assert 3 <= value <= 4


def test_a_random_walk_walks() -> None:
    values = [value_at(s, {"waveform": "randomWalk"}) for s in range(1000)]
    steps = [abs(a - b) for a, b in pairwise(values) if isinstance(a, float) and isinstance(b, float)]
    assert len(set(values)) > 500
    assert max(steps) < 30  # of 100
    assert values != [value_at(s, {"waveform": "randomWalk"}, name="other") for s in range(1000)]


@given(
    st.sampled_from(["", "constant", "sine", "ramp", "triangle", "square", "randomWalk", "counter"]),
    st.sampled_from(["INT", "FLOAT", "DOUBLE", "BOOLEAN"]),
    st.floats(-1e6, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1e10),
)
def test_whatever_is_declared_gives_values_of_the_type(
    waveform: str, type_: PropertyType, minimum: float, span: float, now_s: float
) -> None:
    assume(waveform != "counter" or minimum + span > minimum)
    value = value_at(now_s, {"waveform": waveform, "minimum": minimum, "maximum": minimum + span}, type_)
    format_value(value, type_)


@given(
    st.sampled_from(["sine", "ramp", "triangle", "square", "randomWalk", "counter"]),
    st.sampled_from(["INT", "FLOAT", "DOUBLE", "BOOLEAN"]),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("minimum", "maximum", "step", "phase"), st.floats())),
)
def test_no_number_makes_it_raise_what_no_driver_should(
    waveform: str, type_: PropertyType, numbers: dict[str, float]
) -> None:
    refused = ""
    try:
        format_value(value_at(2e9, {"waveform": waveform, **numbers}, type_), type_)
    except ConfigError as error:
        refused = error.path
    except ConversionError:
        assert waveform == "counter"  # it has counted beyond its type
    assert not refused or refused in numbers


def test_limits_come_from_the_model() -> None:
    model = ModelProperty("p", "INT", "ReadOnly", minimum="10", maximum="20")
    visitor = resolve_visitor(VirtualVisitor(), model)
    assert (visitor.waveform, visitor.minimum, visitor.maximum) == ("sine", 10, 20)
    assert (
        resolve_visitor(VirtualVisitor(), msgspec.structs.replace(model, access_mode="ReadWrite")).waveform
        == "constant"
    )


@pytest.mark.parametrize(
    ("type_", "config", "key"),
    (
        ("FLOAT", {"waveform": "wobble"}, "waveform"),
        ("STRING", {"waveform": "sine"}, "waveform"),
        ("FLOAT", {"minimum": 5, "maximum": 4}, "maximum"),
        ("FLOAT", {"minimum": "nan"}, "minimum"),
        ("FLOAT", {"maximum": 1e39}, "maximum"),
        ("INT", {"minimum": 1e19}, "minimum"),
        ("DOUBLE", {"maximum": 1.7e308}, "maximum"),
        ("INT", {"waveform": "counter", "step": "inf"}, "step"),
        ("INT", {"value": "1.5"}, "value"),
        ("BYTES", {"value": "xyz"}, "value"),
        ("FLOAT", {"period": -1}, "period"),
        ("FLOAT", {"decimals": 13}, "decimals"),
        ("FLOAT", {"waveform": "replay", "column": "a"}, "file"),
        ("FLOAT", {"waveform": "replay", "file": "a.csv"}, "column"),
        ("FLOAT", {"waveform": "replay", "file": "/etc/passwd", "column": "a"}, "file"),
        ("FLOAT", {"waveform": "replay", "file": "a/../../b", "column": "a"}, "file"),
        ("FLOAT", {"file": "a.csv"}, "file"),
        ("STRING", {"follows": "x"}, "follows"),
        ("FLOAT", {"follows": "x", "waveform": "sine"}, "follows"),
        ("FLOAT", {"device": "other"}, "device"),
        ("FLOAT", {"fault": "failRate"}, "fault"),  # ReadOnly
    ),
)
def test_what_makes_no_sense_is_refused(type_: PropertyType, config: dict[str, Scalar], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        visitor_of(type_, config)
    assert refused.value.path == key


@pytest.mark.parametrize(
    ("type_", "config", "key"),
    (
        ("BOOLEAN", {"fault": "offline"}, "device"),
        ("INT", {"fault": "offline", "device": "x"}, "fault"),
        ("INT", {"fault": "latency", "device": "a/b"}, "device"),
        ("INT", {"fault": "latency", "push": True}, "push"),
        ("INT", {"fault": "fire"}, "fault"),
    ),
)
def test_switches_that_make_no_sense_are_refused(type_: PropertyType, config: dict[str, Scalar], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        visitor_of(type_, config, writable=True)
    assert refused.value.path == key


# files


async def read_replay(folder: Path, **config: Scalar) -> ReadResult:
    visitor = {"waveform": "replay", **config}
    async with linked(VirtualDriver(replay_dir=folder), (LEVEL, visitor)) as (link, properties):
        result: ReadResult = (await link.read_many(tuple(properties.values())))["level"]
        return result


async def test_a_file_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("\ufefftime;x\n".replace(";", ",") + "5,1.5\n7,2.5\n8,3.5\n", encoding="utf-8")
    assert await read_replay(tmp_path, file="run.csv", column="x") == 1.5
    tables = Tables(tmp_path)
    timed = VirtualVisitor(file="run.csv", column="x", time_column="time")
    table = tables.table(timed)
    assert tables.table(timed) is table
    assert [table.at(s, 1.0) for s in (0, 1.9, 2, 3, 3.9, 4, 6)] == ["1.5", "1.5", "2.5", "3.5", "3.5", "1.5", "2.5"]
    assert [Table(["a", "b"]).at(s, 2.0) for s in (0, 1.9, 2, 4)] == ["a", "a", "b", "a"]
    (tmp_path / "run.csv").write_text("time,x\n0,8\n\n1,9\n", encoding="utf-8")
    assert tables.table(timed).values == ["8", "9"]


@pytest.mark.parametrize(
    ("file", "config", "words"),
    (
        ("x,y\n1,2\n", {"column": "z"}, "no column 'z', but x, y"),
        ("x,y\n", {"column": "x"}, "no rows"),
        ("x,y\n1,a\n", {"column": "y"}, "'a' is not a number"),
        ("x,y\n1,2\n1,3\n", {"column": "y", "timeColumn": "x"}, "row 3: seconds"),
        ("x,y\nsoon,2\n", {"column": "y", "timeColumn": "x"}, "row 2: seconds"),
        ("x,y\n1,2\n", {"column": "y", "timeColumn": "t"}, "no column 't'"),
        ("", {"column": "x"}, "no column 'x', but none at all"),
        ("x\n" + "1\n" * 3_000_000, {"column": "x"}, "larger than 4 MiB"),
        ("x\n" + "1\n" * 100_001, {"column": "x"}, "more than 100000 rows"),
    ),
    ids=lambda v: str(v)[:12],
)
async def test_a_wrong_file_is_told_of(tmp_path: Path, file: str, config: dict[str, Scalar], words: str) -> None:
    (tmp_path / "a.csv").write_text(file)
    result = await read_replay(tmp_path, file="a.csv", **config)
    assert isinstance(result, ConversionError)
    assert words in str(result)


async def test_files_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("x\n1\n")
    (folder / "out.csv").symlink_to(tmp_path / "secret.csv")
    (folder / "deep").mkdir()
    (folder / "deep" / "in.csv").write_text("x\n1\n")
    (folder / "link.csv").symlink_to("deep/in.csv")
    os.mkfifo(folder / "pipe.csv")
    assert await read_replay(folder, file="deep/in.csv", column="x") == 1
    assert await read_replay(folder, file="link.csv", column="x") == 1
    for name, words in (
        ("out.csv", "out of the replay folder"),
        ("pipe.csv", "not a plain file"),
        ("deep", "not a plain file|directory"),
        ("none.csv", "No such file"),
    ):
        result = await read_replay(folder, file=name, column="x")
        assert isinstance(result, ConversionError)
        assert any(word in str(result) for word in words.split("|"))
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "not CSV" in str(await read_replay(folder, file="binary.csv", column="x"))
