"""A mapper under a stock edge core: told apart by what it does not say, never asked for more than it takes."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceServicer, add_DeviceManagerServiceServicer_to_server
from dmi.client import EdgeCoreClient
from dmi.ports import MapperInfo
from dmi.twins import Desired, Reported, Twin
from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, DeviceState, ModelProperty, Visitor
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import uplink as uplink_module
from mappers.sdk.mapper import run_mapper
from mappers.sdk.stock import StockFilter
from mappers.sdk.testing import FakeEdgeCore
from mappers.sdk.testing.clock import virtual_time
from mappers.sdk.testing.stock import StockRules
from mappers.sdk.uplink import PACED_S, STOCK_BURST, Uplink

INFO = MapperInfo("m", "virtual", "/run/m.sock")
DEVICES = [DeviceId(f"plant/d{n:02}") for n in range(60)]
GAUGE = DeviceModel("plant", "gauge", (ModelProperty("level", "INT"),))


def gauge(name: str) -> Device:
    visitor = Visitor("virtual", {"waveform": "ramp", "period": 1000})
    level = DeviceProperty("level", visitor=visitor, collect_cycle_ms=20, report_to_cloud=True)
    return Device("plant", name, "gauge", protocol="virtual", properties=(level,))


# Told apart


@pytest.mark.parametrize("stock", (False, True))
async def test_an_edge_core_of_ours_says_so(tmp_path: Path, stock: bool) -> None:
    async with FakeEdgeCore(tmp_path / "dmi.sock", stock=stock) as core, EdgeCoreClient(core.socket_path) as client:
        assert (await client.register(INFO)).stock is stock
        async with core.dmi.edgecore() as inside:
            assert (await inside.register(INFO)).stock is stock


async def test_one_that_says_nothing_is_a_stock_one(tmp_path: Path) -> None:
    class Upstream(DeviceManagerServiceServicer):
        async def MapperRegister(self, request: pb.MapperRegisterRequest, context: Any) -> pb.MapperRegisterResponse:  # noqa: N802
            return pb.MapperRegisterResponse()

    server = grpc.aio.server()
    add_DeviceManagerServiceServicer_to_server(Upstream(), server)
    server.add_insecure_port(f"unix:{tmp_path / 'dmi.sock'}")
    await server.start()
    try:
        async with EdgeCoreClient(tmp_path / "dmi.sock") as client:
            assert (await client.register(INFO)).stock
    finally:
        await server.stop(None)


# Paced


class Stock:
    """`ReportClient` of an edge core with 100 tokens and one more each second."""

    def __init__(self) -> None:
        self.rules = StockRules()
        self.at: list[float] = []
        self.newest: dict[DeviceId, int] = {}

    async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None:
        self.rules.take()
        self.at.append(asyncio.get_running_loop().time())
        self.newest[device] = int(twins[0].reported.value)

    async def report_state(self, device: DeviceId, state: DeviceState, reason: str = "", /) -> None:
        self.rules.take()


@virtual_time
async def test_a_stock_edge_core_refuses_nothing_and_has_some_left_for_others() -> None:
    """Sixty devices that change every second, for ten minutes, and anthers that call now and then."""
    core = Stock()
    uplink = Uplink(core)
    task = asyncio.create_task(uplink.run())
    for device in DEVICES:
        uplink.put_twins(device, [Twin("x", Reported("0"))])  # before it has registered
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    uplink.open(stock=True)
    for second in range(600):
        for device in DEVICES:
            uplink.put_twins(device, [Twin("x", Reported(str(second)))])
        for _ in range(30 if second == 5 else second % 60 == 0):
            core.rules.take()  # a Go mapper whose registration is refused ends
        await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert not core.rules.refused
    at_once = sum(at - began < 0.5 for at in core.at)
    assert at_once == STOCK_BURST
    later = [at for at in core.at if at - began > 300]
    assert 300 / PACED_S - 2 <= len(later) <= 300 / PACED_S + 1  # and all that it takes afterwards
    assert min(core.newest.values()) >= 600 - len(DEVICES) * PACED_S - 5  # in turns, each with its newest


@virtual_time
async def test_pacing_does_not_end_while_it_is_stock_and_ends_when_it_is_not() -> None:
    uplink = Uplink(Stock())
    task = asyncio.create_task(uplink.run())
    uplink.open(stock=True)
    uplink.put_twins(DEVICES[0], [Twin("x", Reported("1"))])
    await uplink.drained()
    assert uplink.is_paced()
    uplink.pause()
    uplink.open()
    assert not uplink.is_paced()
    task.cancel()
    await asyncio.wait([task])


async def test_a_mapper_keeps_within_what_a_stock_edge_core_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over the socket, with values that change far more often."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(uplink_module, "STOCK_BURST", 8)
    devices = [gauge(f"g{n}") for n in range(3)]
    core = FakeEdgeCore(tmp_path / "dmi.sock", devices=devices, models=[GAUGE], stock=True, burst=10)
    stop = asyncio.Event()
    async with core, asyncio.TaskGroup() as tasks:
        tasks.create_task(
            run_mapper(VirtualDriver(), MapperInfo("m", "virtual", str(tmp_path / "m.sock")), core.socket_path, stop)
        )
        await core.until(lambda: len(core.reports) >= 7, timeout_s=20)
        stop.set()
    assert core.rules is not None
    assert not core.rules.refused
    assert not core.violations
    assert any("a stock edge core: calls are paced" in r.getMessage() for r in caplog.records)


# What it drops


def test_what_a_stock_edge_core_drops_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    filter_ = StockFilter()
    good = Twin("mode", Reported("auto-1"), Desired("auto-1"))
    for _ in range(2):
        assert filter_.fit(DEVICES[0], [good, Twin("label", Reported("Küche 1"))])[0] == good
    assert filter_.lost == 2
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("device plant/d00: property label: KubeEdge's edge core drops it")
    filter_.fit(DEVICES[1], [Twin("label", Reported("x" * 513)), Twin("n" * 129, Reported("1"))])
    assert (filter_.lost, len(caplog.records)) == (4, 3)
    filter_.forget(DEVICES[0])
    filter_.fit(DEVICES[0], [Twin("label", Reported("a b"))])
    assert len(caplog.records) == 4


def test_a_desired_value_it_would_drop_does_not_take_the_reported_one_along() -> None:
    twin = Twin("label", Reported("Kitchen"), Desired("Küche 1", write="failed", reason="too long"))
    (sent,) = StockFilter().fit(DEVICES[0], [twin])
    assert (sent.reported, sent.desired.value, sent.desired.write) == (twin.reported, "", "failed")


@virtual_time
async def test_an_edge_core_of_ours_gets_every_value_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Ours(Stock):
        got: Sequence[Twin] = ()

        async def report_twins(self, device: DeviceId, twins: Sequence[Twin], /) -> None:
            self.got = list(twins)

    core = Ours()
    uplink = Uplink(core)
    task = asyncio.create_task(uplink.run())
    uplink.open()
    twin = Twin("label", Reported("Küche 1"), Desired("Küche 1"))
    uplink.put_twins(DEVICES[0], [twin])
    await uplink.drained()
    assert core.got == [twin]
    assert not caplog.records
    task.cancel()
    await asyncio.wait([task])
