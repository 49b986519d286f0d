"""Virtual devices: what is written stays, faults on demand, pushes, and the example."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from dmi.checks import check_device, merge_model
from dmi.crd import device_from_crd, model_from_crd
from dmi.types import DeviceId, ModelProperty, PropertyType, Scalar
from dmi.values import format_value
from mappers.drivers.virtual import VirtualConfig, VirtualDriver, VirtualProtocolDriver, plant
from mappers.drivers.virtual.waveforms import follow
from mappers.sdk import (
    ConversionError,
    DeviceTimeout,
    DeviceUnreachable,
    DeviceUnsupported,
    ReadResult,
)
from mappers.sdk.declaration import declare
from mappers.sdk.testing import FakeEdgeCore, running, virtual_time
from tests.mappers.virtual_world import ID, LEVEL, SPEED, TARGET, device_of, linked

HOUR_MS = 3_600_000
EXAMPLES = Path(__file__).parents[2] / "examples" / "virtual"


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
        took = set()
        for _ in range(20):
            began = loop.time()
            await link.read_many(tuple(properties.values()))
            took.add(round(loop.time() - began, 3))
        assert len(took) > 5
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
async def test_the_same_seed_gives_the_same_values_and_the_same_bad_luck() -> None:
    async def outcomes(seed: int) -> list[object]:
        """What a device that often does not answer shows, from when it is connected for the first time."""
        seen: list[object] = []
        async with linked(VirtualDriver(), (LEVEL, {}), failRate=0.5, timeout=1, seed=seed) as (link, properties):
            for _ in range(20):
                try:
                    await link.read_many(tuple(properties.values()))
                except DeviceTimeout:
                    seen.append("timeout")
                else:
                    seen.append("reply")
        walk: tuple[ModelProperty, dict[str, Scalar]] = (LEVEL, {"waveform": "randomWalk", "period": HOUR_MS})
        async with linked(VirtualDriver(), walk, seed=seed) as (link, properties):
            return [*seen, await link.read_many(tuple(properties.values()))]

    first = await outcomes(1)
    assert await outcomes(1) == first
    other = await outcomes(2)
    assert other[:-1] != first[:-1]
    assert other[-1] != first[-1]


@virtual_time
async def test_devices_that_come_together_are_not_read_together() -> None:
    """Start times are spread over the cycle, so that a thousand devices are no burst each second."""
    reads: dict[DeviceId, float] = {}

    class Noted(VirtualDriver):
        @asynccontextmanager
        async def connect(self, device_id: DeviceId, config: VirtualConfig) -> AsyncIterator[Any]:
            async with super().connect(device_id, config) as link:
                read_many = link.read_many

                async def noted(properties: Any) -> Any:
                    reads[device_id] = asyncio.get_running_loop().time()
                    return await read_many(properties)

                link.read_many = noted  # type: ignore[method-assign]  # the test looks on
                yield link

    device, model = device_of((LEVEL, {}))
    devices = [msgspec.structs.replace(device, name=f"v{number}") for number in range(100)]
    async with FakeEdgeCore(devices=devices, models=[model]) as core, running(Noted(), core):
        await asyncio.sleep(10)
        tenths = Counter(int(at % 1 * 10) for at in reads.values())
    assert len(reads) == 100
    assert len(tenths) == 10
    assert max(tenths.values()) < 25


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
