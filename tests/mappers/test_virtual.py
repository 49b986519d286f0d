"""The virtual driver: waveforms that repeat, files that stay in their folder, faults on demand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from dmi.checks import check_device, merge_model
from dmi.crd import device_from_crd, model_from_crd
from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, ModelProperty, PropertyType, Scalar, Visitor
from dmi.values import format_value
from mappers.drivers.virtual import VirtualConfig, VirtualDriver, VirtualProtocolDriver, VirtualVisitor, plant
from mappers.drivers.virtual.replay import Tables
from mappers.drivers.virtual.settings import resolve_visitor
from mappers.drivers.virtual.waveforms import Table, follow, sampler
from mappers.sdk import (
    ConfigError,
    ConversionError,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    Property,
    ReadResult,
    Value,
)
from mappers.sdk.declaration import Declaration, declare
from mappers.sdk.settings import decode_settings
from mappers.sdk.testing import FakeEdgeCore, running, virtual_time

ID = DeviceId("lab/v1")
EXAMPLES = Path(__file__).parents[2] / "examples" / "virtual"


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


def device_of(*properties: tuple[ModelProperty, Mapping[str, Scalar]], **config: Scalar) -> tuple[Device, DeviceModel]:
    model = DeviceModel("lab", "m", tuple(p for p, _ in properties))
    declared = tuple(
        DeviceProperty(p.name, visitor=Visitor(config=visitor), report_to_cloud=True, collect_cycle_ms=1000)
        for p, visitor in properties
    )
    return Device("lab", "v1", model="m", protocol="virtual", protocol_config=config, properties=declared), model


@asynccontextmanager
async def linked(
    driver: VirtualDriver, *properties: tuple[ModelProperty, Mapping[str, Scalar]], **config: Scalar
) -> AsyncIterator[tuple[Any, Mapping[str, Property[Any]]]]:
    declared: Declaration = declare(driver, *device_of(*properties, **config))
    assert not declared.errors()
    async with driver.connect(ID, declared.config) as link:
        yield link, declared.properties


LEVEL = ModelProperty("level", "FLOAT", "ReadOnly")
TARGET = ModelProperty("target", "INT")
SPEED = ModelProperty("speed", "FLOAT")


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
    assume(waveform != "counter" or span > 0)
    value = value_at(now_s, {"waveform": waveform, "minimum": minimum, "maximum": minimum + span}, type_)
    format_value(value, type_)


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


# devices


@virtual_time
async def test_what_is_written_stays_over_links() -> None:
    driver = VirtualDriver()
    async with linked(driver, (TARGET, {"value": 3}), (LEVEL, {})) as (link, properties):
        assert (await link.read_many(tuple(properties.values())))["target"] == 3
        await link.write(properties["target"], 8)
        await link.call("SetTarget", properties["level"], 1.5)
    async with linked(driver, (TARGET, {"value": 3}), (LEVEL, {})) as (link, properties):
        everything = tuple(properties.values())
        assert await link.read_many(everything) == {"target": 8, "level": 1.5}
        await link.call("add", properties["target"], 2)
        await link.call("reset", properties["level"], 0.0)
        results = await link.read_many(everything)
        assert results["target"] == 10
        assert results["level"] != 1.5
    assert driver.device(ID).writes == [("target", 8), ("level", 1.5), ("target", 10)]
    assert driver.device(ID).links == 2


async def test_text_does_not_add_up() -> None:
    label = ModelProperty("label", "STRING")
    async with linked(VirtualDriver(), (label, {"value": "a"})) as (link, properties):
        with pytest.raises(DeviceUnsupported):
            await link.call("add", properties["label"], "b")


@virtual_time
async def test_one_property_goes_after_another() -> None:
    follower: dict[str, Scalar] = {"follows": "target", "period": 10_000, "value": 0, "decimals": 6}
    async with linked(VirtualDriver(), (TARGET, {}), (LEVEL, follower)) as (link, properties):
        everything = tuple(properties.values())
        assert (await link.read_many(everything))["level"] == 0
        await asyncio.sleep(5)
        await link.write(properties["target"], 100)
        await asyncio.sleep(10)
        assert (await link.read_many(everything))["level"] == pytest.approx(63.212056, abs=1e-3)
        await asyncio.sleep(200)
        assert (await link.read_many(everything))["level"] == pytest.approx(100, abs=1e-3)
    assert follow(5.0, 9.0, 1.0, 0.0) == 9.0


@virtual_time
async def test_faults_as_declared() -> None:
    loop = asyncio.get_running_loop()
    async with linked(VirtualDriver(), (TARGET, {}), latency=300, jitter=100) as (link, properties):
        began = loop.time()
        await link.read_many(tuple(properties.values()))
        assert 0.3 <= loop.time() - began <= 0.41
    async with linked(VirtualDriver(), (TARGET, {}), failEvery=3, timeout=700) as (link, properties):
        outcomes = []
        for _ in range(9):
            try:
                await link.read_many(tuple(properties.values()))
                outcomes.append(True)
            except DeviceTimeout:
                outcomes.append(False)
        assert outcomes == [True, True, False] * 3
    async with linked(VirtualDriver(), (TARGET, {}), failRate=0.5, timeout=1) as (link, properties):
        failed = 0
        for _ in range(400):
            try:
                await link.write(properties["target"], 1)
            except DeviceTimeout:
                failed += 1
        assert 140 < failed < 260
    with pytest.raises(DeviceUnreachable):
        async with linked(VirtualDriver(), (TARGET, {}), offline=True):
            pass


@virtual_time
async def test_a_hanging_device_comes_back() -> None:
    driver = VirtualDriver()
    async with linked(driver, (TARGET, {})) as (link, properties):
        driver.device(ID).switch("hang", True)
        reading = asyncio.create_task(link.read_many(tuple(properties.values())))
        await asyncio.sleep(10_000)
        assert not reading.done()
        driver.device(ID).switch("latency", 5)  # something else; it still hangs
        await asyncio.sleep(1)
        assert not reading.done()
        driver.device(ID).switch("hang", False)
        assert await reading == {"target": 0}
        driver.device(ID).switch("offline", True)
        with pytest.raises(DeviceUnreachable):
            await link.read_many(tuple(properties.values()))
        with pytest.raises(ConversionError, match="between 0 and 1"):
            driver.device(ID).switch("failRate", 1.5)
        with pytest.raises(ConversionError, match="no amount"):
            driver.device(ID).switch("latency", "much")


@virtual_time
async def test_a_device_can_block_the_whole_loop() -> None:
    async with linked(VirtualDriver(), (TARGET, {}), block=50) as (link, properties):
        began = time.perf_counter()
        await link.read_many(tuple(properties.values()))
        assert time.perf_counter() - began >= 0.05


def test_devices_that_are_gone_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plant, "FORGOTTEN_AFTER", 2)
    driver = VirtualDriver()
    first = driver.device(DeviceId("lab/first"))
    first.write("p", 1)
    first.open_links = 1
    for number in range(5):
        driver.device(DeviceId(f"lab/{number}"))
    assert driver.device(DeviceId("lab/first")) is first
    first.open_links = 0
    for number in range(5):
        driver.device(DeviceId(f"lab/{number}"))
    assert driver.device(DeviceId("lab/first")).held == {}


async def test_garbage_is_no_value_of_any_type() -> None:
    types: tuple[PropertyType, ...] = ("INT", "FLOAT", "DOUBLE", "BOOLEAN", "STRING", "BYTES")
    properties: list[tuple[ModelProperty, Mapping[str, Scalar]]] = [(ModelProperty(t.lower(), t), {}) for t in types]
    async with linked(VirtualDriver(), *properties, garbage=True) as (link, declared):
        results = await link.read_many(tuple(declared.values()))
    for type_ in types:
        with pytest.raises(ConversionError):
            format_value(results[type_.lower()], type_)


@virtual_time
async def test_faults_are_driven_by_desired_values() -> None:
    slow = ModelProperty("slow", "INT")
    hang = ModelProperty("hang", "BOOLEAN")
    device, model = device_of((TARGET, {}), (slow, {"fault": "latency"}), (hang, {"fault": "hang"}), timeout=400)
    driver = VirtualDriver()
    async with FakeEdgeCore(devices=[device], models=[model]) as core, running(driver, core):
        await core.until(lambda: core.quality(ID, "target") == "good", 60)
        await core.set_desired(ID, "slow", "900")  # longer than the timeout: nothing is answered any more
        await core.until(lambda: core.write_state(ID, "slow") == "applied", 60)
        assert driver.device(ID).faults.latency == 900
        await core.until(lambda: core.quality(ID, "target") == "bad", 60)
        await core.set_desired(ID, "slow", "0")  # and yet it can be switched off again
        await core.until(lambda: core.quality(ID, "target") == "good", 60)
        await core.set_desired(ID, "hang", "true")
        await core.until(lambda: core.write_state(ID, "hang") == "applied", 60)
        await asyncio.sleep(5)
        await core.set_desired(ID, "hang", "false")
        await core.until(lambda: core.write_state(ID, "hang") == "applied" and core.value(ID, "hang") == "false", 60)
        await core.until(lambda: core.quality(ID, "target") == "good", 120)


@virtual_time
async def test_one_device_switches_another_off() -> None:
    switch = ModelProperty("switch", "BOOLEAN")
    device, model = device_of((TARGET, {}))
    board, board_model = device_of((switch, {"fault": "offline", "device": "v1"}))
    board = msgspec.structs.replace(board, name="board", model="board")
    board_model = msgspec.structs.replace(board_model, name="board")
    core = FakeEdgeCore(devices=[device, board], models=[model, board_model])
    async with core, running(VirtualDriver(), core):
        await core.until(lambda: core.state(ID) == "online", 60)
        await core.set_desired(board.id, "switch", "true")
        await core.until(lambda: core.state(ID) == "offline", 60)
        assert core.value(board.id, "switch") == "true"
        await core.set_desired(board.id, "switch", "false")
        await core.until(lambda: core.state(ID) == "online", 60)


@virtual_time
async def test_a_device_pushes_each_property_at_its_own_pace() -> None:
    pushes: list[Mapping[str, ReadResult]] = []
    fast, slow, read = {"push": True, "pushEvery": 100}, {"push": True, "pushEvery": 1000}, {"value": 1}
    driver = VirtualDriver()
    async with linked(driver, (TARGET, fast), (LEVEL, slow), (SPEED, read)) as (link, properties):
        everything = list(properties.values())
        assert set(await link.subscribe(everything, pushes.append)) == {"target", "level"}
        await asyncio.sleep(9.95)
        assert sum("target" in p for p in pushes) == pytest.approx(100, abs=1)
        assert sum("level" in p for p in pushes) == pytest.approx(10, abs=1)
        assert not any("speed" in p for p in pushes)
        driver.device(ID).switch("offline", True)
        await asyncio.sleep(2)
        assert isinstance(pushes[-1]["target"], DeviceUnreachable)
        told = len(pushes)
        await asyncio.sleep(10)
        assert len(pushes) == told


async def test_discovery_proposes_a_device_that_runs() -> None:
    driver = VirtualDriver()
    found = [f async for f in driver.discover(VirtualConfig(latency=5))]
    assert [f.config for f in found] == [{"latency": 5}]
    properties = [(ModelProperty(p.name, p.type, p.access_mode), p.visitor) for p in found[0].properties]
    async with linked(driver, *properties) as (link, declared):
        results = await link.read_many(tuple(declared.values()))
        assert not [r for r in results.values() if isinstance(r, Exception)]


def test_upstreams_demos_find_their_protocol() -> None:
    device, model = device_of((ModelProperty("count", "INT"), {"name": "count"}))
    device = msgspec.structs.replace(device, protocol="virtualProtocol", protocol_config={"deviceID": 1})
    declared = declare(VirtualProtocolDriver(), device, model)
    assert VirtualProtocolDriver.protocol == "virtualProtocol"
    assert not declared.errors()


@virtual_time
async def test_the_example_runs() -> None:
    model = model_from_crd(yaml.safe_load((EXAMPLES / "model.yaml").read_text()))
    device = device_from_crd(yaml.safe_load((EXAMPLES / "device.yaml").read_text()))
    assert check_device(device, model) == []
    device = merge_model(device, model)
    declared = declare(VirtualDriver(), device, model)
    assert (declared.errors(), declared.warnings) == ([], ())
    async with FakeEdgeCore(devices=[device], models=[model]) as core, running(VirtualDriver(), core):
        await core.until(lambda: all(core.quality(device.id, p.name) == "good" for p in model.properties), 60)
        await core.until(lambda: core.write_state(device.id, "set-point") == "applied", 60)
        await asyncio.sleep(120)
        assert float(core.value(device.id, "temperature")) == pytest.approx(60, abs=0.2)
        assert int(core.value(device.id, "pieces")) > 50
        assert core.value(device.id, "label") == "north"


async def test_reads_of_many_devices_need_no_time_of_their_own() -> None:
    driver = VirtualDriver()
    async with linked(driver, (LEVEL, {}), (TARGET, {})) as (link, properties):
        everything = tuple(properties.values())
        await link.read_many(everything)  # makes the plan
        coroutine = link.read_many(everything)
        with pytest.raises(StopIteration):  # done without giving the loop a turn
            coroutine.send(None)
