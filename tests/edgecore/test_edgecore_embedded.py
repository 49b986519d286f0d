"""Mappers inside edge core: the whole way, and what their failures leave alone."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from dmi import ConfigError
from dmi.local import LocalDmi
from edgecore import embedded as embedded_module
from edgecore.app import serve
from edgecore.config import EdgeCoreConfig, MappersConfig
from edgecore.embedded import EmbeddedMappers, Prepared, prepare
from mappers.drivers.modbus.simulator import Image, Simulator
from tests.edgecore.conftest import EdgeProcess
from tests.edgecore.peers import FakeCloud, FakeMapper, Json, device_object, model_object

BOILER = "default/boiler-1"


def with_mappers(config: EdgeCoreConfig, mappers: MappersConfig) -> EdgeCoreConfig:
    return msgspec.structs.replace(config, modules=msgspec.structs.replace(config.modules, mappers=mappers))


@pytest.fixture
def config(config: EdgeCoreConfig) -> EdgeCoreConfig:
    return with_mappers(
        config,
        MappersConfig(enable=True, protocols=("modbus", "virtual"), common={"http_port": 0}),
    )


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(units={1: Image(holding_registers={0: 21, 1: 5})}) as simulator:
        yield simulator


def modbus_boiler(simulator: Simulator, **desired: str) -> Json:
    device = device_object(desired=desired)
    device["spec"]["protocol"]["configData"] = {"ip": "127.0.0.1", "port": simulator.port, "slaveID": 1}
    for p in device["spec"]["properties"]:
        p["collectCycle"] = 100
    return device


def virtual_gauge() -> Json:
    device = device_object("gauge-1", model="gauge", protocol="virtual", properties=["level"])
    device["spec"]["protocol"]["configData"] = {}
    device["spec"]["properties"][0]["visitors"]["configData"] = {"waveform": "constant", "value": "7"}
    return device


async def test_values_go_up_and_desired_ones_down_without_a_mapper_process(
    edge_process: Callable[[], EdgeProcess], cloud: FakeCloud, simulator: Simulator, tmp_path: Path
) -> None:
    process = edge_process()
    await process.start()
    await cloud.put(model_object(types={"temperature": "INT", "setpoint": "INT"}))
    await cloud.put(modbus_boiler(simulator))
    await cloud.put(model_object("gauge", "virtual", {"level": "INT"}))
    await cloud.put(virtual_gauge())
    await cloud.until_value(BOILER, "temperature", "21")
    await cloud.until_value("default/gauge-1", "level", "7")
    await cloud.until_state(BOILER, "online")
    await simulator.write("HoldingRegister", 0, [22], unit=1)
    await cloud.until_value(BOILER, "temperature", "22")
    await cloud.put(modbus_boiler(simulator, setpoint="9"), "update")
    twin = await cloud.until_value(BOILER, "setpoint", "9")
    assert twin["expected"]["value"] == "9"
    assert await simulator.read("HoldingRegister", 1, unit=1) == [9]
    assert not [p for p in tmp_path.glob("*.sock") if p.name not in ("dmi.sock", "edgecore.sock")]
    assert await process.end(signal.SIGTERM) == 0, "\n".join(process.log)
    assert not [line for line in process.log if "ERROR" in line], "\n".join(process.log)


async def test_a_driver_that_blocks_edge_core_is_named(
    edge_process: Callable[[], EdgeProcess], cloud: FakeCloud
) -> None:
    process = edge_process()
    await process.start()
    await cloud.put(model_object("gauge", "virtual", {"level": "INT"}))
    device = virtual_gauge()
    device["spec"]["protocol"]["configData"] = {"block": 600}
    await cloud.put(device)
    await cloud.until_value("default/gauge-1", "level", "7")
    assert await process.end(signal.SIGTERM) == 0
    named = [line for line in process.log if "driver virtual" in line and "the loop" in line]
    assert named, "\n".join(process.log)
    assert "default/gauge-1" in named[0]


async def test_a_killed_edge_core_with_its_mappers_goes_on_where_it_was(
    edge_process: Callable[[], EdgeProcess], cloud: FakeCloud, simulator: Simulator
) -> None:
    first = edge_process()
    await first.start()
    await cloud.put(model_object(types={"temperature": "INT", "setpoint": "INT"}))
    await cloud.put(modbus_boiler(simulator))
    await cloud.until_value(BOILER, "temperature", "21")
    await first.end(signal.SIGKILL)
    await simulator.write("HoldingRegister", 0, [23], unit=1)
    second = edge_process()
    await second.start()
    await cloud.until_value(BOILER, "temperature", "23")
    assert await second.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("mappers", "says"),
    (
        (MappersConfig(enable=True), "modules.mappers.protocols: is empty"),
        (MappersConfig(enable=True, protocols=("abacus",)), "modules.mappers.protocols: no driver 'abacus'"),
        (
            MappersConfig(enable=True, protocols=("modbus",), http={"enabled": "perhaps"}),
            "modules.mappers.http.enabled: Expected",
        ),
        (
            MappersConfig(enable=True, protocols=("virtual",), http={"token_file": "/no/such/token"}),
            "f.yaml: modules.mappers.http.token_file: cannot be read",
        ),
        (
            MappersConfig(enable=True, protocols=("virtual",), http={"cert_file": "/etc/cert.pem"}),
            "f.yaml: modules.mappers.http.key_file: is missing, and http.cert_file is set",
        ),
        (
            MappersConfig(enable=True, protocols=("virtual",), common={"address": "0.0.0.0"}),
            "f.yaml: modules.mappers.common.address: '0.0.0.0' can be reached from other machines",
        ),
    ),
)
def test_what_cannot_work_is_refused_by_its_path(config: EdgeCoreConfig, mappers: MappersConfig, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(with_mappers(config, mappers), where="f.yaml: modules.mappers")
    assert says in str(caught.value)


def test_settings_that_do_not_apply_are_named(config: EdgeCoreConfig, caplog: pytest.LogCaptureFixture) -> None:
    mappers = MappersConfig(enable=True, protocols=("modbus",), common={"edgecore_sock": "/x", "colour": "red"})
    prepare(with_mappers(config, mappers), where="modules.mappers")
    assert sorted(r.getMessage().split(": ")[0] for r in caplog.records) == [
        "modules.mappers.common.colour",
        "modules.mappers.common.edgecore_sock",
    ]


def test_nothing_is_prepared_when_it_is_not_enabled(config: EdgeCoreConfig) -> None:
    assert prepare(with_mappers(config, MappersConfig(protocols=("modbus",))), where="x") is None


FAILING = """
import asyncio
calls = []

async def run(settings, dmi, stop, *, failures):
    calls.append((settings, failures))
    if len(calls) == 1:
        raise RuntimeError("a bug of a driver")
    if len(calls) == 2:
        raise SystemExit("another one")
    await stop.wait()
    calls.append("stopped in order")
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    (tmp_path / "failing_mappers.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_module, "RESTART_S", (0.02, 0.05))
    monkeypatch.delitem(sys.modules, "failing_mappers", raising=False)
    return Prepared("failing_mappers", "{}")


async def test_mappers_that_fail_are_started_over_and_end_in_order(
    failing: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    mappers = EmbeddedMappers(failing, LocalDmi())
    task = asyncio.create_task(mappers.run())
    async with asyncio.timeout(5):
        while len(sys.modules["failing_mappers"].calls if "failing_mappers" in sys.modules else ()) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert mappers.failures == 2
    assert [r for r in caplog.records if r.exc_info and "a bug of a driver" in str(r.exc_info[1])]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sys.modules["failing_mappers"].calls == [("{}", 0), ("{}", 1), ("{}", 2), "stopped in order"]


async def test_edge_core_serves_others_while_its_own_mappers_cannot_run(
    config: EdgeCoreConfig, cloud: FakeCloud, tmp_path: Path
) -> None:
    ready = asyncio.Event()
    edge = asyncio.create_task(serve(config, ready, Prepared("no_such_module", "{}")))
    try:
        await ready.wait()
        await cloud.put(model_object())
        await cloud.put(device_object())
        async with FakeMapper(tmp_path).running() as mapper:
            await mapper.report(BOILER, temperature="3")
            await cloud.until_value(BOILER, "temperature", "3")
    finally:
        edge.cancel()
        await asyncio.wait([edge])
    assert edge.cancelled()


async def test_what_does_not_end_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stubborn_mappers.py").write_text(
        "import asyncio\nasync def run(settings, dmi, stop, *, failures):\n    await asyncio.Event().wait()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_module, "END_S", 0.05)
    task = asyncio.create_task(EmbeddedMappers(Prepared("stubborn_mappers", ""), LocalDmi()).run())
    await asyncio.sleep(0.05)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
