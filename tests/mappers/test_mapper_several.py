"""Several mappers in one process, the process `kubetwin mapper run` becomes, and mappers that fail."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import yaml

from dmi.client import Sockets
from dmi.errors import ConfigError
from dmi.ports import EdgeCorePort, MapperHandlers, MapperInfo, MapperSide, Registration
from dmi.types import Device, DeviceModel, DeviceProperty, ModelProperty, Scalar, Visitor
from mappers.drivers.modbus.simulator import Image, Simulator
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import app as app_module
from mappers.sdk.app import keep_running, run_mappers
from mappers.sdk.config import CommonConfig, DataConfig, GrpcServerConfig, HttpConfig, MapperConfig
from mappers.sdk.driver import AnyDriver
from mappers.sdk.options import Options, find_drivers, load_driver, read_options
from mappers.sdk.testing import FakeEdgeCore, eventually
from tests.mappers.mapper_world import MODEL, MemoryDevice, MemoryDriver, holding, memory_device, modbus_device, prop

ROOT = Path(__file__).parents[2]
GAUGE = DeviceModel("plant", "gauge", (ModelProperty("level", "INT"),))


def gauge(protocol: str = "virtual", name: str = "g1", **visitor: Scalar) -> Device:
    level = DeviceProperty("level", visitor=Visitor(protocol, visitor), collect_cycle_ms=50, report_to_cloud=True)
    return Device("plant", name, "gauge", protocol=protocol, properties=(level,))


class ByProtocol(FakeEdgeCore):
    """Answers a registration with the devices of its protocol, as a real edge core does."""

    async def register_mapper(self, mapper: MapperInfo, *, with_data: bool) -> Registration:
        answer = await super().register_mapper(mapper, with_data=with_data)
        return msgspec.structs.replace(
            answer, devices=tuple(d for d in answer.devices if d.protocol == mapper.protocol)
        )


def config(directory: Path, port: int = 0, **common: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "grpc_server": {"socket_path": str(directory / "mapper.sock")},
                "common": {"name": "m", "edgecore_sock": str(directory / "dmi.sock"), "http_port": port, **common},
            }
        )
    )
    return path


@contextlib.asynccontextmanager
async def command(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`kubetwin …` as somebody would call it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kubetwin",
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_several_protocols_in_one_process(tmp_path: Path) -> None:
    port = free_port()
    async with (
        Simulator(units={0: Image(holding_registers={0: 11})}) as simulator,
        ByProtocol(
            tmp_path / "dmi.sock",
            devices=[modbus_device(simulator.port, holding("level", 0)), gauge(waveform="constant", value="7")],
            models=[MODEL, GAUGE],
        ) as edge,
        command("mapper", "run", "modbus", "virtual", "--config", config(tmp_path, port)) as process,
    ):
        await edge.until(lambda: len(edge.twins) == 2, timeout_s=30)
        assert {t.reported.value for t in edge.twins.values()} == {"11", "7"}
        assert sorted((m.name, m.protocol) for m in edge.mappers) == [("m-modbus", "modbus"), ("m-virtual", "virtual")]
        assert sorted(p.name for p in tmp_path.glob("*.sock")) == ["dmi.sock", "modbus.sock", "virtual.sock"]

        # It is another program now, under the same process id, without what reading the options took.
        assert b"mappers.sdk" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert "_yaml" not in Path(f"/proc/{process.pid}/maps").read_text()

        assert "m-modbus" in await asyncio.to_thread(get, port, "/healthz")
        metrics = await asyncio.to_thread(get, port, "/metrics")
        assert 'protocol="modbus"' in metrics
        assert 'protocol="virtual"' in metrics
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0


@pytest.mark.parametrize(
    ("protocols", "says"),
    (
        (["virtual", "abacus"], "no driver 'abacus' is installed; there is "),
        (["virtual", "virtual"], "'virtual' is named twice"),
    ),
)
async def test_one_bad_protocol_of_several_is_a_sentence(tmp_path: Path, protocols: Sequence[str], says: str) -> None:
    async with command("mapper", "run", *protocols, "--config", config(tmp_path)) as process:
        async with asyncio.timeout(20):
            _, errors = await process.communicate()
        assert process.returncode == 1
        assert errors.decode().startswith("Error: protocol: " + says)
        assert len(errors.decode().splitlines()) == 1


async def test_a_driver_that_cannot_be_loaded_is_a_sentence_after_the_exec(tmp_path: Path) -> None:
    """The driver is loaded by the process that stays."""
    options = read_options(["virtual"], config(tmp_path))
    broken = msgspec.structs.replace(options.drivers[0], place="mappers.drivers.no_such:Driver")
    code = (
        "import msgspec; from mappers.sdk.options import Options, become_mapper;"
        f"become_mapper(msgspec.json.decode({msgspec.json.encode(Options(options.config, (broken,)))!r}, type=Options))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, cwd=ROOT)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith("Error: protocol: driver 'virtual' cannot be loaded: No module named")


def test_what_is_no_driver_is_refused() -> None:
    (ref,) = find_drivers(["virtual"])
    assert isinstance(load_driver(ref), VirtualDriver)
    with pytest.raises(ConfigError, match="is not a Driver class"):
        load_driver(msgspec.structs.replace(ref, place="mappers.drivers.virtual:__doc__"))


def test_options_survive_the_way_to_the_other_process(tmp_path: Path) -> None:
    options = read_options(["modbus", "virtual"], config(tmp_path, address="::1"))
    assert msgspec.json.decode(msgspec.json.encode(options), type=Options) == options
    assert json.loads(msgspec.json.encode(options))["config"]["common"]["address"] == "::1"


# Mappers that fail


async def test_what_fails_is_started_over_until_it_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module, "RESTART_S", (0.01, 0.02))
    stop, failures = asyncio.Event(), 0
    told: list[BaseException] = []

    async def run() -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise SystemExit("bug 2") if failures == 2 else RuntimeError(f"bug {failures}")
        await stop.wait()

    task = asyncio.create_task(keep_running(run, "m", stop, told.append))
    await eventually(lambda: failures == 3)
    stop.set()
    await task
    assert [str(error) for error in told] == ["bug 1", "bug 2", "bug 3"]
    assert len([r for r in caplog.records if "mapper m failed; it is started over in" in r.getMessage()]) == 3


async def test_stopping_does_not_wait_for_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "RESTART_S", (60.0, 60.0))
    stop, ran = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        ran.set()
        raise RuntimeError("a bug")

    task = asyncio.create_task(keep_running(run, "m", stop))
    await ran.wait()
    stop.set()
    async with asyncio.timeout(5):
        await task


async def test_a_setting_that_cannot_work_is_not_tried_again() -> None:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())

    async def refuse() -> None:
        raise ConfigError("grpc_server.socket_path", "is wrong")

    with pytest.raises(ExceptionGroup):
        await keep_running(run, "m", asyncio.Event())


class FailsAt:
    """A `MapperSide` at which one address fails once it has been served for a while."""

    def __init__(self, side: MapperSide, address: str) -> None:
        self._side = side
        self._address = address
        self.fail = asyncio.Event()
        self.failures = 0

    def edgecore(self) -> contextlib.AbstractAsyncContextManager[EdgeCorePort]:
        return self._side.edgecore()

    @contextlib.asynccontextmanager
    async def serve_mapper(self, handlers: MapperHandlers, address: str, /) -> AsyncIterator[None]:
        async with self._side.serve_mapper(handlers, address), asyncio.TaskGroup() as tasks:
            if address == self._address and not self.failures:
                tasks.create_task(self._fail())
            yield

    async def _fail(self) -> None:
        await self.fail.wait()
        self.failures += 1
        raise RuntimeError("a bug")


async def test_a_mapper_that_fails_leaves_the_others_of_its_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "RESTART_S", (0.01, 0.02))
    memory = MemoryDevice(level=5)
    drivers: list[AnyDriver] = [MemoryDriver(m1=memory), VirtualDriver()]
    infos = [MapperInfo(p, p, str(tmp_path / f"{p}.sock")) for p in ("memory", "virtual")]
    settings = MapperConfig(
        GrpcServerConfig(str(tmp_path / "m.sock")),
        CommonConfig("m", http_port=(port := free_port())),
        HttpConfig(),
        DataConfig(dir=str(tmp_path / "data")),
    )
    device = memory_device(prop("level", cell="level"))
    async with ByProtocol(
        tmp_path / "dmi.sock", devices=[device, gauge(waveform="ramp", period=2000)], models=[MODEL, GAUGE]
    ) as edge:
        side, stop = FailsAt(Sockets(edge.socket_path), str(tmp_path / "memory.sock")), asyncio.Event()
        task = asyncio.create_task(run_mappers(drivers, infos, settings, side, stop))
        try:
            await edge.until(lambda: len(edge.twins) == 2)
            side.fail.set()
            await edge.until(lambda: [m.name for m in edge.mappers].count("memory") == 2)
            assert [m.name for m in edge.mappers].count("virtual") == 1
            await eventually(lambda: memory.connects == 2)
            metrics = await asyncio.to_thread(get, port, "/metrics")
            assert 'kubetwin_mapper_failures_total{mapper="memory",protocol="memory"} 1' in metrics
            assert 'kubetwin_mapper_failures_total{mapper="virtual",protocol="virtual"} 0' in metrics
            reports = len(edge.reports)
            await edge.until(lambda: any(d == "plant/g1" for d, _ in edge.reports[reports:]))
        finally:
            stop.set()
            await task
