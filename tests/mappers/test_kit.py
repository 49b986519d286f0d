"""The test kit: time that jumps, an edge core as touchy as the stock one, proxies that spoil, leaks that are found."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest

from dmi._pb import api_pb2 as pb
from dmi._pb.api_pb2_grpc import DeviceManagerServiceStub
from dmi.client import EdgeCoreClient, MapperInfo
from dmi.errors import PeerRefused
from dmi.types import Device, DeviceId, DeviceModel, DeviceProperty, ModelProperty, Visitor
from mappers.drivers.virtual import VirtualDriver
from mappers.sdk import DeviceTimeout, DeviceUnreachable, Driver, epoch_ms
from mappers.sdk.declaration import declare
from mappers.sdk.errors import UnknownProperty
from mappers.sdk.testing import (
    FakeEdgeCore,
    FaultyDriver,
    PtyFaultProxy,
    TcpFaultProxy,
    UdpFaultProxy,
    VirtualClock,
    WatchedDriver,
    eventually,
    no_leaks,
    running,
    virtual_time,
)
from mappers.sdk.testing.around import DriverAround
from mappers.sdk.testing.stock import StockRules

ID = DeviceId("lab/v1")
MODEL = DeviceModel(
    "lab",
    "virtual",
    properties=(ModelProperty("level", "FLOAT", "ReadOnly"), ModelProperty("set-point", "INT", maximum="100")),
)
DEVICE = Device(
    "lab",
    "v1",
    model="virtual",
    protocol="virtual",
    properties=(
        DeviceProperty("level", visitor=Visitor(config={"waveform": "constant", "value": 5}), report_to_cloud=True),
        DeviceProperty("set-point", report_to_cloud=True),
    ),
)


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


# faults


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for _ in range(5):  # the echoes see that their connections are gone
        await asyncio.sleep(0.01)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float = 5.0) -> bytes:
    writer.write(b"0123456789")
    async with asyncio.timeout(timeout_s):
        return await reader.read(1000)


async def refused(port: int) -> bool:
    """At the connect, or at the first byte."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return await ask(reader, writer) == b""
    except OSError:
        return True


async def test_a_tcp_proxy_spoils_what_passes(echo_port: int) -> None:
    async with no_leaks(), TcpFaultProxy("127.0.0.1", echo_port) as proxy:
        faults = proxy.faults
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ask(reader, writer) == b"0123456789"
        assert (proxy.requests_bytes, proxy.reply_bytes, proxy.connections) == (10, 10, 1)
        faults.corrupt = True
        spoilt = await ask(reader, writer)
        assert sum((a ^ b).bit_count() for a, b in zip(spoilt, b"0123456789", strict=True)) == 1
        faults.clear()
        faults.garbage = True
        garbage = await ask(reader, writer)
        assert len(garbage) == 10
        assert garbage != b"0123456789"
        faults.clear()
        faults.truncate = True
        assert await ask(reader, writer) == b"01234"
        for name in ("drop", "drop_requests", "silent"):
            faults.clear()
            setattr(faults, name, True)
            with pytest.raises(TimeoutError):
                await ask(reader, writer, 0.1)
            _, other = await asyncio.open_connection("127.0.0.1", proxy.port)  # taken, and never answered
            other.transport.abort()
        faults.clear()
        for name, amount in (("delay_s", 0.1), ("bytes_per_s", 100.0)):
            setattr(faults, name, amount)
            began = asyncio.get_running_loop().time()
            assert await ask(reader, writer) == b"0123456789"
            assert asyncio.get_running_loop().time() - began >= 0.099
            faults.clear()
        faults.refuse = True
        assert await ask(reader, writer) == b"0123456789"  # who is in stays in
        assert await refused(proxy.port)
        faults.clear()
        await proxy.cut()
        with pytest.raises(OSError):  # noqa: PT011  # reset, or a broken pipe
            await ask(reader, writer)
        assert proxy.open_connections == 0
        writer.transport.abort()


async def test_a_udp_proxy_spoils_what_passes() -> None:
    loop = asyncio.get_running_loop()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: object) -> None:
            self.transport.sendto(data, addr)  # type: ignore[attr-defined]  # a datagram transport

    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = echo.get_extra_info("sockname")[1]
    async with UdpFaultProxy("127.0.0.1", port) as proxy:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", proxy.port))
            await loop.sock_sendall(client, b"0123456789")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"0123456789"
            proxy.faults.truncate = True
            await loop.sock_sendall(client, b"0123456789")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"01234"
            proxy.faults.silent = True
            await loop.sock_sendall(client, b"0123456789")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(client, 100), 0.1)
    echo.close()


async def test_a_serial_proxy_spoils_what_passes() -> None:
    async with no_leaks(), PtyFaultProxy() as proxy:
        driver = os.open(proxy.driver_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        device = os.open(proxy.device_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

        async def received(fd: int, count: int) -> bytes:
            data = b""
            async with asyncio.timeout(5):
                while len(data) < count:
                    try:
                        data += os.read(fd, 100)
                    except BlockingIOError:
                        await asyncio.sleep(0.005)
            return data

        try:
            os.write(driver, b"\x01\x03\r\n\x00")
            assert await received(device, 5) == b"\x01\x03\r\n\x00"
            os.write(device, b"0123456789")
            assert await received(driver, 10) == b"0123456789"
            proxy.faults.garbage = True
            os.write(device, b"0123456789")
            assert await received(driver, 10) != b"0123456789"
            proxy.faults.clear()
            proxy.faults.drop_requests = True
            os.write(driver, b"lost")
            await eventually(lambda: proxy.requests_bytes == 9)
            with pytest.raises(BlockingIOError):
                os.read(device, 100)
        finally:
            os.close(driver)
            os.close(device)


@virtual_time
async def test_a_faulty_driver_is_a_bad_line() -> None:
    driver = FaultyDriver(VirtualDriver(), timeout_s=2.0)
    declared = declare(driver, DEVICE, MODEL)
    properties = tuple(declared.properties.values())
    loop = asyncio.get_running_loop()
    async with driver.connect(ID, declared.config) as link:
        assert await link.read_many(properties) == {"level": 5.0, "set-point": 0}
        driver.faults.delay_s = 1.0
        began = loop.time()
        await link.read_many(properties)
        assert loop.time() - began == pytest.approx(1.0, abs=0.01)
        driver.faults.clear()
        driver.faults.drop = True
        with pytest.raises(DeviceTimeout):
            await link.write(properties[1], 9)
        driver.faults.clear()
        assert (await link.read_many(properties))["set-point"] == 9  # the request got through, its reply did not
        driver.faults.refuse = True
        with pytest.raises(DeviceUnreachable):
            async with driver.connect(ID, declared.config):
                pass
        driver.hang = True
        waiting = asyncio.create_task(link.read_many(properties))
        await asyncio.sleep(1000)
        assert not waiting.done()
        driver.cut()
        with pytest.raises(DeviceUnreachable):
            await waiting


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
