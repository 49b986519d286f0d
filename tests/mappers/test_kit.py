"""The test kit: time that jumps, an edge core as touchy as the stock one, and leaks that are found."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub
from dmi.client import EdgeCoreClient, MapperInfo
from dmi.errors import PeerRefused
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import Driver, epoch_ms
from mappers.sdk.errors import UnknownProperty
from mappers.sdk.testing import (
    FakeEdgeCore,
    VirtualClock,
    WatchedDriver,
    no_leaks,
    running,
    virtual_time,
)
from mappers.sdk.testing.around import DriverAround
from mappers.sdk.testing.stock import StockRules
from tests.mappers.virtual_world import DEVICE, ID, MODEL

# time


@virtual_time
async def test_an_hour_passes_in_a_moment() -> None:
    began, wall = asyncio.get_running_loop().time(), time.monotonic()
    epoch = epoch_ms()
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() - began == pytest.approx(3600, abs=0.01)
    assert epoch_ms() - epoch == pytest.approx(3_600_000, abs=10)
    assert time.monotonic() - wall < 60


@virtual_time
async def test_the_order_of_timers_is_kept() -> None:
    order: list[int] = []

    async def tick(after_s: float, number: int) -> None:
        await asyncio.sleep(after_s)
        order.append(number)

    await asyncio.gather(tick(3.0, 3), tick(1.0, 1), tick(2.0, 2))
    assert order == [1, 2, 3]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(86_400):
            await asyncio.Event().wait()


@virtual_time
async def test_threads_and_sockets_are_waited_for() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(3600):
        await asyncio.to_thread(time.sleep, 0.05)
    assert loop.time() < 60

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n")
    async with asyncio.timeout(3600):
        assert await reader.readline() == b"hello\n"
    writer.close()
    server.close()
    await server.wait_closed()
    assert loop.time() < 60


def test_the_wall_clock_is_given_back() -> None:
    async def fails() -> None:
        assert epoch_ms() == datetime(2001, 2, 3, tzinfo=UTC).timestamp() * 1000
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        VirtualClock(datetime(2001, 2, 3, tzinfo=UTC)).run(fails())
    assert abs(epoch_ms() - time.time() * 1000) < 60_000


@virtual_time
async def test_a_mapper_runs_for_a_day_without_waiting() -> None:
    async with FakeEdgeCore(devices=[DEVICE], models=[MODEL]) as core, running(VirtualDriver(), core):
        await core.until(lambda: core.value(ID, "level") == "5", 3600)
        reports = len(core.reports)
        await asyncio.sleep(3600)
        confirmed = len(core.reports) - reports
        assert 300 <= confirmed <= 400  # every 10 s, where nothing is said


# the fake edge core


async def test_desired_values_are_driven() -> None:
    async with FakeEdgeCore(devices=[DEVICE], models=[MODEL]) as core, running(VirtualDriver(), core):
        await core.until(lambda: core.quality(ID, "set-point") == "good")
        await core.set_desired(ID, "set-point", "7")
        await core.until(lambda: core.write_state(ID, "set-point") == "applied")
        assert core.value(ID, "set-point") == "7"
        await core.until(lambda: core.state(ID) == "online")
        await core.set_desired(ID, "set-point", "101")
        await core.until(lambda: core.write_state(ID, "set-point") == "failed")
        with pytest.raises(UnknownProperty, match="no property 'speed'"):
            await core.set_desired(ID, "speed", "1")


async def test_what_the_mapper_fails_with_comes_out() -> None:
    async with FakeEdgeCore(devices=[DEVICE], models=[MODEL]) as core:
        async with running(VirtualDriver(), core):
            with pytest.raises(BaseExceptionGroup) as caught:
                async with running(VirtualDriver(), core):  # the same name, which is taken
                    pass
        assert "served by another mapper" in str(caught.value.exceptions[0])
    with pytest.raises(RuntimeError, match="serves no socket"):
        _ = core.socket_path


@virtual_time
async def test_a_stock_edge_core_runs_out_of_tokens() -> None:
    rules = StockRules(burst=3)
    for _ in range(3):
        rules.take()
    with pytest.raises(PeerRefused, match="too many"):
        rules.take()
    assert rules.refused == 1
    await asyncio.sleep(2.0)
    rules.take()
    rules.take()
    with pytest.raises(PeerRefused):
        rules.take()


async def test_a_stock_edge_core_refuses_over_the_socket_too() -> None:
    async with FakeEdgeCore(stock=True, burst=2) as core, EdgeCoreClient(core.socket_path) as client:
        await client.register(MapperInfo("m", "virtual", "/tmp/m.sock"))
        await client.report_state(ID, "online")
        with pytest.raises(PeerRefused, match=r"UNKNOWN.*too many"):
            await client.report_state(ID, "online")
        assert core.violations == []
        assert core.states == [(ID, "online", "")]


async def test_a_stock_edge_core_names_what_would_kill_it() -> None:
    both = {"reported": pb.TwinProperty(value="1"), "observedDesired": pb.TwinProperty()}

    def report(*twins: pb.Twin) -> pb.ReportDeviceStatusRequest:
        return pb.ReportDeviceStatusRequest(
            deviceName="v1", deviceNamespace="lab", reportedDevice=pb.DeviceStatus(twins=twins)
        )

    async with FakeEdgeCore(stock=True) as core:
        async with grpc.aio.insecure_channel(f"unix:{core.socket_path}") as channel:
            stub = DeviceManagerServiceStub(channel)
            await stub.ReportDeviceStatus(report(pb.Twin(propertyName="level", **both)))
            assert core.violations == []
            await stub.ReportDeviceStatus(report(pb.Twin(propertyName="level", reported=both["reported"])))
            await stub.ReportDeviceStatus(report(pb.Twin(propertyName="level", observedDesired=both["reported"])))
            await stub.ReportDeviceStatus(
                report(
                    pb.Twin(propertyName="a b", reported=pb.TwinProperty(value="x y"), observedDesired=both["reported"])
                )
            )
            await stub.ReportDeviceStates(
                pb.ReportDeviceStatesRequest(deviceName="v1", deviceNamespace="lab", state="disconnected")
            )
            await stub.MapperRegister(
                pb.MapperRegisterRequest(mapper=pb.MapperInfo(name="m", protocol="p", address=b"unix:/x"))
            )
        violations = "\n".join(core.violations)
    for words in (
        "without observedDesired the edge core crashes",
        "without reported the edge core crashes",
        "'x y' is dropped silently",
        "'a b': the name is dropped",
        "state 'disconnected' is dropped",
        "without withData",
        "not an absolute path",
    ):
        assert words in violations


# drivers around drivers


async def test_a_watched_driver_can_what_the_driver_inside_can() -> None:
    watch = WatchedDriver(VirtualDriver())
    async with FakeEdgeCore(devices=[DEVICE], models=[MODEL]) as core, running(watch, core):
        await core.set_desired(ID, "set-point", "3")
        await core.until(lambda: core.write_state(ID, "set-point") == "applied")
        assert watch.writes == [("set-point", 3)]
        assert watch.connects == {ID: 1}
        assert watch.open_links == 1
    assert watch.open_links == 0
    assert watch.unexpected == []
    assert watch.reads >= 1


def test_drivers_around_drivers_leave_no_method_out() -> None:
    own = {name for name in vars(Driver) if not name.startswith("_") and callable(getattr(Driver, name))}
    assert own - {"connect"} == {name for name in own if name in vars(DriverAround)}


# leaks


async def test_leaks_are_named() -> None:
    async with no_leaks():
        await asyncio.create_task(asyncio.sleep(0))
    task = asyncio.create_task(asyncio.sleep(30), name="outside")
    async with no_leaks():
        pass
    task.cancel()
    with pytest.raises(AssertionError, match="task forgotten"):
        async with no_leaks(grace_s=0.05):
            task = asyncio.create_task(asyncio.sleep(30), name="forgotten")
    task.cancel()
    stop = threading.Event()
    with pytest.raises(AssertionError, match="thread forgotten"):
        async with no_leaks(grace_s=0.05):
            threading.Thread(target=stop.wait, name="forgotten").start()
    stop.set()
    file = -1
    with pytest.raises(AssertionError, match=r"file descriptor .* on /"):
        async with no_leaks(grace_s=0.05):
            file = os.open(Path(__file__), os.O_RDONLY)
    os.close(file)
