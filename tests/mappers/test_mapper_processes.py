"""The mapper and the simulator as processes: started, killed, restarted, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from pymodbus.client import AsyncModbusTcpClient

from dmi.client import EdgeCoreClient, MapperInfo
from dmi.crd import device_from_crd, model_from_crd
from dmi.errors import ConfigError, PeerUnavailable
from dmi.types import DeviceId
from mappers.drivers.modbus import ModbusDriver
from mappers.drivers.modbus.plant import Boiler
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.sdk.app import find_driver, infos, run
from mappers.sdk.config import load_config
from mappers.sdk.declaration import declare
from mappers.sdk.mapper import run_mapper
from mappers.sdk.testing import FakeEdgeCore
from tests.mappers.mapper_world import MODEL, MemoryDriver, holding, modbus_device, running

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "modbus"
ID = DeviceId("plant/m1")

EDGE_CORE = """
import asyncio, sys
from pathlib import Path
from dmi.types import Device, DeviceModel
from mappers.sdk.testing import FakeEdgeCore
from tests.mappers.mapper_world import MODEL, holding, modbus_device

async def main():
    properties = [holding(n, i, cycle_ms=60_000) for i, n in enumerate(["level", "target"])]
    device = modbus_device(int(sys.argv[2]), *properties)
    async with FakeEdgeCore(Path(sys.argv[1]), devices=[device], models=[MODEL]) as edge:
        print("serving", flush=True)
        await edge.until(lambda: len(edge.twins) == 2, timeout_s=30)
        print(",".join(sorted(t.reported.value for t in edge.twins.values())), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def process(*command: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        started._transport.close()  # type: ignore[attr-defined]  # its pipe would be closed by the collector, with a warning


async def line(of: asyncio.subprocess.Process) -> str:
    assert of.stdout is not None
    async with asyncio.timeout(20):
        return (await of.stdout.readline()).decode().strip()


async def test_an_edge_core_killed_with_9_is_registered_with_again(tmp_path: Path) -> None:
    """Every property is reported again, though none is due for a minute."""
    socket = tmp_path / "dmi.sock"
    async with Simulator(units={0: Image(holding_registers={0: 11, 1: 22})}) as simulator:
        command = (sys.executable, "-c", EDGE_CORE, socket, str(simulator.port))
        async with process(*command) as first:
            assert await line(first) == "serving"
            async with running_for(socket, tmp_path):
                assert await line(first) == "11,22"
                first.kill()
                await first.wait()
                async with process(*command) as second:
                    assert await line(second) == "serving"
                    loop = asyncio.get_running_loop()
                    served = loop.time()
                    assert await line(second) == "11,22"
                    assert loop.time() - served < 5.0


@asynccontextmanager
async def running_for(socket: Path, directory: Path) -> AsyncIterator[None]:
    """A mapper for an edge core in another process."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        info = MapperInfo("m", "modbus", str(directory / "m.sock"))
        tasks.create_task(run_mapper(ModbusDriver(), info, socket, stop))
        try:
            yield
        finally:
            stop.set()


async def test_a_lost_edge_core_is_noticed_without_a_call(tmp_path: Path) -> None:
    edge = FakeEdgeCore(tmp_path / "dmi.sock")
    await edge.__aenter__()
    async with EdgeCoreClient(edge.socket_path) as client:
        async with asyncio.timeout(5):
            await client.wait_lost()  # there is no connection yet
        await client.register(_info(tmp_path))
        lost = asyncio.create_task(client.wait_lost())
        done, _ = await asyncio.wait([lost], timeout=0.1)
        assert not done
        await edge.__aexit__(None, None, None)
        async with asyncio.timeout(5):
            await lost
        async with FakeEdgeCore(edge.socket_path):
            async with asyncio.timeout(5):
                await _register_again(client, tmp_path)
            waiting = asyncio.create_task(client.wait_lost())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


def _info(directory: Path) -> MapperInfo:
    return MapperInfo("m", "modbus", str(directory / "m.sock"))


async def _register_again(client: EdgeCoreClient, directory: Path) -> None:
    while True:
        try:
            await client.register(_info(directory))
        except PeerUnavailable:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
async def test_the_mapper_process_stops_within_three_seconds(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "grpc_server": {"socket_path": str(tmp_path / "mapper.sock")},
                "common": {"name": "modbus-mapper", "protocol": "modbus", "edgecore_sock": str(tmp_path / "dmi.sock")},
            }
        )
    )
    code = f"from pathlib import Path; from mappers.sdk.app import run; run(['modbus'], Path({str(config)!r}))"
    async with (
        Simulator(units={0: Image(holding_registers={0: 11})}) as simulator,
        FakeEdgeCore(tmp_path / "dmi.sock", models=[MODEL]) as edge,
    ):
        edge.devices[ID] = modbus_device(simulator.port, holding("level", 0))
        async with process(sys.executable, "-c", code) as mapper:
            await edge.until(lambda: edge.value(ID, "level") == "11", timeout_s=20)
            assert edge.mappers[0].name == "modbus-mapper"
            loop = asyncio.get_running_loop()
            asked = loop.time()
            mapper.send_signal(number)
            async with asyncio.timeout(10):
                assert await mapper.wait() == 0
            assert loop.time() - asked < 3.0
        assert not (tmp_path / "mapper.sock").exists()


async def test_the_simulator_process_says_where_it_listens_and_stops() -> None:
    code = "from mappers.drivers.modbus.simulator import Options, run; run(Options(port=0))"
    async with process(sys.executable, "-c", code) as simulator:
        said = await line(simulator)
        assert said.startswith("modbus tcp listening on 127.0.0.1:")
        client = AsyncModbusTcpClient("127.0.0.1", port=int(said.rpartition(":")[2]), reconnect_delay=0)
        assert await client.connect()
        assert (await client.read_input_registers(0, count=1, device_id=1)).registers[0] > 0
        client.close()
        simulator.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await simulator.wait() == 0


async def test_the_boiler_follows_its_set_point_the_same_way_for_the_same_seed() -> None:
    def after_two_minutes(seed: int) -> Boiler:
        boiler, rng = Boiler(), random.Random(seed)
        for _ in range(120):
            boiler = boiler.step(set_point_c=80.0, pump=True, rng=rng)
        return boiler

    assert after_two_minutes(1) == after_two_minutes(1)
    assert after_two_minutes(1) != after_two_minutes(2)
    assert abs(after_two_minutes(1).temperature_c - 80.0) < 2.0
    assert after_two_minutes(1).cycles == 120


async def test_the_example_runs_against_the_simulator(tmp_path: Path) -> None:
    model = model_from_crd(yaml.safe_load((EXAMPLES / "model.yaml").read_text()))
    manifest = yaml.safe_load((EXAMPLES / "device.yaml").read_text())
    async with Simulator(seed=7) as simulator:
        manifest["spec"]["protocol"]["configData"]["port"] = simulator.port
        device = device_from_crd(manifest)
        declaration = declare(ModbusDriver(), device, model)
        assert (declaration.errors(), declaration.warnings) == ([], ())
        edge = FakeEdgeCore(tmp_path / "dmi.sock", devices=[device], models=[model])
        async with edge, running(edge, tmp_path):
            await edge.until(lambda: len(edge.twins) == len(model.properties))
            values = {name: t.reported.value for (_, name), t in edge.twins.items()}
            assert values == {
                "temperature": "58",
                "pressure": "1.45",
                "cycles": "0",
                "door-open": "false",
                "set-point": "60",
                "pump": "true",
                "label": "Boiler 1",
            }
            await edge.until(lambda: edge.value(device.id, "cycles") == "1")  # it moves


def test_config_with_upstreams_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "grpc_server:\n  socket_path: /etc/kubeedge/modbus.sock\n"
        "common:\n  name: modbus-mapper\n  version: v1.13.0\n  api_version: v1.0.0\n  protocol: modbus\n"
        "  address: 127.0.0.1\n  edgecore_sock: /etc/kubeedge/dmi.sock\n  http_port: '7777'\n  color: red\nextra: 1\n"
    )
    with caplog.at_level(logging.WARNING):
        config = load_config(path)
    assert config.common.http_port == 7777
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == ["common.color", "extra"]
    assert infos([ModbusDriver()], config)[0].address == "/etc/kubeedge/modbus.sock"
    several = infos([ModbusDriver(), MemoryDriver()], config)
    assert [(i.name, i.protocol, i.address) for i in several] == [
        ("modbus-mapper-modbus", "modbus", "/etc/kubeedge/modbus.sock"),
        ("modbus-mapper-memory", "memory", "/etc/kubeedge/memory.sock"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    (
        ("grpc_server: {socket_path: 5}\ncommon: {name: x}", "grpc_server.socket_path: Expected"),
        ("grpc_server: {socket_path: /x}\ncommon: {}", "common: Object missing required field `name`"),
        ("- a list", "is not a mapping"),
        ("{", "cannot be read"),
    ),
)
def test_a_config_that_cannot_be_used_says_where(tmp_path: Path, text: str, says: str) -> None:
    path: Sequence[Path] = [tmp_path / "config.yaml"]
    path[0].write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path[0])
    assert says in str(caught.value)
    assert str(path[0]) in str(caught.value)


def test_drivers_are_found_by_name() -> None:
    assert isinstance(find_driver("modbus"), ModbusDriver)
    with pytest.raises(ConfigError, match=r"there is .*modbus"):
        find_driver("abacus")


def test_a_socket_path_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"grpc_server: {{socket_path: {tmp_path / ('x' * 120)}}}\ncommon: {{name: m}}\n")
    with pytest.raises(ConfigError, match="too long for a unix socket"):
        run(["modbus"], config)
